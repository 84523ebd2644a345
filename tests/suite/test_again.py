"""The command that a page gives runs the same cards again, and holds nothing else that was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sdbench.suite.again import command_again


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["--sdbench", "a.md", "-v", "-x"], "--sdbench a.md"),
        (
            ["--sdbench", "-m", "quality or size", "-k", "not 5k"],
            "--sdbench -m 'quality or size' -k 'not 5k'",
        ),
        (["--sdbench", "-kfid", "a.md::test_size[unet]"], "--sdbench -kfid 'a.md::test_size[unet]'"),
        (["--sdbench", "--token", "secret", "--other=secret", "secret"], "--sdbench"),
        (
            ["--sdbench-report", "r.html", "--sdbench-samples=8"],
            "--sdbench-report r.html --sdbench-samples=8",
        ),
        (["--sdbench-store=s3://me:secret@bucket/x"], "'--sdbench-store=s3://***@bucket/x'"),
        (["--sdbench-store"], "--sdbench-store"),
        (["--sdbench-download", "a.md"], "--sdbench-download a.md"),
    ],
)
def test_what_is_ours_and_what_selects_is_kept(tmp_path: Path, typed: list[str], kept: str) -> None:
    (tmp_path / "a.md").touch()
    assert command_again(typed, tmp_path) == f"python -m pytest {kept}"
