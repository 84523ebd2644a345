"""A metric is added to a protocol: what is known stays, and only what lacks is measured or drawn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation import maker as making
from pytest_sdbench.evaluation.evaluate import Evaluation, evaluate
from pytest_sdbench.evaluation.job import Extras, open_evidence
from pytest_sdbench.features.extractors import EXTRACTORS, column_keys
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.folders import LocalFolder
from pytest_sdbench.store.shard_format import format_shard, parse_shard
from tests.evaluation.helpers import CLIP, own_protocol

N = 80
SCORE = {"inception_score": {"extractor": "scenes-classifier", "splits": 2}}
LOGITS = "scenes-classifier-logits"
PINNED = Path(__file__).parents[1] / "pinned" / "store"

pytestmark = pytest.mark.usefixtures("one_thread")

Score = Callable[..., Evaluation]


@pytest.fixture
def score(pristine_checkpoint: Path, tmp_path: Path) -> Score:
    """Score the tiny checkpoint under these metrics of one draw of 80 images, in the store of this name."""

    captions = "".join(f"{number}.jpg,red and blue {number}\n" for number in range(N))
    (tmp_path / "captions.csv").write_text(f"file_name,text\n{captions}", encoding="utf-8")

    def score(store: str, metrics: dict[str, Any], **options: Any) -> Evaluation:
        protocol = own_protocol(tmp_path, n=N, steps=1, image=[{"jpeg": 75}], metrics=metrics)
        workspace = Workspace(tmp_path / store, tmp_path, progress=False, keep_images=0)
        return evaluate(Checkpoint("tiny", pristine_checkpoint), protocol, workspace, **options)

    return score


def never(*_: object, **__: object) -> None:
    raise AssertionError("nothing is to be drawn")


def files(store: Path) -> dict[str, bytes]:
    kept = ("shard-", "pictures-")
    return {path.name: path.read_bytes() for path in sorted(store.glob("*/*")) if path.name.startswith(kept)}


def values(found: Evaluation) -> dict[str, float]:
    return {name: each.value for name, each in found.estimates.items() if isinstance(each, Estimate)}


def test_of_kept_pictures_another_metric_draws_nothing(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Extras(keep=N)
    first = score("store", CLIP, extras=keep)
    assert first.images_made == N
    before = files(tmp_path / "store")
    assert sum(name.startswith("pictures") for name in before) == 2
    opened: list[list[str]] = []
    open_extractors = making.open_extractors

    def watched(*given: Any, **options: Any) -> Any:
        found = open_extractors(*given, **options)
        opened.append([network.name for network in found.networks])
        return found

    monkeypatch.setattr(making, "open_extractors", watched)
    more = score("store", CLIP | SCORE, extras=keep, load=never, max_images=0)
    assert (more.images_made, more.notes) == (0, first.notes)
    assert opened == [["scenes-classifier"]], "what is known is not computed again"
    assert before.items() < files(tmp_path / "store").items()
    straight = score("straight", CLIP | SCORE)
    assert values(more) == pytest.approx(values(straight), abs=1e-6)
    assert values(more)["clip_score"] == values(first)["clip_score"]
    # Once measured, the pictures are not looked at again.
    for path in (tmp_path / "store").glob("*/pictures-*"):
        path.unlink()
    assert values(score("store", CLIP | SCORE, load=never)) == values(more)


def test_without_pictures_another_metric_is_drawn_and_measured_alone(score: Score, tmp_path: Path) -> None:
    known = values(score("store", CLIP))
    before = files(tmp_path / "store")
    more = score("store", CLIP | SCORE)
    assert more.images_made == N
    after = files(tmp_path / "store")
    assert before.items() < after.items()
    for name in set(after) - set(before):
        columns = set(parse_shard(after[name])[0])
        (key,) = columns - {"index", "seed", "blacked_out", "truncated"}
        assert key.startswith("scenes-classifier@")
        assert key.endswith("/logits")
    straight = score("straight", CLIP | SCORE)
    assert values(more) == values(straight)
    assert values(more)["clip_score"] == known["clip_score"]


def test_metrics_of_one_number_read_what_is_known_once(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard is opened for its checksum and once for flags and all such metrics; IS reads it twice more."""
    known, opened = values(score("store", CLIP)), list[str]()
    read = LocalFolder.read

    def watched(folder: LocalFolder, name: str, most: int | None = None) -> bytes:
        opened.append(name.partition("-")[0])
        return read(folder, name, most)

    monkeypatch.setattr(LocalFolder, "read", watched)
    assert values(score("store", CLIP, load=never)) == known
    assert opened.count("shard") == 2 * 2
    more = values(score("store", CLIP | SCORE))
    opened.clear()
    assert values(score("store", CLIP | SCORE, load=never)) == more
    assert opened.count("shard") == 2 * 2 * (2 + 2)  # two sets of columns


def test_damaged_pictures_are_drawn_again_and_only_they(score: Score, tmp_path: Path) -> None:
    score("store", CLIP, extras=Extras(keep=N))
    (first, second) = sorted((tmp_path / "store").glob("*/pictures-*"))
    good = {path: path.read_bytes() for path in (first, second)}
    second.write_bytes(good[second][:5000])
    with pytest.warns(UserWarning, match="pictures-00000064-00000080"):
        found = score("store", CLIP | SCORE, extras=Extras(keep=N))
    assert found.images_made == N - 64
    assert {path: path.read_bytes() for path in (first, second)} == good
    assert values(found) == pytest.approx(values(score("straight", CLIP | SCORE)), abs=1e-6)


