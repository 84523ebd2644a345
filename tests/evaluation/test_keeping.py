"""Which pictures are kept, and what becomes of them where the disk is full; rows are worth more."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_sdbench.base.errors import EvidenceError, Unavailable
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evidence import CompleteEvidence, make_evidence
from pytest_sdbench.evaluation.job import Extras
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.kept import PicturesLost
from tests.project import make_protocol
from tests.training.helpers import files_no_longer_than

pytestmark = pytest.mark.usefixtures("one_thread")

N = 130
Make = Callable[..., CompleteEvidence]


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Protocol:
    sampling: dict[str, Any] = {"steps": 1, "guidance": 1.0, "resolution": 64, "dtype": "float32"}
    path = tmp_path_factory.mktemp("protocol") / "mini.yaml"
    return load_protocol(make_protocol(path, n=N, sampling=sampling))


@pytest.fixture(scope="module")
def make(pristine_checkpoint: Path, protocol: Protocol) -> Make:
    """Draw the images of a protocol, measure nothing, and keep the pictures that are asked for."""

    def make(store: Path, keep: int | str = "auto", **options: Any) -> CompleteEvidence:
        workspace = Workspace(store, progress=False, keep_images=keep)
        options = {"extras": Extras(columns={}), "tuning": Tuning(batch_size=16, workers=1)} | options
        return make_evidence(Checkpoint("tiny", pristine_checkpoint), protocol, workspace, **options)

    return make


def files(store: Path, pattern: str = "*-0*") -> dict[str, bytes]:
    """Return rows and pictures by name."""
    return {path.name: path.read_bytes() for path in sorted(store.glob(f"*/{pattern}"))}


def pictures(store: Path) -> list[str]:
    return [name.removeprefix("pictures-").removesuffix(".tar") for name in files(store, "pictures-*.tar")]


@pytest.fixture(scope="module")
def whole(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a run that keeps all pictures and that nothing happens to."""
    store = tmp_path_factory.mktemp("whole")
    make(store, "all")
    return store


FIRST, SECOND, LAST = "00000000-00000064", "00000064-00000128", "00000128-00000130"


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("auto", [FIRST]),
        (0, []),
        (1, [FIRST]),
        (100, [FIRST, SECOND]),
        ("all", [FIRST, SECOND, LAST]),
    ],
)
def test_whole_shards_of_pictures_are_kept(
    keep: int | str, expected: list[str], make: Make, whole: Path, tmp_path: Path
) -> None:
    assert make(tmp_path, keep).images_made == N
    assert pictures(tmp_path) == expected
    found = files(tmp_path)
    assert found == {name: content for name, content in files(whole).items() if name in found}


def test_pictures_that_nobody_asked_for_are_drawn_by_the_way_alone(make: Make, tmp_path: Path) -> None:
    make(tmp_path, 0)
    assert make(tmp_path).images_made == 0
    assert pictures(tmp_path) == []
    (rows,) = tmp_path.glob(f"*/shard-{FIRST}*")
    rows.unlink()
    assert make(tmp_path).images_made == 64
    assert pictures(tmp_path) == [FIRST]


def test_pictures_that_are_wanted_later_are_kept_and_not_drawn_for_that_alone(
    make: Make, whole: Path, tmp_path: Path
) -> None:
    later = Extras(columns={}, later=100)
    make(tmp_path / "none", 0)
    assert make(tmp_path / "none", extras=later).images_made == 0
    assert make(tmp_path / "off", 0, extras=later).images_made == N
    assert pictures(tmp_path / "none") == pictures(tmp_path / "off") == []
    assert make(tmp_path / "some", extras=later).images_made == N
    assert pictures(tmp_path / "some") == [FIRST, SECOND]
    assert files(tmp_path / "some").items() < files(whole).items()


@pytest.mark.parametrize("how", ["by the option", "by what is computed"])
def test_pictures_that_are_asked_for_are_drawn_where_all_rows_are_there(
    how: str, make: Make, whole: Path, tmp_path: Path
) -> None:
    make(tmp_path, 0)
    rows = files(tmp_path)
    words = {"extras": Extras(columns={}, keep=100)} if how == "by what is computed" else {"keep": 100}
    with pytest.raises(Unavailable, match="128 of 130"):
        make(tmp_path, max_images=127, **words)
    assert make(tmp_path, **words).images_made == 128
    assert pictures(tmp_path) == [FIRST, SECOND]
    assert rows.items() < files(tmp_path).items() < files(whole).items()


def test_workers_make_the_same_pictures(make: Make, whole: Path, tmp_path: Path) -> None:
    make(tmp_path, "all", tuning=Tuning(batch_size=16, workers=3))
    assert files(tmp_path) == files(whole)


