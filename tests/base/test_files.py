"""A file is the old one or the new one, whatever happens on the way."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

import pytest

from pytest_sdbench.base.files import create_atomically, why_unwritable, write_atomically


def test_bytes_and_writers_make_the_same_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"content")
    write_atomically(tmp_path / "b", lambda file: file.write(b"content"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"content"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_mode_and_link_stay(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def write(file: BinaryIO) -> None:
        file.write(b"ne")
        if step == "write":
            full()

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    if step == "replace":
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_name_that_is_too_long_is_a_reason_or_none_and_no_traceback(tmp_path: Path) -> None:
    """As of a folder that one may not enter, `Path.exists` raises of it."""
    long = "x" * 300
    for place in (tmp_path / long, tmp_path / long / "file"):
        for in_place in (True, False):
            assert why_unwritable(place, in_place=in_place) == ""
        with pytest.raises(OSError, match="File name too long"):
            create_atomically(place, b"")


@pytest.mark.parametrize(
    ("locked", "in_place", "reason"),
    [
        ("folder", False, "folder is not writable"),
        ("folder", True, ""),
        ("file", False, ""),
        ("file", True, "it is not writable"),
    ],
)
def test_what_replaces_a_file_needs_its_folder_and_what_writes_in_place_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str, in_place: bool, reason: str
) -> None:
    file, link = tmp_path / "folder" / "file", tmp_path / "link"
    file.parent.mkdir()
    file.write_bytes(b"old")
    link.symlink_to(file)
    # Whoever runs this may be allowed everything.
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).resolve().name != locked)
    for path in (file, link):
        assert why_unwritable(path, in_place=in_place).endswith(reason)
        assert bool(why_unwritable(path, in_place=in_place)) is bool(reason)