def scenes(*lacking: str, folder: Path) -> Protocol:
    """Return scenes-quick of 64 images without some of its metrics."""
    protocol = load_protocol("scenes-quick")
    content = json.loads(protocol.model_dump_json(exclude={"name", "path"}))
    for key in ("metrics", "margins"):
        content[key] = {name: each for name, each in content[key].items() if name not in lacking}
    (folder / "own.yaml").write_text(json.dumps(content), encoding="utf-8")
    return load_protocol(folder / "own.yaml").with_samples(64)


def old_store(folder: Path, *lacking: str) -> Path:
    """Copy the pinned store of an older version; some of its columns were not measured by then."""
    store = Path(shutil.copytree(PINNED, folder / "store"))
    (inside,) = store.iterdir()
    for path in inside.glob("shard-*"):
        rows, about = parse_shard(path.read_bytes())
        rows = {name: values for name, values in rows.items() if name not in (*lacking, "index")}
        path.write_bytes(format_shard(rows, range(64), of=about["of"], writer=about["writer"]))
    (manifest,) = inside.glob("manifest-*")
    said = json.loads(manifest.read_text(encoding="utf-8"))
    if "clip_score" in lacking:
        said["extractors"] = [each for each in said["extractors"] if not each.startswith("local:")]
    manifest.write_text(json.dumps(said), encoding="utf-8")
    return store


TINY = {"base": "embedded:scenes-sd", "unet": "embedded:scenes-tiny"}


@pytest.mark.parametrize(
    ("known", "added"),
    [((), set()), (("clip_score",), {"local:scenes-clip-cosine"}), ((LOGITS,), {LOGITS})],
    ids=["nothing", "another extractor", "another output"],
)
def test_an_old_store_is_read_on_and_metrics_are_added_to_it(
    known: tuple[str, ...], added: set[str], tmp_path: Path
) -> None:
    store = old_store(tmp_path, *known)
    evidence = open_evidence(Workspace(store), resolve(TINY), load_protocol("scenes-quick").with_samples(64))
    assert {column for gap in evidence.gaps(64) for column in gap.columns} == added
    metrics = {"clip_score"} if "clip_score" in known else {"inception_score"} if known else set()
    before = scenes(*metrics, folder=tmp_path)
    old = evaluate(resolve(TINY), before, Workspace(store, progress=False), max_images=0, load=never)
    assert (old.images_made, old.n) == (0, 64)
    assert set(old.estimates) == set(before.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("known", ["clip_score", LOGITS])
def test_what_an_old_store_lacks_is_drawn_beside_it(known: str, tmp_path: Path) -> None:
    whole, part = old_store(tmp_path / "whole"), old_store(tmp_path / "part", known)
    before = files(part)
    protocol = load_protocol("scenes-quick")

    def scores(store: Path) -> Evaluation:
        return evaluate(resolve(TINY), protocol, Workspace(store, progress=False), samples=64)

    found, expected = scores(part), scores(whole)
    assert (found.images_made, expected.images_made) == (64, 0)
    assert values(found) == pytest.approx(values(expected), rel=1e-3)
    assert before.items() < files(part).items()
    assert len([*part.iterdir()]) == 2
    assert scores(part).images_made == 0


def test_a_column_of_pairs_is_of_its_reference_too(
    score: Score, tmp_path: Path, pristine_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An extractor that is paired sees the reference's pictures after the steps in place of the captions."""
    seen: list[tuple[Any, Any]] = []

    def measure(images: Any, references: Any) -> dict[str, Any]:
        seen.append((images, references))
        return {"cosine": (images == references).mean(axis=(1, 2, 3))}

    clip = EXTRACTORS["local:"]
    pairs = type(clip)("pairs", {"cosine": 1}, lambda name, **_: (measure, "1"), paired=True)
    monkeypatch.setitem(EXTRACTORS._loaded, "pairs", pairs)
    metrics = {"clip_score": {"model": "pairs"}}
    protocol = own_protocol(tmp_path, n=N, steps=1, image=[{"jpeg": 75}], metrics=metrics)
    checkpoint, workspace = Checkpoint("tiny", pristine_checkpoint), Workspace(tmp_path / "store", tmp_path)
    score("store", CLIP, extras=Extras(keep=N))
    reference = open_evidence(workspace, checkpoint, protocol)
    columns = column_keys(protocol, checkpoint.fingerprint)
    extras = Extras(columns=columns, reference=reference)
    # Of kept pictures, and of pictures that are drawn.
    assert values(score("store", metrics, extras=extras, load=never)) == {"clip_score": 1.0}
    assert values(score("other", metrics, extras=extras)) == {"clip_score": 1.0}
    assert seen[0][0].shape == seen[0][1].shape == (32, 64, 64, 3)
    (name,) = {name for name in files(tmp_path / "other") if name.startswith("shard-00000000")}
    assert set(columns.values()) <= set(parse_shard(files(tmp_path / "other")[name])[0])
