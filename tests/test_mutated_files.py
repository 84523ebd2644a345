"""Whatever a file holds, it is read or refused in the project's own words: no other error, no endless work.

`make explore` tries thousands of mutations of each kind; what failed once lies in ``tests/mutated/KIND`` and
is tried in every run. To explore, memory and processor time of one file are bounded as well.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import os
import re
import shutil
import signal
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pytest_sdbench.base.errors import SdbenchError
from pytest_sdbench.base.paths import reference
from pytest_sdbench.cards.card import read_card
from pytest_sdbench.cards.edit import write_records
from pytest_sdbench.cards.records import Record
from pytest_sdbench.commands.main import main
from pytest_sdbench.features.images import decode, open_images, read_captions
from pytest_sdbench.features.references import load_reference
from pytest_sdbench.gate.calibration import calibration_path, read_calibration
from pytest_sdbench.gate.recorded import read_recorded
from pytest_sdbench.models.changes import changes
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.pipeline import load_pipeline, load_tokenizer
from pytest_sdbench.models.values import check_values
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.report.results import Row, results_json
from pytest_sdbench.store.pictures import format_pictures, parse_pictures
from pytest_sdbench.store.shard_format import Damage, format_shard, parse_shard
from pytest_sdbench.store.shards import Store
from tests.project import make_protocol
from tests.tiny_checkpoint import make_checkpoint
from training.errors import TrainingError
from training.recipes.load import RECIPES, load_recipe

FOUND = Path(__file__).parent / "mutated"
RECORDED = "evidence/scenes-tiny/scenes-quick.safetensors"
EXPLORING = os.environ.get("HYPOTHESIS_PROFILE") == "explore"
SECONDS, WALL, BYTES = 10, 120, 1 << 30
"""Bounds of one file while exploring: of the processor and, as others may use it, of the clock; of memory."""

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


def readme() -> bytes:
    return hub_card().split(b"sdbench:")[0] + b"---\n\n# A model\n\n---\n"


def drafted(path: Path) -> None:
    """Write the card of a checkpoint that has this README."""
    folder = copied(sound(), path.parent / "checkpoint")
    shutil.copy(path, folder / "README.md")
    with patch("pytest_sdbench.models.counts._flops", return_value=(4, 2)):  # seconds, and the same each time
        assert main(["draft", str(folder), "--out", str(path.parent / "drafted.md")]) in (0, 2)


def recorded_in(path: Path) -> None:
    record = Record(protocol="scenes-quick", metric="fid", value=1.5, n=512, versions={"torch": "2.6"})
    write_records(path, [record])


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


def in_store(name: str) -> Callable[[Path], None]:
    """Return what reads a store with one shard and a further file of this name."""

    def read(path: Path) -> None:
        evidence = Store(path.parent / "store").open("a" * 16, "b" * 16, {"device": "x"})
        evidence.write(0, {"fid": np.ones((3, 4), np.float32)})
        assert isinstance(evidence.folder, Path)
        shutil.copy(path, evidence.folder / name.replace("WRITER", evidence.writer))
        assert (evidence.missing(3), len(evidence.writers(3))) == ([], 1)
        evidence.pace()
        for action in ("ls", "gc"):
            assert main(["store", action, "--store", str(path.parent / "store")]) == 0

    return read


MANIFEST = b'{"format": 1, "checkpoint": "x", "draw": "y", "device": "cpu", "options": {"seed": 1}}'


PROMPTS = 'file_name,text\n1.jpg,"A dog, asleep."\n2.jpg,"He said ""stop"""\n3.jpg,Un café\n'.encode()


def prompts_of(path: Path) -> None:
    of = {"kind": "csv", "file": "./prompts.csv", "sha256": hashlib.sha256(PROMPTS).hexdigest(), "rows": 3}
    load_prompts(load_protocol(make_protocol(path.parent / "mini.yaml", n=3, prompts=of)))


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


def captions_parquet() -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"file_name": ["a.png", "b.png"], "text": ["a, b", "c"]}), buffer)
    return buffer.getvalue()


FILES = {
    "a.png": picture("png"),
    "b.jpg": picture("jpeg"),
    "metadata.csv": lambda: b"file_name,text\na.png,c\n",
}


def archive_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content())
    return buffer.getvalue()


def archive_tar(mode: str) -> Callable[[], bytes]:
    def pack() -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as archive:
            for name, content in FILES.items():
                member = tarfile.TarInfo(name)
                member.size = len(content())
                archive.addfile(member, io.BytesIO(content()))
        return buffer.getvalue()

    return pack


def archive_of(path: Path) -> None:
    images = open_images([path])
    list(decode(images))
    read_captions(images)


