"""The command that a page gives runs the same cards again, and holds nothing else that was typed."""

from __future__ import annotations

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
        (["--deselect", "a.md::test_size[unet]", "a.md"], "--deselect 'a.md::test_size[unet]' a.md"),
        (["--deselect=a.md::test_size[unet]"], "'--deselect=a.md::test_size[unet]'"),
        (["--junitxml", "junit.xml", "a.md"], "a.md"),
        (["-c", "ci.ini", "--rootdir", ".", "a.md"], "-c ci.ini --rootdir . a.md"),
        (["--sdbench-ray", "--sdbench-report", "r.html"], "--sdbench-ray --sdbench-report r.html"),
        (["--sdbench-download", "a.md"], "--sdbench-download a.md"),
        (["-o", "sdbench_store=x", "a.md"], "-o sdbench_store=x a.md"),
    ],
)
def test_what_is_ours_and_what_selects_is_kept(typed: list[str], kept: str) -> None:
    named = [word for word in typed if word in ("a.md", "a.md::test_size[unet]")]
    assert command_again(typed, named) == f"python -m pytest {kept}"


def test_cards_of_a_file_of_arguments_are_named() -> None:
    assert (
        command_again(["--sdbench", "@cards.txt"], ["a.md", "b.md"]) == "python -m pytest --sdbench a.md b.md"
    )
