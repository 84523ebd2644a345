"""Turn a source into training pairs: encoded once and kept on disk, or read anew each time."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from pytest_sdbench.base.files import sha256_of
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.pipeline import load_pipeline
from training.data.batch import Examples, tokenize
from training.data.disk_arrays import Array, DiskArrays
from training.data.live import live_pairs
from training.data.prefetch import Prefetcher
from training.data.source import BadSample, Pixels, Sample, Source, check_same_size, fit, to_pixels
from training.errors import TrainingError

__all__ = ["CachedPairs", "cached_pairs", "live_pairs"]

CHUNK = 128
"""Rows of the source that are encoded and written together.

A cache that was begun with another number would go on at the wrong row."""

_PIXELS = {"cpu": 128 * 64 * 64, "cuda": 16 * 512 * 512}
"""Pixels that go through the VAE together; more gain nothing and take memory."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class CachedPairs:
    """Encoded pairs, memory-mapped; corrupt samples of the source are not among them."""

    latents: Array
    """Mean and deviation, without and with (where cached) mirroring: float16 [N, 1 or 2, 2, C, h, w]."""

    tokens: Array
    """int32 [N, T]"""

    skipped: Mapping[str, str]
    text: Array | None = None
    """Text states of distinct captions, float16 [U, T, D]."""

    text_rows: Array | None = None
    """Which of them each row has, int64 [N]."""

    @property
    def group_sizes(self) -> Sequence[int]:
        """One group: on a local disk every row is as near as any other."""
        return (len(self.tokens),)

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Sequence[int], flipped: Sequence[bool] | None = None) -> Examples:
        """Return the pairs of these rows, mirrored where `flipped` says so.

        Raises TrainingError where mirrored versions were not cached.
        """
        side = np.asarray(flipped if flipped is not None else [False] * len(rows), np.int64)
        if side.any() and self.latents.shape[1] == 1:
            raise TrainingError(
                "mirrored pictures are not in this cache", key="data.flip", remedy="Set data.flip: true"
            )
        latents = torch.from_numpy(self.latents[rows, side])
        text = None
        if self.text is not None and self.text_rows is not None:
            text = torch.from_numpy(self.text[self.text_rows[rows]])
        tokens = torch.from_numpy(self.tokens[rows].astype(np.int64))
        return Examples(tokens, mean=latents[:, 0], deviation=latents[:, 1], text=text)


def cached_pairs(
    source: Source,
    *,
    checkpoint: Checkpoint,
    resolution: int | None,
    flip: bool,
    text: bool,
    folder: Path,
    device: str | torch.device = "cpu",
    say: Say = print,
    dtype: torch.dtype = torch.float32,
    upscale: bool = False,
) -> CachedPairs:
    """Return the pairs of a source, encoding them into a subfolder of `folder` unless they are there.

    Kept are mean and standard deviation of the VAE's posterior before scaling (`flip`: of the mirrored
    pictures, too), tokens, and with `text` the states of the text encoder for each distinct caption. The
    networks compute in `dtype`. The names of the subfolders are digests of all that the content depends on.

    A killed build goes on where it was, with the same result. Of several processes one builds and the others
    wait for it. Corrupt samples are reported, counted and left out. Raises TrainingError where none is good,
    where a picture does not fit `resolution`, and when the disk is full.
    """
    device = torch.device(device)
    work = _Work(source, checkpoint, resolution, flip, device, dtype, upscale, say)
    with_latents = folder / f"latents-{work.latents_key}"
    with_text = folder / f"text-{work.latents_key}-{work.text_key}"
    latents, states = _built(with_latents, work.build_latents, say), None
    pairs = CachedPairs(latents.open("latents"), latents.open("tokens"), latents.notes["bad"])
    if not text:
        return pairs
    distinct, rows = np.unique(pairs.tokens, axis=0, return_inverse=True)
    states = _built(with_text, lambda columns: work.build_text(columns, distinct), say)
    return CachedPairs(
        pairs.latents, pairs.tokens, pairs.skipped, states.open("text"), rows.reshape(-1).astype(np.int64)
    )


@dataclass
class _Chunk:
    """Rows of the source, read and fitted; the bad ones are left out."""

    keys: list[str]
    images: list[Pixels]
    captions: list[str]
    bad: dict[str, str]


