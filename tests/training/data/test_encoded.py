"""The cache holds what encoding anew would give, survives what ends a build, and says what is wrong."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.models.pipeline import load_pipeline
from tests.training.data.samples import ListSource, picture, samples
from tests.training.helpers import begin, files_no_longer_than, finish
from training.data import disk_arrays as columns
from training.data import encoded as cache
from training.data.encoded import Encoding, cached_pairs
from training.data.live import LivePairs
from training.data.scenes import ScenesSource
from training.data.source import Sample
from training.errors import TrainingError

CHUNK = 8
SOURCE = ScenesSource(4 * CHUNK + 5)


def quiet(_line: str) -> None:
    pass


def build(checkpoint: Path, source: Any, folder: Path, **options: Any) -> Any:
    say = options.pop("say", quiet)
    settings = {"resolution": 64, "flip": True, "text": True, **options}
    return cached_pairs(source, Encoding(resolve(str(checkpoint)), **settings), folder, say=say)


@pytest.fixture(scope="module")
def pipeline(pristine_checkpoint):
    return load_pipeline(resolve(str(pristine_checkpoint)))


@pytest.fixture(scope="module")
def mixed(pristine_checkpoint, tmp_path_factory):
    """A source of two chunks and a half with corrupt rows, and its cache."""
    some = samples(40, row_3="broken", row_20="gone", row_39="no picture")
    some[7] = Sample("row 7", picture(7, 200, 90), "red")
    some[8] = Sample("row 8", picture(8, 64, 64), "red")
    source, lines = ListSource(some), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "CHUNK", 16)
        pairs = build(pristine_checkpoint, source, tmp_path_factory.mktemp("cache"), say=lines.append)
    return source, pairs, lines


def test_it_holds_what_the_libraries_compute(mixed, pipeline):
    source, pairs, _ = mixed
    good = [sample for sample in source.samples if isinstance(sample, Sample)]
    assert len(pairs) == len(good) == 37
    rows = [0, 3, 6, 18, 36]
    flipped = [False, True, True, False, True]
    examples = pairs.take(rows, flipped)
    for place, (row, flip) in enumerate(zip(rows, flipped, strict=True)):
        image = np.asarray(good[row].image)
        if row == 6:  # 200x90: the short side becomes 64, the long one 142
            image = np.asarray(good[row].image.resize((142, 64), 2))[:, 39 : 39 + 64]
        image = image[:, ::-1] if flip else image
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            posterior = pipeline.vae.encode(pixels).latent_dist
            states, _ = pipeline.encode_prompt(good[row].caption, "cpu", 1, False)
        torch.testing.assert_close(examples.mean[place].float(), posterior.mean[0], rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(examples.deviation[place].float(), posterior.std[0], rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(examples.text[place].float(), states[0], rtol=2e-3, atol=2e-3)
        tokens = pipeline.tokenizer(good[row].caption, padding="max_length", max_length=77).input_ids
        assert examples.tokens[place].tolist() == tokens
    assert examples.mean.dtype == examples.deviation.dtype == examples.text.dtype == torch.float16
    assert examples.tokens.dtype == torch.int64


def test_corrupt_samples_are_reported_counted_and_left_out(mixed):
    _, pairs, lines = mixed
    assert pairs.skipped == {"row 3": "broken", "row 20": "gone", "row 39": "no picture"}
    assert [line for line in lines if line.startswith("skipped")] == [
        "skipped row 3: broken",
        "skipped row 20: gone",
        "skipped row 39: no picture",
    ]
    assert any("3 of 40 pairs were skipped" in line for line in lines)


def test_text_is_encoded_once_for_each_caption(mixed):
    _, pairs, _ = mixed
    assert len(pairs.text) == 36
    assert torch.equal(*pairs.take([6, 7]).text)


def test_a_finished_cache_is_only_read(pristine_checkpoint, tmp_path):
    source = ListSource(samples(10))
    first = build(pristine_checkpoint, source, tmp_path)
    reads, lines = source.reads, []
    again = build(pristine_checkpoint, source, tmp_path, say=lines.append)
    assert source.reads == reads == 10
    assert lines == []
    for name in ("latents", "tokens", "text", "text_rows"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name


def test_live_pairs_encoded_are_the_cached_ones(mixed, pipeline):
    source, pairs, _ = mixed
    live = LivePairs(source, pipeline.tokenizer, 64, say=quiet)
    in_source = [row for row, sample in enumerate(source.samples) if isinstance(sample, Sample)]
    rows, flipped = [0, 6, 7, 18, 36], [True, True, False, False, True]
    fresh = live.take([in_source[row] for row in rows], flipped)
    kept = pairs.take(rows, flipped)
    assert fresh.pixels.dtype == torch.float32
    assert fresh.mean is None
    with torch.no_grad():
        posterior = pipeline.vae.encode(fresh.pixels).latent_dist
    torch.testing.assert_close(kept.mean.float(), posterior.mean, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(kept.deviation.float(), posterior.std, rtol=2e-3, atol=2e-3)
    assert torch.equal(fresh.tokens, kept.tokens)


def test_other_precision_is_close_and_kept_apart(pristine_checkpoint, tmp_path):
    source = ListSource(samples(5))
    full = build(pristine_checkpoint, source, tmp_path)
    half = build(pristine_checkpoint, source, tmp_path, dtype=torch.bfloat16)
    assert not np.array_equal(full.latents, half.latents)
    assert np.abs(full.latents.astype(np.float32) - half.latents).max() < 0.1


def test_without_flip_and_text_these_are_not_there(pristine_checkpoint, tmp_path):
    pairs = build(pristine_checkpoint, ListSource(samples(5)), tmp_path, flip=False, text=False)
    assert pairs.take([1]).text is None
    assert pairs.latents.shape[1] == 1
    with pytest.raises(TrainingError, match=r"data\.flip"):
        pairs.take([1], [True])
    assert len(list(tmp_path.glob("text-*"))) == 0


def test_close_ups_are_cut_out_of_the_latents_of_whole_pictures(pristine_checkpoint, tmp_path):
    near, whole = (ScenesSource(6, layouts=["one"], close_up=side) for side in (32, None))
    cut, full = (build(pristine_checkpoint, each, tmp_path, flip=False).latents for each in (near, whole))
    shrink = 64 // full.shape[-1]
    for row in range(6):
        top, left, side = (place // shrink for place in near.read(row).window)
        assert np.array_equal(cut[row], full[row][..., top : top + side, left : left + side])
    assert cut.shape[-1] == 32 // shrink


@pytest.mark.slow
def test_what_the_content_depends_on_keeps_caches_apart(pristine_checkpoint, tiny_checkpoint, tmp_path):
    source, folder = ListSource(samples(4)), tmp_path / "cache"
    build(pristine_checkpoint, source, folder)
    assert caches(folder) == (1, 1)
    # The same content elsewhere is the same.
    build(tiny_checkpoint, source, folder)
    assert caches(folder) == (1, 1)
    # Another text encoder shares the latents.
    scale(tiny_checkpoint / "text_encoder" / "model.safetensors")
    other = build(tiny_checkpoint, source, folder)
    assert caches(folder) == (1, 2)
    assert not np.array_equal(other.text, build(pristine_checkpoint, source, folder).text)
    # The U-Net does not count, the VAE does, and so do source and resolution.
    scale(tiny_checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    build(tiny_checkpoint, source, folder)
    assert caches(folder) == (1, 2)
    scale(tiny_checkpoint / "vae" / "diffusion_pytorch_model.safetensors")
    build(tiny_checkpoint, source, folder)
    assert caches(folder) == (2, 3)
    build(pristine_checkpoint, source, folder, resolution=32)
    build(pristine_checkpoint, ListSource(samples(5)), folder)
    assert caches(folder) == (4, 5)


def caches(folder: Path) -> tuple[int, int]:
    return len(list(folder.glob("latents-*"))), len(list(folder.glob("text-*")))


def scale(file: Path) -> None:
    tensors = load_file(file)
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def test_captions_that_are_too_long_keep_their_end_and_are_counted(pristine_checkpoint, tmp_path):
    lines: list[str] = []
    long = Sample("long", picture(0), "red " * 100)
    source = ListSource([long, Sample("short", picture(1), "red"), long])
    pairs = build(pristine_checkpoint, source, tmp_path, say=lines.append)
    tokens = pairs.take([0, 1]).tokens
    end = load_pipeline(resolve(str(pristine_checkpoint))).tokenizer.eos_token_id
    assert tokens.shape == (2, 77)
    assert tokens[0, -1] == end
    assert tokens[0, -2] != end
    assert [line for line in lines if "longer" in line] == [
        "2 captions were longer than the tokenizer takes; their ends were cut off"
    ]


# --- builds that are ended --------------------


def build_scenes(checkpoint: Path, folder: Path, fsyncs: int | None = None, kill: bool = True) -> None:
    """Build a cache of some chunks; with `fsyncs` die at that many flushes to the disk, before the flush."""
    plain, flushes = os.fsync, itertools.count(1)

    def flush(file: int) -> None:
        if next(flushes) == fsyncs:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        plain(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "CHUNK", CHUNK)
        patch.setattr(columns.os, "fsync", flush)
        build(checkpoint, SOURCE, folder)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of everything that counts in a cache."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".bin", ".json")
    }


@pytest.fixture(scope="module")
def whole(pristine_checkpoint, tmp_path_factory, one_thread):
    """The files of a build that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    build_scenes(pristine_checkpoint, folder)
    return contents(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_ended_at_any_flush_it_goes_on_to_the_same_cache(pristine_checkpoint, tmp_path, whole, kill):
    for fsyncs in (1, 3, 4, 6, 15, 2):
        if kill:
            assert finish([begin(build_scenes, pristine_checkpoint, tmp_path, fsyncs)]) == [-signal.SIGKILL]
        else:
            with pytest.raises(KeyboardInterrupt):
                build_scenes(pristine_checkpoint, tmp_path, fsyncs, False)
        # What a torn write may leave.
        for progress in tmp_path.rglob("progress.json"):
            for file in progress.parent.glob("*.bin"):
                with file.open("ab") as stream:
                    stream.write(b"torn")
    build_scenes(pristine_checkpoint, tmp_path)
    assert contents(tmp_path) == whole


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on_to_the_same_cache(pristine_checkpoint, tmp_path, whole):
    def written() -> int:
        return sum(file.stat().st_size for file in tmp_path.rglob("*.bin"))

    dice = random.Random(0)
    for _ in range(3):
        process, before = begin(build_scenes, pristine_checkpoint, tmp_path), written()
        while written() == before and process.is_alive():
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.3))
        process.kill()
        process.join()
    assert finish([begin(build_scenes, pristine_checkpoint, tmp_path)]) == [0]
    assert contents(tmp_path) == whole


