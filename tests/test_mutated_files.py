"""Whatever a file holds, it is read or refused in the project's own words: no other error, no endless work.

`make explore` tries thousands of mutations of each kind; what failed once lies in ``tests/mutated/KIND`` and
is tried in every run. To explore, memory and time of one file are bounded as well.
"""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.commands.main import main
from pytest_sdbench.features.images import decode, open_images, read_captions
from pytest_sdbench.features.references import load_reference
from pytest_sdbench.gate.calibration import calibration_path, read_calibration
from pytest_sdbench.gate.pairing import read_recorded
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.integrity import verify
from pytest_sdbench.models.pipeline import load_pipeline
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.report.results import Row, results_json
from pytest_sdbench.store.pictures import format_pictures, parse_pictures
from pytest_sdbench.store.shard_format import Damage, format_shard, parse_shard
from tests.project import make_protocol
from tests.tiny_checkpoint import make_checkpoint
from training.errors import TrainingError
from training.recipes.load import RECIPES, load_recipe

FOUND = Path(__file__).parent / "mutated"
RECORDED = "evidence/scenes-tiny/scenes-quick.safetensors"
EXPLORING = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
SECONDS, BYTES = 10, 1 << 30
"""Bounds of one file while exploring."""

LONGEST = 4000
"""Characters of a message."""

WORDS = [
    *b"&a *a [ ] { } : - ? | --- <<:*a !!bool !!set null true ~ \" ' \\ , ../ / <script> [a](b)".split(),
    *b"nan .nan NaN Infinity -.inf 1e999 -1 0 0.0 -0 1_0 12e03 0x1BCF08 1:30 2026-13-45".split(),
    *b"_class_name _use_default_values \x1b[2J \x00 \xff \xef\xbb\xbf \xe2\x80\xa8 \xed\xa0\x80".split(),
    *(b" ", b"\t", b"\n", b"\r", b"\r\n", b"9" * 400, b"[" * 3000, b'{"a":' * 3000),
]
"""What means something to one reader or another."""


@dataclass(frozen=True)
class Kind:
    """Files of one sort: sound ones to begin from, and what reads one."""

    file: str
    sound: Callable[[], bytes]
    read: Callable[[Path], object]


def in_folder(name: str) -> Callable[[], bytes]:
    return lambda: (reference() / name).read_bytes()


# --- what is sound, and what reads it ---


def hub_card() -> bytes:
    return (reference() / "cards" / "bk-sdm-tiny.md").read_bytes()


def table_of(path: Path) -> None:
    """Write the table of a card, or of a run's results."""
    card = path if path.suffix == ".md" else reference() / "cards" / "scenes-tiny.md"
    results = ["--results", str(path)] if path.suffix == ".json" else []
    assert main(["table", str(card), *results, "--out", str(path.parent / "table.out")]) in (0, 1, 2)


def results() -> bytes:
    row = Row(
        "cards/x.md::test_quality[x-fid]", "x", "quality", "fid", "fid", "scenes-quick", 1.0, "1.0", 1.5
    )
    return results_json([row], {}).encode()


def calibration_of(path: Path) -> None:
    protocol = load_protocol(make_protocol(path.parent / "protocols" / "mini.yaml"))
    place = calibration_path(protocol)
    place.parent.mkdir(exist_ok=True)
    shutil.copy(path, place)
    read_calibration(protocol)


def statistics() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.zeros(4), sigma=np.eye(4), n=np.array(9), provenance="{}")
    return buffer.getvalue()


def shard() -> bytes:
    rows = {"fid": np.ones((3, 4), np.float32), "clip_score": np.zeros(3)}
    return format_shard(rows, range(3), of="x", writer="{}")


def read_shard(path: Path) -> None:
    with suppress(Damage):
        parse_shard(path.read_bytes())


def pictures() -> bytes:
    images = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
    return format_pictures(images, range(64, 67), [1, 2, 3], ["a", "b, c", ""], of="x", writer="{}")


def read_pictures(path: Path) -> None:
    """Read them as one who does not look at the checksum, too: it would hide all that comes after it."""
    for check in (True, False):
        with suppress(Damage):
            parse_pictures(path.read_bytes(), check=check)


def picture(kind: str) -> Callable[[], bytes]:
    def draw() -> bytes:
        from PIL import Image

        buffer = io.BytesIO()
        pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()

    return draw


def images_of(path: Path) -> None:
    list(decode(open_images([path.parent])))


def captions_of(path: Path) -> None:
    (path.parent / "a.png").write_bytes(picture("png")())
    read_captions(open_images([path.parent]))


def config(file: str) -> Kind:
    """A configuration of a checkpoint whose other files are sound."""

    def read(path: Path) -> None:
        folder = path.parent / "checkpoint"
        shutil.copytree(sound_checkpoint(), folder)
        shutil.copy(path, folder / file)
        checkpoint = resolve(str(folder), near=path.parent)
        verify(checkpoint)
        load_pipeline(checkpoint)

    return Kind(Path(file).name, lambda: (sound_checkpoint() / file).read_bytes(), read)