def test_rows_that_are_drawn_again_take_their_pictures_with_them(
    make: Make, whole: Path, tmp_path: Path
) -> None:
    make(tmp_path, "all", tuning=Tuning(batch_size=8, workers=1))
    other = files(tmp_path)
    for path in tmp_path.glob("*/shard-*"):
        path.unlink()
    make(tmp_path)
    assert files(tmp_path)[f"pictures-{FIRST}.tar"] == files(whole)[f"pictures-{FIRST}.tar"]
    assert files(tmp_path)[f"pictures-{LAST}.tar"] == other[f"pictures-{LAST}.tar"]


def test_pictures_that_git_lfs_has_not_fetched_are_not_drawn_anew(make: Make, tmp_path: Path) -> None:
    make(tmp_path, "all")
    (tar,) = tmp_path.glob(f"*/pictures-{FIRST}.tar")
    tar.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    evidence = make(tmp_path).evidence
    for ask in (lambda: evidence.pictures(range(64)), lambda: evidence.picture_artists(64)):
        with pytest.raises(EvidenceError, match=rf"pictures-{FIRST}.tar: a Git LFS pointer.*git lfs pull"):
            ask()
    assert tar.is_file()


# --- a full disk ---


def refuse_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no shard be written, as a disk that was full before."""
    write = os.fsync

    def full(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_file() and b"__metadata__" in path.read_bytes()[:100]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(handle)

    monkeypatch.setattr("os.fsync", full)


def test_a_disk_that_pictures_fill_up_loses_no_row(make: Make, whole: Path, tmp_path: Path) -> None:
    """The kernel refuses files of more than 100 kB, as a full disk does; rows take less."""
    told = r"pictures-00000000-00000064.tar: pictures cannot be written.*rows are kept. Make room[^-]*$"
    with files_no_longer_than(100_000), pytest.raises(EvidenceError, match=told):
        make(tmp_path, "all")
    assert [name[:23] for name in files(tmp_path)] == [f"shard-{FIRST}"]
    assert make(tmp_path, "all").images_made == N
    assert files(tmp_path) == files(whole)


def test_pictures_that_nobody_asked_for_are_a_warning(make: Make, whole: Path, tmp_path: Path) -> None:
    told = "rows are kept. Make room.*Or keep fewer"
    with files_no_longer_than(100_000), pytest.warns(PicturesLost, match=told):
        assert make(tmp_path).images_made == N
    assert files(tmp_path) == files(whole, "shard-*")


@pytest.mark.parametrize("keep", ["auto", "all"])
def test_pictures_make_room_for_rows(
    keep: str, make: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk on which pictures have a place, or rows, but not both."""
    write = os.fsync

    def full(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        content = path.read_bytes() if path.is_file() else b""
        if b"__metadata__" in content[:100] and any(path.parent.glob("pictures-*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(handle)

    monkeypatch.setattr("os.fsync", full)
    if keep == "all":
        with pytest.raises(EvidenceError, match="The rows are kept"):
            make(tmp_path, keep)
        assert [name[:23] for name in files(tmp_path)] == [f"shard-{FIRST}"]
    else:
        with pytest.warns(PicturesLost, match="The rows are kept"):
            make(tmp_path, keep)
        assert files(tmp_path) == files(whole, "shard-*")


def test_pictures_of_an_earlier_shard_make_room_for_rows(
    make: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that the rows of a later shard fill, whose own pictures nobody keeps."""
    write = os.fsync

    def full(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        content = path.read_bytes() if path.is_file() else b""
        later = b"__metadata__" in content[:100] and any(path.parent.glob(f"shard-{FIRST}*"))
        if later and any(path.parent.glob("pictures-*")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(handle)

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(PicturesLost, match=rf"pictures-{FIRST}.tar: .*The rows are kept.*keep fewer"):
        assert make(tmp_path).images_made == N
    assert files(tmp_path) == files(whole, "shard-*")


@pytest.mark.parametrize("how", ["a link that leads nowhere", "a folder", "a full disk"])
def test_pictures_that_were_there_outlive_rows_that_cannot_be_written(
    how: str, make: Make, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shutil.copytree(whole, tmp_path / "store")
    (rows,) = store.glob(f"*/shard-{FIRST}*")
    rows.unlink()
    if how == "a folder":
        rows.mkdir()
    elif how == "a full disk":
        refuse_rows(monkeypatch)
    else:
        rows.symlink_to("../annex/key")
    with pytest.raises(EvidenceError, match=rf"shard-{FIRST}.*cannot be written"):
        make(store)
    assert files(store, "pictures-*") == files(whole, "pictures-*")


def test_pictures_too_large_to_be_kept_are_told_so(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_sdbench.store.pictures._PIXELS", 64 * 64 - 1)
    told = (
        r"64x64 is more than 4,095 pixels\. The rows are kept\. Or keep fewer.*--sdbench-keep-images N\|none$"
    )
    with pytest.warns(PicturesLost, match=told):
        make(tmp_path)
