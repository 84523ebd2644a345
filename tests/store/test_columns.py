"""Columns are added to what is known of a draw; nothing known is made again, thrown away or rewritten."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_sdbench.base.errors import EvidenceError, PictureLoss
from pytest_sdbench.store.gap import Gap
from pytest_sdbench.store.pictures import Pictures, pictures_name
from pytest_sdbench.store.shard_folder import DamagedEvidence, in_grid
from pytest_sdbench.store.shard_format import SHARD, format_shard, parse_shard, set_of, shard_name
from pytest_sdbench.store.shards import Evidence, Store
from tests.training.helpers import files_no_longer_than

KEYS = {"a": "net@0123456789abcdef/features", "b": "net@0123456789abcdef/logits", "c": "other/cosine~ff"}
FIRST, SECOND = range(64), range(64, 100)


def evidence_of(root: Path, names: str = "", *, keep: int = 0, **manifest: Any) -> Evidence:
    """Open evidence with these columns of KEYS wanted, a letter each."""
    columns = {name: KEYS[name] for name in names}
    return Store(root).open("c", "d", {"device": "a device", **manifest}, columns, keep=keep)


def rows_of(images: range, names: str) -> dict[str, np.ndarray]:
    index = np.array(images, np.float32)
    rows = {name: index + 1000 * number for number, name in enumerate(KEYS) if name in names}
    flags = {name: np.zeros(len(images), np.bool_) for name in ("blacked_out", "truncated")}
    return {**rows, **flags, "seed": np.array(images, np.int64) + 7}


def fill(evidence: Evidence, names: str, *images: range) -> Evidence:
    for each in images or (FIRST, SECOND):
        evidence.write(each.start, rows_of(each, names))
    return evidence


def drawn(images: range) -> Pictures:
    pixels = np.random.default_rng(images.start).integers(0, 255, (len(images), 8, 8, 3), np.uint8)
    return Pictures(
        np.array(images), np.array(images) + 7, tuple(f"prompt {index}" for index in images), pixels
    )


def files(evidence: Evidence, prefix: str = "") -> dict[str, bytes]:
    names = evidence.storage.files()
    return {name: evidence.storage.read(name) for name in names if name.startswith(prefix)}


def lacking(evidence: Evidence, n: int = 100) -> dict[int, str]:
    """Return the columns that lack by the first image of each shard; ``-`` where there is no shard at all."""
    gaps = evidence.gaps(n)
    assert evidence.missing(n) == [gap.images for gap in gaps]
    return {gap.images.start: "".join(sorted(gap.columns)) + "-" * gap.rows for gap in gaps}


def test_what_one_metric_adds_lies_beside_what_is_known(tmp_path: Path) -> None:
    before = files(fill(evidence_of(tmp_path, "a"), "a"))
    evidence = evidence_of(tmp_path, "abc")
    assert lacking(evidence) == {0: "bc", 64: "bc"}
    fill(evidence, "bc", FIRST)
    assert lacking(evidence) == {64: "bc"}
    fill(evidence, "b", SECOND)
    assert lacking(evidence) == {64: "c"}
    fill(evidence, "c", SECOND)
    assert lacking(evidence) == {}
    for n in (30, 64, 70, 100):
        shards = list(evidence_of(tmp_path, "abc").read(n))
        found = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
        assert set(found) == {*"abc", "index", "seed", "blacked_out", "truncated"}
        for name, expected in rows_of(range(n), "abc").items():
            np.testing.assert_array_equal(found[name], expected)
        assert found["index"].tolist() == list(range(n))
    # Fewer columns are asked for, and no more are given.
    assert set(next(iter(evidence_of(tmp_path, "b").read(10)))) >= {"b", "index"}
    assert not {*"ac"} & set(next(iter(evidence_of(tmp_path, "b").read(10))))
    assert before.items() <= files(evidence).items()


def test_columns_that_were_made_together_lie_in_one_file_whose_name_says_which(tmp_path: Path) -> None:
    evidence = fill(evidence_of(tmp_path, "ab"), "ab", FIRST)
    (name,) = files(evidence, "shard-")
    assert name == f"shard-00000000-00000064-{set_of([KEYS['b'], KEYS['a']])}.safetensors"
    assert set(parse_shard(files(evidence)[name])[0]) >= {KEYS["a"], KEYS["b"], "index", "seed"}


@pytest.mark.parametrize("added", ["", "b"])
def test_a_longer_run_needs_every_column_of_it(tmp_path: Path, added: str) -> None:
    fill(evidence_of(tmp_path, "a"), "a")
    evidence = evidence_of(tmp_path, f"a{added}")
    assert lacking(evidence, 128) == ({0: added} if added else {}) | {64: f"a{added}-"}
    fill(evidence, f"a{added}", range(64, 128))
    assert lacking(evidence, 128) == ({0: added} if added else {})
    assert lacking(evidence_of(tmp_path, "a"), 128) == {}


def test_a_damaged_file_takes_its_own_columns_alone(tmp_path: Path) -> None:
    evidence = fill(fill(evidence_of(tmp_path, "ab"), "a"), "b")
    evidence.storage.write(shard_name(FIRST, [KEYS["b"]]), b"bad")
    with pytest.warns(DamagedEvidence, match=set_of([KEYS["b"]])):
        assert lacking(evidence_of(tmp_path, "ab")) == {0: "b"}
    assert lacking(evidence_of(tmp_path, "a")) == {}


def test_a_file_under_the_name_of_other_columns_is_damaged(tmp_path: Path) -> None:
    evidence = fill(evidence_of(tmp_path, "a"), "a")
    one, other = (shard_name(FIRST, [KEYS[name]]) for name in "ab")
    evidence.storage.write(other, evidence.storage.read(one))
    with pytest.warns(DamagedEvidence, match="its name is not that of its columns"):
        assert lacking(evidence_of(tmp_path, "ab")) == {0: "b", 64: "b"}


def test_of_each_set_one_file_is_read_to_know_what_is_made(tmp_path: Path) -> None:
    """The others are told by their names, in however many sets they lie."""
    grid = list(in_grid(640))
    for start in range(0, 640, SHARD):
        images, beside = range(start, start + SHARD), evidence_of(tmp_path, "abc")
        fill(fill(beside, "a", images), "b", images)
    assert evidence_of(tmp_path, "ab").left(grid) == []
    fill(evidence_of(tmp_path, "c"), "c", *(range(start, start + SHARD) for start in range(0, 320, SHARD)))
    assert [images.start for images in evidence_of(tmp_path, "abc").left(grid)] == [320, 384, 448, 512, 576]


def test_everyone_who_wrote_a_file_that_is_used_is_named(tmp_path: Path) -> None:
    fill(evidence_of(tmp_path, "a", device="one"), "a")
    other = evidence_of(tmp_path, "b", device="another")
    artist = evidence_of(tmp_path, device="the artist")
    artist.prepare()
    other.write(0, rows_of(FIRST, "b"), artist=artist.writer)

    def devices(names: str, n: int = 64) -> list[str]:
        return [each["device"] for each in evidence_of(tmp_path, names).writers(n)]

    assert devices("a") == ["one"]
    assert devices("b") == ["the artist", "another"]
    assert sorted(devices("ab")) == ["another", "one", "the artist"]
    assert [each["device"] for each in other.writers(64)] == ["the artist", "another"]
    assert [each["device"] for each in other.artists(64, "b")] == ["the artist"]
    assert [each["device"] for each in evidence_of(tmp_path, "ab").artists(64, "a")] == ["one"]


def test_a_shard_of_pairs_says_where_those_were_drawn_that_it_compares_with(tmp_path: Path) -> None:
    said = {"device": "elsewhere", "versions": {"torch": "2"}}
    evidence = evidence_of(tmp_path, "a")
    evidence.write(0, rows_of(FIRST, "a"), reference=said)
    fill(evidence, "a", SECOND)  # as of before
    for each in (evidence, evidence_of(tmp_path, "a")):
        assert each.missing(100) == []
        assert each.references(64, "a") == [said]
        assert each.references(100, "a") == [said, None]
    names = [name for name in files(evidence) if name.startswith("shard-")]
    assert [set(parse_shard(files(evidence)[name])[1]) >= {"reference"} for name in names].count(True) == 1


def test_who_drew_kept_pictures_is_told_by_their_file(tmp_path: Path) -> None:
    fill(evidence_of(tmp_path, "a", device="rows"), "a")
    for device, images in (("one", FIRST), ("another", SECOND)):
        evidence_of(tmp_path, device=device).write(images.start, {}, pictures=drawn(images))
    evidence = evidence_of(tmp_path, "a")
    assert [each["device"] for each in evidence.picture_artists(100)] == ["one", "another"]
    with pytest.raises(PictureLoss, match="images 0 to 63 are not kept"):
        evidence_of(tmp_path / "none", "a").picture_artists(100)
    evidence.storage.write(pictures_name(SECOND), b"bad")
    with pytest.warns(DamagedEvidence), pytest.raises(PictureLoss, match="images 64 to 99 are not kept"):
        evidence.picture_artists(100)


def test_pictures_are_kept_beside_rows_and_read_back(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, "a", keep=1)
    evidence.write(0, rows_of(FIRST, "a"), pictures=drawn(FIRST))
    fill(evidence, "a", SECOND)
    assert evidence.missing(100) == []
    found, writer = evidence.pictures(range(10, 30)) or pytest.fail("not kept")
    assert writer == evidence.writer
    assert found.indices.tolist() == list(range(10, 30))
    assert found.seeds.tolist() == list(range(17, 37))
    assert found.prompts[0] == "prompt 10"
    np.testing.assert_array_equal(found.images, drawn(FIRST).images[10:30])
    assert evidence.pictures(SECOND) is None
    # More pictures are wanted: of whole shards, and of these alone.
    more = evidence_of(tmp_path, "ab", keep=65)
    first, second = more.gaps(100)
    assert first == Gap(FIRST, frozenset("b"), rows=False, pictures=False, kept=True)
    assert second == Gap(SECOND, frozenset("b"), rows=False, pictures=True, kept=False, keeps=True)
    assert not first.draws
    assert second.draws
    more.write(64, {}, pictures=drawn(SECOND))
    assert [gap.draws for gap in more.gaps(100)] == [False, False]
    flags = more.flags(SECOND)
    assert flags is not None
    assert flags["seed"].tolist() == [index + 7 for index in SECOND]


def test_damaged_pictures_are_set_aside_and_cost_no_row(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, "a", keep=64)
    evidence.write(0, rows_of(FIRST, "a"), pictures=drawn(FIRST))
    name = pictures_name(FIRST)
    evidence.storage.write(name, files(evidence)[name].replace(b"prompt 3", b"prompt 4"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evidence.pictures(FIRST) is None
    assert evidence.gaps(64) == [Gap(FIRST, frozenset(), rows=False, pictures=True, kept=False, keeps=True)]
    assert lacking(evidence_of(tmp_path, "a"), 64) == {}


def test_a_disk_that_fills_up_with_pictures_loses_no_row(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, "a", keep=64)
    with files_no_longer_than(20_000), pytest.raises(EvidenceError, match=r"pictures-00000000.*Make room"):
        evidence.write(0, rows_of(FIRST, "a"), pictures=drawn(FIRST))
    assert files(evidence, "pictures") == files(evidence, ".tmp") == {}
    assert evidence.gaps(64) == [Gap(FIRST, frozenset(), rows=False, pictures=True, kept=False, keeps=True)]


PROTOCOL = {"prompts": {"kind": "csv", "sha256": "1", "file": "a.csv", "rows": 9}, "seeds": {"seed": 1}}
NET, CLIP = "net@0123456789abcdef", "local:clip"


def old_folder(
    root: Path,
    rows: Mapping[str, np.ndarray],
    extractors: list[str],
    *,
    checkpoint: str = "c",
    protocol: Mapping[str, Any] = PROTOCOL,
) -> dict[str, bytes]:
    """Write 64 images as versions before did that keyed a draw by its extractors; return the files."""
    folder = root / f"{checkpoint}-{len(list(root.glob('*'))):016x}"
    folder.mkdir(parents=True)
    manifest = {"protocol": protocol, "extractors": extractors, "device": "an old device", "format": 1}
    (folder / "manifest-w.json").write_text(json.dumps(manifest), encoding="utf-8")
    content = format_shard(rows, FIRST, of=folder.name, writer="w")
    (folder / "shard-00000000-00000064.safetensors").write_bytes(content)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def old_rows(*names: str) -> dict[str, np.ndarray]:
    own = {name: values for name, values in rows_of(FIRST, "").items()}
    return own | {name: np.arange(64, dtype=np.float32) for name in names}


OLD = {"features": f"{NET}/features", "logits": f"{NET}/logits", "cosine": f"{CLIP}/cosine"}


@pytest.mark.parametrize(
    ("columns", "extractors", "known"),
    [
        (["net", "net-logits", "clip_score"], [NET, CLIP], {"features", "logits", "cosine"}),
        (["net", "clip_score"], [NET, CLIP], {"features", "cosine"}),
        (["net", "net-logits"], [NET], {"features", "logits"}),
        (["net"], ["net@fedcba9876543210"], set()),
        (["clip_score"], [CLIP], {"cosine"}),
        # Whose cosine it is cannot be told: it is not taken for anybody's.
        (["clip_score"], [CLIP, "open_clip:another"], set()),
        (["clip_score", "net"], [NET, "open_clip:another"], {"features"}),
    ],
)
def test_columns_of_an_old_store_count_as_known(
    columns: list[str], extractors: list[str], known: set[str], tmp_path: Path
) -> None:
    before = old_folder(tmp_path, old_rows(*columns), extractors)
    manifest = {"protocol": PROTOCOL | {"prompts": PROTOCOL["prompts"] | {"file": "b.csv", "rows": 10}}}
    evidence = Store(tmp_path).open("c", "new", manifest, OLD)
    (gap,) = evidence.gaps(64) or [Gap(FIRST, frozenset(), rows=False, pictures=False, kept=False)]
    assert set(OLD) - gap.columns == known
    assert not gap.rows
    if gap.columns:
        added = {name: np.zeros(64, np.float32) for name in gap.columns}
        evidence.write(0, {**old_rows(), **added})
    (rows,) = evidence.read(64)
    assert {name for name in OLD if rows[name].any()} == known
    assert "an old device" in [each.get("device") for each in evidence.writers(64)] or not known
    (folder,) = tmp_path.glob("c-0*")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": "cc"},
        {"protocol": PROTOCOL | {"seeds": {"seed": 2}}},
        {"protocol": PROTOCOL | {"prompts": {"kind": "csv", "sha256": "2"}}},
        {"protocol": {}},
    ],
    ids=["checkpoint", "seeds", "prompts", "nothing said"],
)
def test_an_old_folder_of_other_images_is_not_read(changes: dict[str, Any], tmp_path: Path) -> None:
    old_folder(tmp_path, old_rows("net"), [NET], **changes)
    evidence = Store(tmp_path).open("c", "new", {"protocol": PROTOCOL}, {"features": OLD["features"]})
    assert evidence.gaps(64) == [Gap.of_all(FIRST, ["features"])]


def test_what_two_old_folders_hold_of_one_draw_is_joined(tmp_path: Path) -> None:
    old_folder(tmp_path, old_rows("net"), [NET])
    old_folder(tmp_path, old_rows("clip_score"), [CLIP])
    columns = {name: OLD[name] for name in ("features", "cosine")}
    evidence = Store(tmp_path).open("c", "new", {"protocol": PROTOCOL}, columns)
    assert evidence.missing(64) == []
    (rows,) = evidence.read(64)
    assert rows["features"].tolist() == rows["cosine"].tolist() == list(range(64))
    # Damage is what it is in a folder of today.
    path = tmp_path / "c-0000000000000000" / "shard-00000000-00000064.safetensors"
    shutil.copyfile(path.with_name("manifest-w.json"), path)
    again = Store(tmp_path).open("c", "new", {"protocol": PROTOCOL}, columns)
    with pytest.warns(DamagedEvidence, match="not a whole shard"):
        assert [gap.columns for gap in again.gaps(64)] == [frozenset({"features"})]