_made: list[Path] = []


def sound_checkpoint() -> Path:
    return _made[0]


@pytest.fixture(scope="module", autouse=True)
def _checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    _made.append(make_checkpoint(tmp_path_factory.mktemp("sound") / "checkpoint"))
    yield
    _made.clear()


KINDS = {
    "hub-card": Kind("card.md", hub_card, read_card),
    "table-of-card": Kind("card.md", hub_card, table_of),
    "table-of-results": Kind("results.json", results, table_of),
    "protocol": Kind("mine.yaml", in_folder("protocols/scenes-quick.yaml"), load_protocol),
    "recipe": Kind("mine.yaml", (RECIPES / "bk-sdm-tiny.yaml").read_bytes, load_recipe),
    "calibration": Kind("mini.json", in_folder("calibration/scenes-quick.json"), calibration_of),
    "recorded-evidence": Kind("mini.safetensors", in_folder(RECORDED), read_recorded),
    "statistics": Kind("mine.npz", statistics, lambda path: load_reference(path, width=4)),
    "shard": Kind("shard", shard, read_shard),
    "pictures": Kind("pictures.tar", pictures, read_pictures),
    "png": Kind("a.png", picture("png"), images_of),
    "jpeg": Kind("a.jpg", picture("jpeg"), images_of),
    "metadata-csv": Kind("metadata.csv", lambda: b'file_name,text\na.png,"a, b"\nb.png,c\n', captions_of),
}
CONFIGS = {
    file: config(file)
    for file in (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "unet/config.json",
        "vae/config.json",
    )
}


# --- mutations ---


Steps = list[tuple[str, float, int, bytes]]

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "end", "repeat", "insert", "replace"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.sampled_from(WORDS),
    ),
    min_size=1,
    max_size=4,
)
"""Changes of a file: what is done where, as a share of its length, with which number and word."""


def mutated(content: bytes, steps: Steps) -> bytes:
    for what, place, number, word in steps:
        content = _changed(content, what, int(place * len(content)), number, word)
    return content


def _changed(content: bytes, what: str, at: int, number: int, word: bytes) -> bytes:
    head, tail = content[:at], content[at:]
    if what == "flip":
        return head + bytes([tail[0] ^ (1 << number % 8)]) + tail[1:] if tail else content
    if what == "cut":
        return head + tail[number:]
    if what == "end":
        return head
    if what == "repeat":
        return head + tail[: number + 1] * (1 + number % 40) + tail[number + 1 :]
    if what == "insert":
        return head + word + tail
    # In place of a value: from the colon before to the end of the line or item.
    start = max(head.rfind(b":") + 1, head.rfind(b" ") + 1, 0)
    ends = [found for end in (b"\n", b",", b"}") if (found := content.find(end, at)) >= 0]
    return content[:start] + b" " + word + content[min(ends, default=len(content)) :]


@contextmanager
def bounds() -> Iterator[None]:
    """Fail after some seconds or above some memory, while exploring."""
    if not EXPLORING:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"more than {SECONDS} s for one file")

    before, held = signal.signal(signal.SIGALRM, ring), _held()
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert _held() - held < BYTES, "more than 1 GB for one file"


def _held() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def check(kind: Kind, content: bytes, folder: Path) -> None:
    """Read what is in a file of its own; the project's own errors are answers, and short ones."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / kind.file
    path.write_bytes(content)
    with bounds():
        try:
            kind.read(path)
        except (SdbenchError, TrainingError) as error:
            refused = str(error)
        else:
            return
    assert len(refused) < LONGEST, "a message that nobody reads to its end"


@pytest.mark.parametrize("name", [*KINDS, *CONFIGS])
def test_what_is_sound_is_read(name: str, tmp_path: Path) -> None:
    kind = (KINDS | CONFIGS)[name]
    path = tmp_path / kind.file
    path.write_bytes(kind.sound())
    kind.read(path)


@pytest.mark.parametrize("name", KINDS)
@given(steps=STEPS)
def test_what_is_mutated_is_read_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory, steps: Steps
) -> None:
    check(KINDS[name], mutated(KINDS[name].sound(), steps), tmp_path_factory.getbasetemp() / "mutated")


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=max(3, settings().max_examples // 10))
@given(steps=STEPS)
def test_a_mutated_configuration_is_loaded_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory, steps: Steps
) -> None:
    check(CONFIGS[name], mutated(CONFIGS[name].sound(), steps), tmp_path_factory.getbasetemp() / "mutated")


@pytest.mark.parametrize("path", sorted(FOUND.glob("*/*")), ids=str)
def test_what_once_failed_is_read_or_refused(path: Path, tmp_path: Path) -> None:
    check(KINDS[path.parent.name], path.read_bytes(), tmp_path / "x")