def copied(source: Path, target: Path) -> Path:
    """Copy a checkpoint by links: a reader changes none of its files."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def part(file: str, form: str = "") -> Kind:
    """A file of a checkpoint whose other files are sound."""

    def read(path: Path) -> None:
        folder = copied(sound(form), path.parent / "checkpoint")
        for each in (file, *WITHOUT.get(file, ())):
            (folder / each).unlink()
        shutil.copy(path, folder / file)
        checkpoint = resolve(str(folder), near=path.parent)
        changes(checkpoint, resolve(str(sound(form))))
        if not file.startswith("tokenizer/"):
            load_pipeline(checkpoint)
            return
        check_values(checkpoint)
        tokenizer = load_tokenizer(checkpoint)
        tokenizer(["a red dog", ""], padding="max_length", truncation=True, return_tensors="pt")

    return Kind(Path(file).name, lambda: (sound(form) / file).read_bytes(), read)


WITHOUT = {
    "tokenizer/tokenizer.json": ("tokenizer/merges.txt", "tokenizer/vocab.json"),
    **dict.fromkeys(("tokenizer/merges.txt", "tokenizer/vocab.json"), ("tokenizer/tokenizer.json",)),
}
"""What would contradict a file."""
FORMS: dict[str, dict[str, Any]] = {
    "": {},
    "sharded": {"max_shard_size": "100KB"},
    "bin": {"safe_serialization": False},
}


@cache
def sound(form: str = "") -> Path:
    """Make a sound checkpoint whose weights are saved in this form."""
    folder = Path(tempfile.mkdtemp(prefix="sdbench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_checkpoint(folder / "checkpoint", **FORMS[form])


KINDS = {
    "hub-card": Kind("card.md", hub_card, read_card),
    "records-of-card": Kind("card.md", in_folder("cards/scenes-tiny.md"), recorded_in),
    "table-of-card": Kind("card.md", hub_card, table_of),
    "table-of-results": Kind("results.json", results, table_of),
    "protocol": Kind("mine.yaml", in_folder("protocols/scenes-quick.yaml"), load_protocol),
    "recipe": Kind("mine.yaml", (RECIPES / "bk-sdm-tiny.yaml").read_bytes, load_recipe),
    "calibration": Kind("mini.json", in_folder("calibration/scenes-dpm10-quick.json"), calibration_of),
    "recorded-evidence": Kind("mini.safetensors", in_folder(RECORDED), read_recorded),
    "statistics": Kind("mine.npz", statistics, lambda path: load_reference(path, width=4)),
    "shard": Kind("shard", shard, read_shard),
    "pictures": Kind("pictures.tar", pictures, read_pictures),
    "png": Kind("a.png", picture("png"), images_of),
    "jpeg": Kind("a.jpg", picture("jpeg"), images_of),
    "metadata-csv": Kind("metadata.csv", lambda: b'file_name,text\na.png,"a, b"\nb.png,c\n', captions_of),
    "metadata-jsonl": Kind(
        "metadata.jsonl", lambda: b'{"file_name": "a.png", "caption": "b"}\n' * 2, captions_of
    ),
    "metadata-parquet": Kind("metadata.parquet", captions_parquet, captions_of),
    "caption-json": Kind("a.json", lambda: b'{"text": "a red dog", "key": 1}', captions_of),
    "zip": Kind("images.zip", archive_zip, archive_of),
    "tar": Kind("images.tar", archive_tar("w"), archive_of),
    "tgz": Kind("images.tgz", archive_tar("w:gz"), archive_of),
    "prompts": Kind("prompts.csv", lambda: PROMPTS, prompts_of),
}
SLOW = {
    "readme": Kind("README.md", readme, drafted),
    "manifest": Kind("manifest", lambda: MANIFEST, in_store("manifest-WRITER.json")),
    "pace": Kind("pace", lambda: b'{"seconds_per_image": 0.5}', in_store("pace-WRITER.json")),
} | {
    file.replace("/", "-"): part(file, form)
    for form, files in {
        "": (
            "model_index.json",
            "scheduler/scheduler_config.json",
            "text_encoder/config.json",
            "tokenizer/merges.txt",
            "tokenizer/tokenizer.json",
            "tokenizer/tokenizer_config.json",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "vae/config.json",
        ),
        "sharded": ("unet/diffusion_pytorch_model.safetensors.index.json",),
        "bin": ("unet/diffusion_pytorch_model.bin",),
    }.items()
    for file in files
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
        raise AssertionError(f"more than {SECONDS} s, or {WALL} s by the clock, for one file")

    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of this file alone
    (held, _), start = _memory(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WALL)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
    # What was raised may have been taken for damage of the file.
    assert time.process_time() - start < SECONDS, f"more than {SECONDS} s for one file"
    assert _memory()[1] - held < BYTES, "more than 1 GB for one file"


def _memory() -> tuple[int, int]:
    """Return the bytes that are held now, and the most that were."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    held, most = (int(re.search(rf"{key}:\s*(\d+)", status)[1]) for key in ("VmRSS", "VmHWM"))
    return held << 10, most << 10


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


@pytest.mark.parametrize("name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_what_is_sound_is_read(name: str, tmp_path: Path) -> None:
    kind = (KINDS | SLOW)[name]
    path = tmp_path / kind.file
    path.write_bytes(kind.sound())
    kind.read(path)


@pytest.mark.parametrize("name", KINDS)
@given(steps=STEPS)
def test_what_is_mutated_is_read_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory, steps: Steps
) -> None:
    check(KINDS[name], mutated(KINDS[name].sound(), steps), tmp_path_factory.getbasetemp() / "mutated")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
@settings(max_examples=max(3, settings().max_examples // 10))
@given(steps=STEPS)
def test_a_mutated_part_of_a_checkpoint_or_store_is_read_or_refused(
    name: str, tmp_path_factory: pytest.TempPathFactory, steps: Steps
) -> None:
    check(SLOW[name], mutated(SLOW[name].sound(), steps), tmp_path_factory.getbasetemp() / "mutated")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=[pytest.mark.slow] * (path.parent.name in SLOW), id=path.parent.name)
        for path in sorted(FOUND.glob("*/*"))
    ],
)
def test_what_once_failed_is_read_or_refused(path: Path, tmp_path: Path) -> None:
    check((KINDS | SLOW)[path.parent.name], path.read_bytes(), tmp_path / "x")
