"""``store ls`` says what is there; ``store gc`` removes what nothing needs, and nothing else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pytest_sdbench.commands.main import main
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.store.pictures import Pictures, pictures_name
from pytest_sdbench.store.shard_format import shard_name
from pytest_sdbench.store.shards import Evidence, Store
from tests.store.remote import s3_server

DAY = 24 * 3600
OLD, YOUNG = f".tmp-{'0' * 32}", f".tmp-{'f' * 32}"
Run = Callable[..., str]


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("SDBENCH_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        yield str(tmp_path / "store")
    else:
        with s3_server() as server:
            yield f"{server.url}/store"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str, status: int = 0) -> str:
        assert main(["store", *words]) == status
        return capsys.readouterr().out

    return run


def fill(root: str, *lengths: int, draw: str = "d" * 16, checkpoint: str = "c" * 16) -> Evidence:
    manifest = {"checkpoint_spec": f"embedded:{checkpoint[0]}", "device": "a device"}
    evidence = Store(root).open(checkpoint, draw, manifest)
    for n in lengths:
        for images in evidence.missing(n):
            evidence.write(images.start, {"value": np.array(images, np.float32)})
    return evidence


def names(evidence: Evidence) -> set[str]:
    return set(evidence.storage.files())


def age(evidence: Evidence, days: float, prefix: str = "") -> None:
    """Set the clock of files back, as if nobody had touched them since."""
    assert isinstance(evidence.folder, Path)
    moment = time.time() - days * DAY
    for path in evidence.folder.iterdir():
        if path.name.startswith(prefix):
            os.utime(path, (moment, moment))


def test_ls_tells_what_is_there(root: str, run: Run) -> None:
    quick = load_protocol("scenes-quick")
    fill(root, 150, draw=quick.draw_fingerprint)
    gap = fill(root, 64)
    gap.write(128, {"value": np.zeros(64, np.float32)})
    quick_row, gap_row = run("ls", "--store", root).splitlines()[2:4]
    if "scenes-quick" not in quick_row:
        quick_row, gap_row = gap_row, quick_row
    assert "embedded:c (cccccccc)" in quick_row
    assert "scenes-quick" in quick_row
    assert " 150 " in quick_row
    assert "a device" in quick_row
    assert "d" * 16 in gap_row
    listed = {each["draw"]: each for each in json.loads(run("ls", "--json", "--store", root))}
    assert set(listed) == {quick.draw_fingerprint, "d" * 16}
    assert "scenes-quick" in listed[quick.draw_fingerprint]["protocols"]
    assert (listed["d" * 16]["whole"], listed["d" * 16]["images"]) == (64, 128)
    assert listed["d" * 16]["size"] == sum(len(gap.storage.read(name)) for name in names(gap))
    assert abs(listed["d" * 16]["changed"] - time.time()) < 600


def test_a_store_that_is_not_there_is_empty_and_images_that_two_shards_hold_count_once(
    root: str, run: Run
) -> None:
    assert run("ls", "--store", root) == f"no evidence in {root}\n"
    assert json.loads(run("ls", "--json", "--store", root)) == []
    assert run("gc", "--store", root) == f"0 B removed from {root}\n"
    fill(root, 30, 100)
    (listed,) = json.loads(run("ls", "--json", "--store", root))
    assert (listed["whole"], listed["images"]) == (100, 100)


def test_gc_keeps_what_a_run_needs(root: str, run: Run) -> None:
    evidence = fill(root, 30, 100, 150)
    fresh = {YOUNG, "lease-00000128-00000192.json"}
    for name in fresh:
        evidence.storage.write(name, b"{}")
    evidence.storage.write("shard-00000000-00000064.safetensors.damaged", b"bad")
    evidence.write(0, {"other": np.zeros(30)})  # of other columns: none of the longer ones has them
    for n in (30, 64):
        pixels = np.zeros((n, 8, 8, 3), np.uint8)
        evidence.write(0, {}, pictures=Pictures(np.arange(n), np.arange(n), ("",) * n, pixels))
    before = names(evidence)
    gone = {
        "shard-00000000-00000064.safetensors.damaged",
        shard_name(range(30), ["value"]),
        shard_name(range(64, 100), ["value"]),
        pictures_name(range(30)),
    }
    assert gone < before
    said = run("gc", "--dry-run", "--store", root)
    assert names(evidence) == before
    assert "would be removed" in said
    for name in gone:
        assert f"{evidence.storage.where(name)}: " in said
    (listed,) = json.loads(run("ls", "--json", "--store", root))
    assert (listed["images"], listed["pictures"]) == (150, 64)
    assert run("gc", "--store", root) == said.replace("would be removed", "removed")
    assert names(evidence) == before - gone
    assert Store(root).open("c" * 16, "d" * 16, {}).missing(150) == []
    assert run("gc", "--store", root) == f"0 B removed from {root}\n"


def test_gc_keeps_a_short_shard_where_the_longer_one_is_damaged(root: str, run: Run) -> None:
    evidence = fill(root, 30, 64)
    evidence.storage.write(shard_name(range(64), ["value"]), b"bad")
    before = names(evidence)
    assert run("gc", "--store", root) == f"0 B removed from {root}\n"
    assert names(evidence) == before


def test_gc_removes_what_killed_runs_left(tmp_path: Path, run: Run) -> None:
    root = str(tmp_path / "store")
    evidence = fill(root, 64)
    for name in (OLD, "lease-00000000-00000064.json", YOUNG, "lease-00000064-00000128.json"):
        evidence.storage.write(name, b"12345")
    for prefix in (OLD, "lease-00000000"):
        age(evidence, 1.1, prefix)
    said = run("gc", "--store", root)
    assert f"{OLD}: never finished (5 B)" in said
    assert "lease-00000000-00000064.json: a lease of an earlier version (5 B)" in said
    assert said.endswith(f"10 B removed from {root}\n")
    assert {YOUNG, "lease-00000064-00000128.json"} < names(evidence)
    assert len(names(evidence)) == 4


def test_gc_removes_old_evidence_only_when_asked_to(tmp_path: Path, run: Run) -> None:
    root = str(tmp_path / "store")
    old, young = fill(root, 64, checkpoint="a" * 16), fill(root, 64, checkpoint="b" * 16)
    (tmp_path / "store" / "notes").mkdir()
    age(old, 40)
    assert run("gc", "--store", root) == f"0 B removed from {root}\n"
    assert "0 B" in run("gc", "--older-than", "41", "--store", root)
    assert "not written to for 40 days" in run("gc", "--older-than", "30", "--dry-run", "--store", root)
    assert names(old)
    run("gc", "--older-than", "30", "--store", root)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == sorted(
        ["notes", f"{'b' * 16}-{'d' * 16}"]
    )
    assert young.missing(64) == []


def test_gc_goes_on_past_a_folder_that_holds_one_of_others(tmp_path: Path, run: Run) -> None:
    for draw in ("d" * 16, "e" * 16):
        age(fill(str(tmp_path), 64, draw=draw), days=200)
    (next(tmp_path.iterdir()) / "@eaDir").mkdir()
    run("gc", "--older-than", "90", "--store", str(tmp_path))
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not left


def test_a_folder_of_one_late_file_is_not_old(tmp_path: Path, run: Run) -> None:
    root = str(tmp_path / "store")
    evidence = fill(root, 128)
    age(evidence, 40, "shard-00000000")
    assert "0 B" in run("gc", "--older-than", "30", "--store", root)


def test_what_is_not_of_a_store_stays(tmp_path: Path, run: Run) -> None:
    root = tmp_path / "store"
    evidence = fill(str(root), 64)
    inside = f"{'c' * 16}-{'d' * 16}"
    theirs = [f"my-project/{name}" for name in ("thesis.txt", "lease-agreement.pdf", "photo.png.damaged")]
    theirs += [f"{inside}/{name}" for name in ("notes.txt", "lease-agreement.pdf", ".tmp-mine", "a.damaged")]
    for name in theirs:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("mine")
    for path in root.glob("*/*"):
        os.utime(path, (time.time() - 40 * DAY,) * 2)
    assert "my" not in run("ls", "--store", str(root))
    assert run("gc", "--store", str(root)) == f"0 B removed from {root}\n"
    assert "not written to for 40 days" in run("gc", "--older-than", "30", "--store", str(root))
    assert sorted(str(path.relative_to(root)) for path in root.glob("*/*")) == sorted(theirs)
    assert evidence.missing(64)


def test_what_cannot_be_is_refused(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for days in ("0", "nan"):
        assert main(["store", "gc", "--older-than", days, "--store", str(tmp_path)]) == 2
        assert "--older-than: not a number of days" in capsys.readouterr().err
    assert main(["store", "ls", "--store", "gopher://store"]) == 2
    assert "not the URL of a store" in capsys.readouterr().err


def test_what_cannot_be_removed_is_told_in_the_words_of_the_command(
    tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(str(tmp_path), 64).storage.write("shard-00000000-00000064.safetensors.damaged", b"bad")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    assert main(["store", "gc", "--store", str(tmp_path)]) == 1
    assert "give another one with --store." in capsys.readouterr().err


def drawn(images: range) -> Pictures:
    prompts = tuple(f"prompt {index}" for index in images)
    index = np.array(images)
    return Pictures(index, index, prompts, np.zeros((len(images), 8, 8, 3), np.uint8))


def test_pictures_are_counted_and_kept_unless_a_longer_file_has_them(root: str, run: Run) -> None:
    evidence = fill(root, 30, 150)
    for images in (range(30), range(64, 100), range(64, 128)):
        evidence.write(images.start, {}, pictures=drawn(images))
    (listed,) = json.loads(run("ls", "--json", "--store", root))
    assert (listed["images"], listed["pictures"]) == (150, 30 + 64)
    assert "pictures" in run("ls", "--store", root).splitlines()[0]
    name = "pictures-00000064-00000100.tar"
    assert f"{name}: in the shard of images 64 to 127" in run("gc", "--store", root)
    left = {each for each in names(evidence) if each.startswith("pictures")}
    assert left == {"pictures-00000000-00000030.tar", "pictures-00000064-00000128.tar"}


def test_gc_keeps_short_pictures_where_the_longer_ones_are_damaged(root: str, run: Run) -> None:
    evidence = fill(root, 64)
    for images in (range(30), range(64)):
        evidence.write(0, {}, pictures=drawn(images))
    longer = evidence.storage.read("pictures-00000000-00000064.tar")
    evidence.storage.write("pictures-00000000-00000064.tar", longer.replace(b"prompt 3", b"prompt 4"))
    assert run("gc", "--store", root) == f"0 B removed from {root}\n"