def build_and_count(checkpoint: Path, folder: Path, start: Any, lines: Any) -> None:
    cache.CHUNK = CHUNK
    start.wait()
    pairs = build(checkpoint, SOURCE, folder, say=lambda line: lines.put((os.getpid(), line)))
    lines.put((os.getpid(), f"sum {pairs.take(range(len(pairs))).tokens.sum()}"))


@pytest.mark.slow
def test_of_two_processes_one_builds_and_both_read(pristine_checkpoint, tmp_path, whole):
    context = multiprocessing.get_context("forkserver")
    start, lines = context.Barrier(2), context.Queue()
    both = [begin(build_and_count, pristine_checkpoint, tmp_path, start, lines) for _ in range(2)]
    said: dict[int, list[str]] = {process.pid: [] for process in both}
    while sum(any(line.startswith("sum") for line in some) for some in said.values()) < 2:
        pid, line = lines.get(timeout=60)
        said[pid].append(line)
    assert finish(both) == [0, 0]
    encoding = [[line for line in some if " of scenes 0 to" in line] for some in said.values()]
    assert sum(bool(some) for some in encoding) == 1
    assert len({some[-1] for some in said.values()}) == 1
    assert contents(tmp_path) == whole


def test_a_full_disk_is_explained_and_what_is_there_is_kept(pristine_checkpoint, tmp_path, whole):
    largest = max(len(content) for content in whole.values())
    for size in (largest // 4, largest // 2):
        with (
            files_no_longer_than(size),
            pytest.raises(TrainingError, match=r"the disk is full.*run the same command again") as caught,
        ):
            build_scenes(pristine_checkpoint, tmp_path)
        assert str(tmp_path) in str(caught.value)
    build_scenes(pristine_checkpoint, tmp_path)
    assert contents(tmp_path) == whole


def test_too_little_room_is_said_before_it_is_filled(pristine_checkpoint, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(columns.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(TrainingError, match=r"not enough room.*GB"):
        build(pristine_checkpoint, ListSource(samples(20)), tmp_path)
    monkeypatch.undo()
    assert len(build(pristine_checkpoint, ListSource(samples(20)), tmp_path)) == 20


# --- what cannot be used --------------------


def test_not_one_good_pair(pristine_checkpoint, pipeline, tmp_path):
    source = ListSource(["broken", "gone"])
    with pytest.raises(TrainingError, match=r"row 0.*not one usable pair.*broken"):
        build(pristine_checkpoint, source, tmp_path)
    with pytest.raises(TrainingError, match="not one usable pair"):
        LivePairs(source, pipeline.tokenizer, 64, say=quiet).take([1])


def test_pictures_of_different_sizes_need_a_resolution(pristine_checkpoint, pipeline, tmp_path):
    some = [Sample("a.png", picture(0, 64, 64), "x"), Sample("b.png", picture(1, 64, 72), "y")]
    with pytest.raises(TrainingError, match=r"data\.resolution.*a\.png: 64x64.*b\.png: 64x72"):
        build(pristine_checkpoint, ListSource(some), tmp_path, resolution=None)
    live = LivePairs(ListSource(some), pipeline.tokenizer, None, say=quiet)
    live.take([0])
    with pytest.raises(TrainingError, match=r"a\.png: 64x64, b\.png: 64x72"):
        live.take([1])
    assert len(build(pristine_checkpoint, ListSource(some), tmp_path)) == 2
    wide = [Sample("a.png", picture(0, 72, 64), "x")] * 2
    latents = build(pristine_checkpoint, ListSource(wide), tmp_path, resolution=None).latents
    assert latents.shape[3:] == (4, 8, 9)


def test_a_picture_that_is_too_small(pristine_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 8)
    source = ListSource([*samples(12), Sample("tiny.png", picture(0, 64, 30), "x")])
    with pytest.raises(TrainingError, match=r"tiny\.png: data\.resolution.*64x30"):
        build(pristine_checkpoint, source, tmp_path)
    # What was encoded before it counts when the recipe allows it then.
    reads = source.reads
    assert len(build(pristine_checkpoint, source, tmp_path, upscale=True)) == 13
    assert source.reads - reads == 13 - 8


@pytest.mark.parametrize("resolution", [60, 4])
def test_a_resolution_that_the_vae_cannot_divide(pristine_checkpoint, tmp_path, resolution):
    with pytest.raises(TrainingError, match=r"data\.resolution: the VAE divides pictures by 8"):
        build(pristine_checkpoint, ListSource(samples(1)), tmp_path, resolution=resolution)


def test_a_damaged_cache_is_explained(pristine_checkpoint, tmp_path):
    build(pristine_checkpoint, ListSource(samples(3)), tmp_path)
    [file] = tmp_path.glob("latents-*/latents.bin")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(TrainingError, match=rf"{file}.*a damaged cache"):
        build(pristine_checkpoint, ListSource(samples(3)), tmp_path)


# --- pairs read live --------------------


def test_the_next_good_row_stands_in_for_a_corrupt_one(pipeline):
    lines: list[str] = []
    source = ListSource(samples(6, row_1="broken", row_2="gone", row_5="cut"))
    live = LivePairs(source, pipeline.tokenizer, 64, say=lines.append)
    replaced = live.take([0, 1, 2, 3, 4, 5])
    expected = LivePairs(source, pipeline.tokenizer, 64, say=quiet).take([0, 3, 3, 3, 4, 0])
    assert torch.equal(replaced.pixels, expected.pixels)
    assert torch.equal(replaced.tokens, expected.tokens)
    live.take([1, 2, 5])
    assert sorted(lines) == ["skipped row 1: broken", "skipped row 2: gone", "skipped row 5: cut"]
    assert live.skipped == {"row 1": "broken", "row 2": "gone", "row 5": "cut"}
    assert len(live) == 6


def test_what_was_skipped_is_counted_over_processes_and_sittings(pipeline, tmp_path):
    source, record = (
        ListSource(samples(6, row_1="broken", row_2="gone", row_5="cut")),
        tmp_path / "skipped.jsonl",
    )
    lines: list[str] = []
    one, two = (
        LivePairs(source, pipeline.tokenizer, 64, say=lines.append, record=each)
        for each in (record, tmp_path / "skipped-1.jsonl")
    )
    one.take([0, 1])
    two.take([1, 5])
    assert one.skipped == two.skipped == {"row 1": "broken", "row 2": "gone", "row 5": "cut"}
    with record.open("a", encoding="utf-8") as file:
        file.write('{"key": "row')  # killed while it wrote
    later = LivePairs(source, pipeline.tokenizer, 64, say=quiet, record=record)
    assert later.skipped == one.skipped
    before = record.read_text(encoding="utf-8")
    later.take([2])
    assert record.read_text(encoding="utf-8") == before  # known: not told again
    source = ListSource(samples(6, row_1="broken", row_2="gone", row_3="late", row_5="cut"))
    LivePairs(source, pipeline.tokenizer, 64, say=quiet, record=record).take([3])
    assert later.skipped == {**one.skipped, "row 3": "late"}
