"""Turn a source into training pairs: encoded once and kept on disk, or read anew each time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from pytest_sdbench.base.files import sha256_of
from pytest_sdbench.base.paths import told
from pytest_sdbench.base.progress import Progress
from pytest_sdbench.models.checkpoint import Checkpoint
from pytest_sdbench.models.pipeline import load_pipeline
from training.data.batch import Examples, tokenize
from training.data.disk_arrays import Array, DiskArrays
from training.data.prefetch import Prefetcher
from training.data.source import BadSample, Pixels, Sample, Source, check_same_size, fit, to_pixels
from training.errors import TrainingError, explain_write_errors

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
    fingerprint: str = ""
    """Of the source."""

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


@dataclass(frozen=True)
class Encoding:
    """How pictures and captions are encoded."""

    checkpoint: Checkpoint
    """The checkpoint whose VAE, tokenizer and text encoder encode."""
    resolution: int | None
    """Pixels of a side; None: pictures as they are."""
    flip: bool
    """Encode the mirrored pictures, too."""
    text: bool
    """Keep the states of the text encoder for each distinct caption."""
    upscale: bool = False
    """Enlarge pictures that are smaller than `resolution` instead of refusing them."""
    dtype: torch.dtype = torch.float32
    """What the networks compute in."""
    device: str | torch.device = "cpu"


def cached_pairs(source: Source, encoding: Encoding, folder: Path, *, say: Say = print) -> CachedPairs:
    """Return the pairs of a source, encoding them into a subfolder of `folder` unless they are there.

    Kept are mean and standard deviation of the VAE's posterior before scaling, tokens, and text states where
    `encoding` wants them. The names of the subfolders are digests of all that the content depends on.

    A killed build goes on where it was, with the same result. Of several processes one builds and the others
    wait for it. Corrupt samples are reported, counted and left out. Raises TrainingError where none is good,
    where a picture does not fit the resolution, and when the disk is full.
    """
    encoder = _Encoder(source, encoding, say)
    with_latents = folder / f"latents-{encoder.latents_key}"
    with_text = folder / f"text-{encoder.latents_key}-{encoder.text_key}"
    latents = _build_once(with_latents, encoder.build_latents, say)
    arrays = latents.open("latents"), latents.open("tokens")
    pairs = CachedPairs(*arrays, latents.notes["bad"], fingerprint=source.fingerprint)
    if not encoding.text:
        return pairs
    distinct, rows = np.unique(pairs.tokens, axis=0, return_inverse=True)
    states = _build_once(with_text, lambda arrays: encoder.build_text(arrays, distinct), say)
    return replace(pairs, text=states.open("text"), text_rows=rows.reshape(-1).astype(np.int64))


class _Encoder:
    """Encodes one source; the networks are loaded when first used."""

    def __init__(self, source: Source, encoding: Encoding, say: Say) -> None:
        self.source, self.encoding, self.say = source, encoding, say
        self.device, self.dtype = torch.device(encoding.device), encoding.dtype
        checkpoint, resolution = encoding.checkpoint, encoding.resolution
        check_resolution(resolution, checkpoint.config("vae"))
        networks = _digest(checkpoint, "vae", "tokenizer")
        what = [source.fingerprint, resolution, encoding.flip, str(self.dtype), networks]
        self.latents_key = _short(json.dumps(what))
        self.text_key = _short(_digest(checkpoint, "text_encoder") + str(self.dtype))
        self._pipeline: Any = None

    @property
    def pipeline(self) -> Any:
        if self._pipeline is None:
            self._pipeline = load_pipeline(self.encoding.checkpoint)
            self._pipeline.vae.to(self.device, memory_format=torch.channels_last)
            self._pipeline.text_encoder.to(self.device)
        return self._pipeline

    def build_latents(self, arrays: DiskArrays) -> None:
        total = len(self.source)
        chunks = -(-total // CHUNK)
        began = arrays.chunks
        notes = arrays.notes or {"bad": {}, "cut": 0, "first": None}
        progress = self._progress("latents", began * CHUNK, total)
        with progress, ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as readers:

            def read(number: int) -> list[tuple[Sample, Pixels] | BadSample]:
                return list(readers.map(self._read, range(number * CHUNK, min((number + 1) * CHUNK, total))))

            with Prefetcher(read) as prefetcher:
                for number in range(began, chunks):
                    rows = prefetcher.get(number)
                    good = [row for row in rows if not isinstance(row, BadSample)]
                    for bad in (row for row in rows if isinstance(row, BadSample)):
                        self.say(f"skipped {told(bad.key)}: {told(bad.reason)}")
                        notes["bad"][told(bad.key)] = told(bad.reason)
                    encoded, cut = self._encode(good, notes) if good else ({}, 0)
                    if encoded and number == began:
                        size = sum(array.nbytes for array in encoded.values())
                        arrays.require(size // len(good) * (total - number * CHUNK))
                    notes["cut"] += cut
                    arrays.append(encoded, notes)
                    progress.update(len(rows))
        if notes["first"] is None:
            key, reason = next(iter(notes["bad"].items()), ("", "it is empty"))
            remedy = "Check the data of the recipe"
            raise TrainingError(
                "not one usable pair", file=self.source.name, key=key or None, found=reason, remedy=remedy
            )
        if notes["bad"]:
            self.say(f"{len(notes['bad'])} of {total} pairs were skipped: they are corrupt")
        if notes["cut"]:
            self.say(f"{notes['cut']} captions were longer than the tokenizer takes; their ends were cut off")
        arrays.finish()

    def build_text(self, arrays: DiskArrays, distinct: Array) -> None:
        began = arrays.chunks * CHUNK
        with self._progress("text", began, len(distinct)) as progress:
            for first in range(began, len(distinct), CHUNK):
                tokens = torch.from_numpy(distinct[first : first + CHUNK].astype(np.int64))
                with torch.no_grad(), self._autocast():
                    states = self.pipeline.text_encoder(tokens.to(self.device))[0]
                array = _half(states, "text encoder", self.dtype)
                if first == began:
                    arrays.require(array.nbytes // len(array) * (len(distinct) - first))
                arrays.append({"text": array}, {})
                progress.update(len(array))
        arrays.finish()

    def _progress(self, what: str, done: int, total: int) -> Progress:
        name = told(self.source.name)
        self.say(f"encoding {what} of {name}: {total - done} of {total} are to be done")
        return Progress(total - done, "rows", f"{what} of {name}")

    def _read(self, row: int) -> tuple[Sample, Pixels] | BadSample:
        try:
            sample = self.source.read(row)
            return sample, fit(sample, self.encoding.resolution, self.encoding.upscale)
        except BadSample as bad:
            return bad

    def _encode(
        self, rows: Sequence[tuple[Sample, Pixels]], notes: dict[str, Any]
    ) -> tuple[dict[str, Array], int]:
        """Return the latents and tokens of some rows, and how many captions were too long."""
        for sample, image in rows:
            size = f"{image.shape[1]}x{image.shape[0]}"
            notes["first"] = notes["first"] or [sample.key, size]
            check_same_size(notes["first"], sample.key, size)
        images = [image for _, image in rows]
        height, width = images[0].shape[:2]
        batch = max(1, min(CHUNK, _PIXELS.get(self.device.type, _PIXELS["cuda"]) // (height * width)))
        sides = []
        for mirrored in (False, True)[: 1 + self.encoding.flip]:
            parts = []
            for first in range(0, len(images), batch):
                some = images[first : first + batch]
                parts.append(self._moments(to_pixels(some, [mirrored] * len(some))))
            sides.append(np.concatenate(parts))
        tokens, cut = tokenize(self.pipeline.tokenizer, [sample.caption for sample, _ in rows])
        latents = windows(np.stack(sides, axis=1), [sample.window for sample, _ in rows], height)
        return {"latents": latents, "tokens": tokens.numpy().astype(np.int32)}, cut

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


def windows(latents: Array, squares: Sequence[tuple[int, int, int] | None], height: int) -> Array:
    """Cut squares of pixels out of the latents of pictures that are so many pixels high; they lie on latents.

    Encoded alone, a square would have other latents: what surrounds it counts, and so do its borders.
    """
    shrink, cut = height // latents.shape[-2], []
    for whole, square in zip(latents, squares, strict=True):
        if square is not None:
            top, left, side = (place // shrink for place in square)
            whole = whole[..., top : top + side, left : left + side]
        cut.append(whole)
    return np.stack(cut)


def _build_once(folder: Path, build: Callable[[DiskArrays], None], say: Say) -> DiskArrays:
    """Return finished arrays; the first process that asks builds them, the others wait."""
    arrays = DiskArrays(folder)
    if arrays.finished:
        return arrays
    with explain_write_errors(folder, "the cache"):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is encoding {folder.name}: waiting for it")
        lock.acquire(poll_interval=1.0)  # a server of files is asked by every process of every host
    try:
        arrays = DiskArrays(folder)
        if not arrays.finished:
            build(arrays)
    finally:
        lock.release()
    return arrays


def _half(values: Tensor, network: str, dtype: torch.dtype) -> Array:
    half = values.half()
    if not bool(torch.isfinite(half).all()):
        raise TrainingError(
            f"the {network} gives NaN or infinity", found=str(dtype), remedy="Give precision=bf16 or fp32"
        )
    array: Array = half.cpu().numpy()
    return array


def check_resolution(resolution: int | None, vae: Mapping[str, Any]) -> None:
    """Raise TrainingError for a resolution that an auto-encoder of this configuration does not divide."""
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
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
