"""The evidence store: what is written is read, what is torn is found, what cannot be written says so."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_sdbench.base.errors import EvidenceError
from pytest_sdbench.commands.main import main
from pytest_sdbench.commands.store import inventory
from pytest_sdbench.store.shard_folder import DamagedEvidence, in_grid
from pytest_sdbench.store.shard_format import SHARD, format_shard
from pytest_sdbench.store.shards import Evidence, Store
from tests.training.helpers import files_no_longer_than

MANIFEST = {"device": "a device", "versions": {"torch": "2.0"}, "command": "pytest --sdbench"}


def rows_of(images: range) -> dict[str, np.ndarray]:
    """Return rows that depend on the index of each image alone."""
    index = np.array(images, np.float32)
    return {"features": np.outer(index, [1.0, 0.5, -2.0]).astype(np.float32), "clip_score": index / 100}


COLUMNS = ("features", "clip_score")


def evidence_of(root: Path | str, **manifest: Any) -> Evidence:
    return Store(root).open("c" * 16, "d" * 16, {**MANIFEST, **manifest})


def fill(evidence: Evidence, n: int) -> Evidence:
    for images in evidence.missing(n):
        evidence.write(images.start, rows_of(images))
    return evidence


def read(evidence: Evidence, n: int) -> dict[str, np.ndarray]:
    shards = list(evidence.read(n))
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def test_what_is_written_is_read_in_the_order_of_the_images(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path)
    for images in reversed(evidence.missing(150)):
        evidence.write(images.start, rows_of(images))
    found = read(evidence_of(tmp_path), 150)
    assert found["index"].tolist() == list(range(150))
    assert found["features"].dtype == np.float32
    np.testing.assert_array_equal(found["features"], rows_of(range(150))["features"])
    np.testing.assert_array_equal(found["clip_score"], rows_of(range(150))["clip_score"])


def test_the_grid_does_not_depend_on_what_is_there(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path)
    assert evidence.missing(150) == [range(0, 64), range(64, 128), range(128, 150)]
    evidence.write(64, rows_of(range(64, 128)))
    assert evidence.missing(150) == [range(0, 64), range(128, 150)]
    fill(evidence, 150)
    assert evidence.missing(150) == evidence.missing(100) == evidence.missing(1) == []


def test_a_longer_run_keeps_what_a_shorter_one_made(tmp_path: Path) -> None:
    evidence = fill(evidence_of(tmp_path), 100)
    assert evidence.missing(200) == [range(64, 128), range(128, 192), range(192, 200)]
    fill(evidence, 200)
    for n in (1, 64, 100, 101, 128, 200):
        assert read(evidence, n)["index"].tolist() == list(range(n))
    straight = fill(evidence_of(tmp_path / "straight"), 200)
    np.testing.assert_array_equal(read(straight, 200)["features"], read(evidence, 200)["features"])


def test_rows_can_be_read_more_than_once(tmp_path: Path) -> None:
    rows = fill(evidence_of(tmp_path), 70).rows(70)
    assert [len(shard["index"]) for shard in rows] == [len(shard["index"]) for shard in rows] == [64, 6]


def test_checkpoints_and_draws_do_not_share_evidence(tmp_path: Path) -> None:
    fill(Store(tmp_path).open("a", "x", {}), 10)
    for checkpoint, draw in (("b", "x"), ("a", "y")):
        assert Store(tmp_path).open(checkpoint, draw, {}).missing(10) == [range(0, 10)]


def test_the_manifest_names_everyone_who_wrote(tmp_path: Path) -> None:
    fill(evidence_of(tmp_path), 64)
    fill(evidence_of(tmp_path, device="another device"), 200)
    evidence = evidence_of(tmp_path, command="another command")
    assert [writer["device"] for writer in evidence.writers(200)] == ["a device", "another device"]
    assert [writer["device"] for writer in evidence.writers(64)] == ["a device"]
    first = evidence.writers(64)[0]
    assert first["checkpoint"] == "c" * 16
    assert first["draw"] == "d" * 16
    assert first["format"] == 1
    assert first["command"] == "pytest --sdbench"
    # Another command on the same device with the same versions is the same writer.
    fill(evidence, 300)
    assert len(list(evidence.folder.glob("manifest-*.json"))) == 2


def test_a_lost_manifest_costs_no_rows(tmp_path: Path) -> None:
    evidence = fill(evidence_of(tmp_path), 10)
    for path in evidence.folder.glob("manifest-*.json"):
        path.unlink()
    assert evidence.missing(10) == []
    assert evidence.writers(10)[0]["device"] == "unknown"


def shard_of(evidence: Evidence, start: int = 0) -> Path:
    (path,) = evidence.folder.glob(f"shard-{start:08d}-*.safetensors")
    return path


def torn(content: bytes) -> bytes:
    return content[: len(content) // 2]


def headless(content: bytes) -> bytes:
    return content[:5]


def flipped(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def misnamed(content: bytes) -> bytes:
    return content.replace(b"features", b"faetures")


def renumbered(content: bytes) -> bytes:
    return content.replace(rb"\"start\": 64", rb"\"start\": 65")


def test_a_shard_under_the_name_of_another_is_damaged(tmp_path: Path) -> None:
    evidence = fill(evidence_of(tmp_path), 128)
    shard_of(evidence, 64).write_bytes(shard_of(evidence, 0).read_bytes())
    with pytest.warns(DamagedEvidence, match="its name is not that of its images"):
        assert evidence_of(tmp_path).missing(128) == [range(64, 128)]


def test_a_shard_of_another_checkpoint_or_draw_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    """As a careless merge of two stores leaves it: whole, and with the right images."""
    evidence = fill(evidence_of(tmp_path), 128)
    for key in (("e" * 16, "d" * 16), ("c" * 16, "e" * 16)):
        other = fill(Store(tmp_path).open(*key, MANIFEST), 128)
        shard_of(evidence, 64).write_bytes(shard_of(other, 64).read_bytes())
        with pytest.warns(DamagedEvidence, match=f"it is of {key[0]}-{key[1]}"):
            assert evidence_of(tmp_path).missing(128) == [range(64, 128)]
        fill(evidence_of(tmp_path), 128)


def test_a_shard_from_before_they_said_whose_they_are_is_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        dumps = json.dumps
        patch.setattr(
            json,
            "dumps",
            lambda about, **options: dumps(
                {key: value for key, value in about.items() if key != "of"}, **options
            ),
        )
        fill(evidence_of(tmp_path), 64)
    assert b"c" * 16 not in shard_of(evidence_of(tmp_path)).read_bytes()
    assert evidence_of(tmp_path).missing(64) == []


def test_damage_during_a_run_is_found_too(tmp_path: Path) -> None:
    evidence = fill(evidence_of(tmp_path), 64)
    path = shard_of(evidence)
    path.write_bytes(flipped(path.read_bytes()))
    os.utime(path, ns=(1, 1))
    with pytest.warns(DamagedEvidence):
        assert evidence.missing(64) == [range(0, 64)]


def test_under_w_error_a_damaged_shard_is_made_again_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(evidence_of(tmp_path), SHARD)
    evidence = evidence_of(tmp_path)
    shard_of(evidence).write_bytes(b"damaged")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evidence.missing(SHARD) == [range(SHARD)]
    assert "damaged evidence" in capsys.readouterr().err


BRACKETS = b"[" * 100_000 + b"]" * 100_000
ODD = [
    BRACKETS,
    b"[]",
    b"5",
    b"\xff",
    b"",
    b'{"seconds_per_image": 1e999, "versions": []}',
]


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_whatever_stands_beside_the_shards_costs_no_row(content: bytes, tmp_path: Path) -> None:
    evidence = fill(evidence_of(tmp_path), SHARD)
    for name in ("pace", "manifest"):
        (Path(evidence.folder) / f"{name}-{evidence.writer}.json").write_bytes(content)
    assert evidence.pace() is None
    assert len(evidence.writers(SHARD)) == 1
    assert len(inventory(tmp_path)) == 1
    later = Store(tmp_path).open("c" * 16, "d" * 16, {})
    assert later.left(list(in_grid(2 * SHARD))) == [range(SHARD, 2 * SHARD)]


def compressed(content: bytes) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, value=np.zeros(SHARD))
    return file.getvalue()


def deep(content: bytes) -> bytes:
    head = b'{"__metadata__": {"sdbench": ' + BRACKETS
    return len(head).to_bytes(8, "little") + head


def short(content: bytes) -> bytes:
    return format_shard({"value": np.zeros(5)}, range(SHARD), of="c-d", writer="w")


@pytest.mark.parametrize("damage", [compressed, deep, short])
def test_what_is_no_shard_is_set_aside(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    evidence = fill(evidence_of(tmp_path), SHARD)
    shard_of(evidence).write_bytes(damage(b""))
    with pytest.warns(DamagedEvidence, match="not a whole shard"):
        assert evidence_of(tmp_path).missing(SHARD) == [range(SHARD)]


def test_a_shard_of_a_later_version_is_not_read_and_stays_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pytest_sdbench.store.shard_format.FORMAT", 2)
        fill(fill(evidence_of(tmp_path), 10), 64)
    before = files(tmp_path)
    told = r"shard-00000000-.*written by a later version: format 2, this version reads 1\. Upgrade"
    with pytest.raises(EvidenceError, match=told):
        evidence_of(tmp_path).missing(10)
    assert main(["store", "gc", "--store", str(tmp_path)]) == 0
    assert files(tmp_path) == before


def test_shards_with_other_columns_are_not_mixed(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path)
    evidence.write(0, rows_of(range(64)))
    evidence.write(64, {"features": np.zeros((64, 4), np.float32)})
    with pytest.raises(EvidenceError, match="other columns"):
        list(evidence.read(128))


@pytest.mark.parametrize(
    ("start", "count"), [(1, 10), (0, 0), (0, SHARD + 1)], ids=["off the grid", "empty", "too long"]
)
def test_only_shards_of_the_grid_are_written(start: int, count: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a shard"):
        evidence_of(tmp_path).write(start, {"features": np.zeros((count, 1), np.float32)})
    with pytest.raises(ValueError, match="not a shard"):
        evidence_of(tmp_path).write(0, {"a": np.zeros(2), "b": np.zeros(3)})
    assert files(tmp_path) == {}


def test_a_finished_store_is_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(evidence_of(tmp_path), 100)

    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    monkeypatch.setattr("os.fsync", refuse)
    evidence = evidence_of(tmp_path, device="one that never wrote")
    assert evidence.missing(100) == []
    assert len(read(evidence, 100)["index"]) == 100
    with pytest.raises(EvidenceError, match=r"Read-only file system.*--sdbench-store"):
        evidence.prepare()


def test_a_store_that_became_read_only_is_found_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest of this writer is there, so that it alone tells nothing."""
    fill(evidence_of(tmp_path), 64)
    before = files(tmp_path)
    evidence_of(tmp_path).prepare()
    assert files(tmp_path) == before

    def refuse(handle: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(EvidenceError, match="cannot be written: Read-only file system"):
        evidence_of(tmp_path).prepare()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "Make room"), (errno.EDQUOT, "Make room"), (errno.EIO, "--sdbench-store")],
)
def test_a_failed_write_leaves_nothing_behind(
    code: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence = fill(evidence_of(tmp_path), 64)
    before = files(tmp_path)

    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(EvidenceError, match=remedy) as caught:
        evidence.write(64, rows_of(range(64, 128)))
    assert "shard-00000064-00000128" in str(caught.value)
    assert files(tmp_path) == before
    monkeypatch.undo()
    assert len(read(fill(evidence_of(tmp_path), 128), 128)["index"]) == 128


def test_a_disk_that_fills_up_while_writing(tmp_path: Path) -> None:
    """The kernel refuses the write half-way, as a full disk does."""
    evidence = fill(evidence_of(tmp_path), 64)
    before = files(tmp_path)
    with files_no_longer_than(20_000), pytest.raises(EvidenceError, match=r"00000064-00000128.*Make room"):
        evidence.write(64, {"features": np.zeros((64, 2048), np.float32)})
    assert files(tmp_path) == before


def test_a_store_that_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(EvidenceError, match=r"store: the evidence store is not a folder.*--sdbench-store"):
        evidence_of(tmp_path / "store")
    with pytest.raises(EvidenceError, match=r"cannot be (read|written): Not a directory"):
        fill(evidence_of(tmp_path / "store" / "inner"), 10)
    with pytest.raises(EvidenceError, match=r"cannot be read: File name too long"):
        fill(evidence_of(tmp_path / ("x" * 300)), 10)


def test_a_store_that_cannot_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(evidence_of(tmp_path), 10)
    evidence = evidence_of(tmp_path)

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(EvidenceError, match="cannot be read: Permission denied"):
        evidence.missing(10)


def test_what_a_killed_run_left_is_cleaned_up_later(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path)
    evidence.folder.mkdir(parents=True)
    old, young = evidence.folder / ".tmp-old", evidence.folder / ".tmp-young"
    old.write_bytes(b"half")
    os.utime(old, (0, 0))
    young.write_bytes(b"half, by a run beside this one")
    fill(evidence, 10)
    assert not old.exists()
    assert young.exists()
    assert read(evidence, 10)["index"].tolist() == list(range(10))


def test_a_store_that_is_removed_in_the_middle_is_begun_again(tmp_path: Path) -> None:
    evidence = fill(evidence_of(tmp_path / "store"), 64)
    shutil.rmtree(tmp_path / "store")
    evidence.write(64, rows_of(range(64, 128)))
    with pytest.raises(EvidenceError, match=r"store.*images 0 to 63 are missing. Run again"):
        list(evidence.read(128))
    assert evidence_of(tmp_path / "store").missing(128) == [range(0, 64)]
    assert evidence.writers(128)[0]["device"] == "a device"


def write_and_look(place: Path | str, n: int, times: int = 1) -> None:
    """Write every shard, and look each time: no reader ever sees half a file."""
    evidence = evidence_of(place)
    for start in range(0, n, SHARD):
        for _ in range(times):
            evidence.write(start, rows_of(range(start, start + SHARD)))
            assert range(start, start + SHARD) not in evidence_of(place).missing(n)


def test_a_manifest_is_readable_by_people(tmp_path: Path) -> None:
    evidence = fill(evidence_of(tmp_path), 10)
    (path,) = evidence.folder.glob("manifest-*.json")
    assert json.loads(path.read_text())["versions"] == {"torch": "2.0"}
    assert path.read_text().count("\n") > 5