class _Work:
    """Everything that encoding one source needs; the networks are loaded when first used."""

    def __init__(
        self,
        source: Source,
        checkpoint: Checkpoint,
        resolution: int | None,
        flip: bool,
        device: torch.device,
        dtype: torch.dtype,
        upscale: bool,
        say: Say,
    ) -> None:
        self.source, self.checkpoint, self.resolution, self.flip = source, checkpoint, resolution, flip
        self.device, self.dtype, self.upscale, self.say = device, dtype, upscale, say
        _check_resolution(resolution, 2 ** (len(checkpoint.config("vae")["block_out_channels"]) - 1))
        what = [
            source.fingerprint,
            resolution,
            flip,
            str(dtype),
            _digest(checkpoint, "vae", "tokenizer"),
        ]
        self.latents_key = _short(json.dumps(what))
        self.text_key = _short(_digest(checkpoint, "text_encoder") + str(dtype))
        self._pipeline: Any = None

    @property
    def pipeline(self) -> Any:
        if self._pipeline is None:
            self._pipeline = load_pipeline(self.checkpoint)
            self._pipeline.vae.to(self.device, memory_format=torch.channels_last)
            self._pipeline.text_encoder.to(self.device)
        return self._pipeline

    def build_latents(self, columns: DiskArrays) -> None:
        total = len(self.source)
        chunks = -(-total // CHUNK)
        began = columns.chunks
        notes = columns.notes or {"bad": {}, "cut": 0, "first": None}
        progress = _Progress("latents", self.source.name, began * CHUNK, total, self.say)
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as readers:

            def read(number: int) -> _Chunk:
                rows = range(number * CHUNK, min(number * CHUNK + CHUNK, total))
                return _gather(readers.map(lambda row: self._read(row), rows))

            ahead = Prefetcher(read, 2, lambda number: number + 1 if number + 1 < chunks else None)
            with ahead:
                for number in range(began, chunks):
                    chunk = ahead.get(number)
                    for key, reason in chunk.bad.items():
                        self.say(f"skipped {key}: {reason}")
                    arrays, cut = self._encode(chunk, notes)
                    if arrays and number == began:
                        columns.require(_bytes(arrays) // len(chunk.images) * (total - number * CHUNK))
                    notes["bad"] |= chunk.bad
                    notes["cut"] += cut
                    columns.append(arrays, notes)
                    progress.at(min(number * CHUNK + CHUNK, total))
        if notes["first"] is None:
            key, reason = next(iter(notes["bad"].items()), ("", "it is empty"))
            raise TrainingError(
                "not one usable pair", file=self.source.name, key=key or None, found=reason, remedy=_CHECK
            )
        if notes["bad"]:
            self.say(f"{len(notes['bad'])} of {total} pairs were skipped: they are corrupt")
        if notes["cut"]:
            self.say(f"{notes['cut']} captions were longer than the tokenizer takes; their ends were cut off")
        columns.finish()

    def build_text(self, columns: DiskArrays, distinct: Array) -> None:
        progress = _Progress("text", self.source.name, columns.chunks * CHUNK, len(distinct), self.say)
        began = columns.chunks * CHUNK
        for first in range(began, len(distinct), CHUNK):
            tokens = torch.from_numpy(distinct[first : first + CHUNK].astype(np.int64))
            with torch.no_grad(), self._autocast():
                states = self.pipeline.text_encoder(tokens.to(self.device))[0]
            array = _half(states, "text encoder", self.dtype)
            if first == began:
                columns.require(array.nbytes // len(array) * (len(distinct) - first))
            columns.append({"text": array}, {})
            progress.at(min(first + CHUNK, len(distinct)))
        columns.finish()

    def _read(self, row: int) -> tuple[Sample, Pixels] | BadSample:
        try:
            sample = self.source.read(row)
            return sample, fit(sample, self.resolution, self.upscale)
        except BadSample as bad:
            return bad

    def _encode(self, chunk: _Chunk, notes: dict[str, Any]) -> tuple[dict[str, Array], int]:
        """Return the latents and tokens of a chunk, and how many captions were too long."""
        if not chunk.images:
            return {}, 0
        for key, image in zip(chunk.keys, chunk.images, strict=True):
            size = f"{image.shape[1]}x{image.shape[0]}"
            if notes["first"] is None:
                notes["first"] = [key, size]
            check_same_size(notes["first"], key, size)
        height, width = chunk.images[0].shape[:2]
        batch = max(1, min(CHUNK, _PIXELS.get(self.device.type, _PIXELS["cuda"]) // (height * width)))
        sides = []
        for mirrored in (False, True)[: 1 + self.flip]:
            parts = []
            for first in range(0, len(chunk.images), batch):
                some = chunk.images[first : first + batch]
                parts.append(self._moments(to_pixels(some, [mirrored] * len(some))))
            sides.append(np.concatenate(parts))
        tokens, cut = tokenize(self.pipeline.tokenizer, chunk.captions)
        return {"latents": np.stack(sides, axis=1), "tokens": tokens.numpy().astype(np.int32)}, cut

    @torch.no_grad()
    def _moments(self, pixels: Tensor) -> Array:
        """Return mean and standard deviation of the posterior, float16 [B, 2, C, h, w]."""
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        vae = self.pipeline.vae
        with self._autocast():
            moments = vae.encoder(pixels.to(self.device, memory_format=torch.channels_last))
            if vae.quant_conv is not None:
                moments = vae.quant_conv(moments)
        posterior = DiagonalGaussianDistribution(moments.float())
        return _half(torch.stack([posterior.mean, posterior.std], dim=1), "VAE", self.dtype)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)


def _gather(read: Any) -> _Chunk:
    chunk = _Chunk([], [], [], {})
    for result in read:
        if isinstance(result, BadSample):
            chunk.bad[result.key] = result.reason
        else:
            sample, image = result
            chunk.keys.append(sample.key)
            chunk.images.append(image)
            chunk.captions.append(sample.caption)
    return chunk


def _built(folder: Path, build: Callable[[DiskArrays], None], say: Say) -> DiskArrays:
    """Return finished columns; the first process that asks builds them, the others wait."""
    columns = DiskArrays(folder)
    if columns.finished:
        return columns
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            "no such folder can be made", file=folder, found=error.strerror, remedy="Give another folder"
        ) from error
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is encoding {folder.name}: waiting for it")
        lock.acquire()
    try:
        columns = DiskArrays(folder)
        if not columns.finished:
            build(columns)
    finally:
        lock.release()
    return columns


def _half(values: Tensor, network: str, dtype: torch.dtype) -> Array:
    half = values.half()
    if not bool(torch.isfinite(half).all()):
        raise TrainingError(
            f"the {network} gives NaN or infinity", found=str(dtype), remedy="Encode in float32"
        )
    array: Array = half.cpu().numpy()
    return array


def _bytes(arrays: Mapping[str, Array]) -> int:
    return sum(array.nbytes for array in arrays.values())


_CHECK = "Check the data of the recipe"


def _check_resolution(resolution: int | None, factor: int) -> None:
    if resolution is not None and (resolution <= 0 or resolution % factor):
        raise TrainingError(
            f"the VAE divides pictures by {factor}, so that is what the resolution must be a multiple of",
            key="data.resolution",
            found=resolution,
            remedy=f"Take {max(1, resolution // factor) * factor}",
        )


def _digest(checkpoint: Checkpoint, *parts: str) -> str:
    """Digest the weights, configuration and vocabulary of some components."""
    digest = hashlib.sha256()
    for part in parts:
        if part == "tokenizer":
            files = sorted(checkpoint.part(part).glob("*"))
            files = [file for file in files if file.suffix in (".json", ".txt") and "config" not in file.name]
        else:
            config = {key: value for key, value in checkpoint.config(part).items() if key[0] != "_"}
            digest.update(json.dumps(config, sort_keys=True).encode())
            files = list(checkpoint.weights(part).files)
        for file in files:
            digest.update(f"{part}/{file.name} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Progress:
    """Say how far encoding is, every ten seconds and at the end."""

    def __init__(self, what: str, where: str, done: int, total: int, say: Say) -> None:
        self._what, self._total, self._say = f"{what} of {where}", total, say
        self._first, self._began, self._said = done, time.monotonic(), time.monotonic()
        if done:
            say(f"{self._what}: going on after {done} of {total}")

    def at(self, done: int) -> None:
        now = time.monotonic()
        if now - self._said < 10.0 and done < self._total:
            return
        self._said = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = (self._total - done) / max(rate, 1e-9) / 60
        self._say(f"{self._what}: {done} of {self._total}, {rate:.0f}/s, {left:.1f} min left")
