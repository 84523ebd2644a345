"""Make the images that a store lacks, as fast as the hardware allows.

On a CPU several workers, each a thread that computes in one thread, make a shard each: a small network gives
several cores too little to do together. On an accelerator one worker keeps the device busy with the
U-Net, while a thread beside it decodes, encodes, measures and writes what was drawn before. Shards lie on a
fixed grid and batches do not cross it, so an image's neighbours depend on neither kills nor workers: the
evidence is the same to the bit. Another batch size or memory layout rounds otherwise: less than a hundredth
of the bytes of a picture move, by at most 2 of 255, and scores by less than a ten-thousandth.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pytest_sdbench.base.environment import halve_to_fit, shared_threads, true_float32
from pytest_sdbench.evaluation.measuring import Beside, references_of
from pytest_sdbench.evaluation.tuning import (
    Tuning,
    arranged,
    default_batch_size,
    default_decoding,
    keep_memory,
    worker_count,
)
from pytest_sdbench.features.extractors import Extractors
from pytest_sdbench.protocols.image_steps import Images, apply_image_steps
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import SequentialSeeds
from pytest_sdbench.store.gap import Gap
from pytest_sdbench.store.pictures import Pictures
from pytest_sdbench.store.shard_format import Rows
from pytest_sdbench.store.shards import Evidence

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.sampler import Batch, Latents, Sampler

_AHEAD = 2
"""Batches that may wait to be decoded: a device is never idle then, and memory stays bounded."""


@dataclass(frozen=True)
class Setup:
    """What images are made with."""

    pipeline: Any
    extractors: Extractors
    device: str = "cpu"
    tuning: Tuning = field(default_factory=Tuning)
    reference: Evidence | None = None
    """Whose kept pictures paired extractors compare with."""

    @property
    def on_cpu(self) -> bool:
        """Whether the pipeline computes on a CPU."""
        return self.device.startswith("cpu")


class Work(NamedTuple):
    """What was drawn."""

    images: int
    seconds: float
    """With what decodes, measures and writes them, and without what loads networks."""


NO_WORK = Work(0, 0.0)


def make(
    evidence: Evidence,
    protocol: Protocol,
    prompts: Sequence[str],
    gaps: Iterator[Gap],
    setup: Setup,
    *,
    n: int,
    count: Callable[[int], object] = lambda images: None,
    done: Callable[[range], object] = lambda images: None,
) -> Work:
    """Fill the gaps that an iterator yields, write each shard when it is whole, and return what was drawn.

    Of each shard those columns alone are made that lack, and the pictures where they are to be kept.
    `n` is the number of images of the whole run, of which `gaps` yields missing ones: how many threads
    compute an image depends on `n` alone, so that a run that goes on makes the bits of an undisturbed one.
    `count` is told of images as they are made, and `done` of each shard that is whole in the store. Raises
    what the sampler, the extractors and the store raise; what was written stays. At the end the pipeline,
    torch's threads and its precision are as they were.
    """
    from pytest_sdbench.evaluation.sampler import Sampler, draws_singly

    tuning, single = setup.tuning, draws_singly(setup.pipeline, protocol)
    run = _Run(
        evidence,
        protocol,
        setup,
        count,
        done,
        gaps,
        batch_size=1 if single else tuning.batch_size or default_batch_size(protocol, setup.device),
        chunk=default_decoding(protocol, setup.device),
    )
    if isinstance(protocol.seeds, SequentialSeeds):
        tuning = replace(tuning, channels_last=False)  # the bits of the published loop
    workers = worker_count(protocol, n, setup.device, tuning)
    if tuning.keep_memory:
        keep_memory()

    def sampler() -> Sampler:
        return Sampler(setup.pipeline, protocol, prompts, remember_text=tuning.remember_text)

    with (
        arranged(setup.pipeline, tuning, full_batch=run.batch_size, images=n),
        true_float32(),
        shared_threads(workers) if setup.on_cpu else nullcontext(),
    ):
        started = time.monotonic()
        _in_workers(workers, run, sampler)
        return Work(run.made, time.monotonic() - started)


@dataclass(eq=False)
class _Run:
    """What the workers of a run share."""

    evidence: Evidence
    protocol: Protocol
    setup: Setup
    count: Callable[[int], object]
    done: Callable[[range], object]
    wanted: Iterator[Gap]
    batch_size: int
    chunk: int
    """Pictures that the VAE decodes at a time."""
    made: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def gaps(self) -> Iterator[Gap]:
        """Yield the gaps that fall to one worker."""
        while not self.stop.is_set():
            with self.lock:
                gap = next(self.wanted, None)
            if gap is None:
                return
            yield gap

    def add(self, images: int) -> None:
        """Count images that are made."""
        with self.lock:
            self.made += images
            self.count(images)


def _in_workers(workers: int, run: _Run, sampler: Callable[[], Sampler]) -> None:
    """Have so many threads make shards, each with a sampler of its own; the first error ends them all."""

    if workers == 1:
        _work(run, sampler())
        return
    with ThreadPoolExecutor(workers, "sdbench-worker") as pool:
        try:
            for done in as_completed([pool.submit(_work, run, sampler()) for _ in range(workers)]):
                done.result()
        except BaseException:
            run.stop.set()
            raise


def _work(run: _Run, sampler: Sampler) -> None:
    """Make shards until there are none left."""
    with _Finisher(run, sampler) as finisher:
        for gap in run.gaps():
            left = list(gap.images)
            while left and not run.stop.is_set():
                latents = _draw(run, sampler, left)
                left = left[len(latents.indices) :]
                finisher.take(latents, gap)


def _draw(run: _Run, sampler: Sampler, left: Sequence[int]) -> Latents:
    """Draw the next batch, of half as many images whenever memory runs out."""
    wanted = min(run.batch_size, len(left))
    latents, size = halve_to_fit(lambda size: sampler.draw(left[:size]), wanted, run.setup.device)
    if size < wanted:
        run.batch_size = min(run.batch_size, size)
    return latents


class _Finisher:
    """Turns a worker's latents into rows and shards: at once, or in a thread beside it."""

    def __init__(self, run: _Run, sampler: Sampler) -> None:
        self._run, self._sampler = run, sampler
        self._rows: list[Rows] = []
        self._batches: list[Batch] = []
        """Those whose pictures are to be kept."""
        self._measured: tuple[Gap, Extractors, Beside | None] | None = None
        self._broken = False
        self._waiting: deque[Future[None]] = deque()
        overlaps = run.setup.tuning.overlap
        if overlaps is None:
            overlaps = not run.setup.on_cpu
        self._beside = ThreadPoolExecutor(1, "sdbench-finisher") if overlaps else None
        # Pillow lets go of the interpreter: pictures go through codec and resize side by side.
        self._codec = ThreadPoolExecutor(8, "sdbench-codec") if overlaps and run.protocol.image else None

    def __enter__(self) -> _Finisher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            for pool in (self._beside, self._codec):
                if pool is not None:
                    pool.shutdown(cancel_futures=True)

    def take(self, latents: Latents, gap: Gap) -> None:
        """Finish a batch of the shard that fills a gap; the last one completes it."""
        if self._beside is None:
            self._finish(latents, gap)
            return
        self._waiting.append(self._beside.submit(self._finish, latents, gap))
        if len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def _finish(self, latents: Latents, gap: Gap) -> None:
        if self._broken:  # a batch before this one is lost: its shard cannot become whole
            return
        self._broken = True
        run, wanted = self._run, min(self._run.chunk, len(latents.indices))
        batch, chunk = halve_to_fit(
            lambda chunk: self._sampler.decode(latents, chunk), wanted, run.setup.device
        )
        if chunk < wanted:
            run.chunk = chunk
        extractors, references = self._measuring(gap)
        part = slice(int(batch.indices[0]) - gap.images.start, int(batch.indices[-1]) + 1 - gap.images.start)
        beside = None if references is None else references.images[part]
        rows = extractors.extract(self._through_codec(batch.images), batch.prompts, beside)
        own = {"seed": batch.seeds, "blacked_out": batch.blacked_out, "truncated": batch.truncated}
        self._rows.append({**rows, **own})
        if gap.keeps:
            self._batches.append(batch)
        if latents.indices[-1] == gap.images[-1]:
            self._write(gap)
        run.add(len(latents.indices))
        self._broken = False

    def _measuring(self, gap: Gap) -> tuple[Extractors, Beside | None]:
        """Return the extractors that fill a gap, and what paired ones compare its pictures with."""
        if self._measured is None or self._measured[0] != gap:
            run = self._run
            extractors = run.setup.extractors
            if run.evidence.columns:
                extractors = extractors.only(gap.columns)
            references = references_of(run.setup.reference, run.protocol, extractors, gap.images)
            self._measured = gap, extractors, references
        return self._measured[1:]

    def _write(self, gap: Gap) -> None:
        """Write the shard whose batches are all finished."""
        (rows, self._rows), (batches, self._batches) = (self._rows, []), (self._batches, [])
        shard = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
        pictures = None
        if gap.keeps:
            pictures = Pictures(
                np.concatenate([batch.indices for batch in batches]),
                np.concatenate([batch.seeds for batch in batches]),
                tuple(prompt for batch in batches for prompt in batch.prompts),
                np.concatenate([batch.images for batch in batches]),
            )
        wanted, beside = gap.rows or gap.columns, self._measuring(gap)[1]
        drawn_with = None if beside is None else beside.drawn_with
        if not wanted:
            shard = {}
        self._run.evidence.write(gap.images.start, shard, pictures=pictures, reference=drawn_with)
        self._run.done(gap.images)

    def _through_codec(self, images: Images) -> Images:
        steps = self._run.protocol.image
        if self._codec is None:
            return apply_image_steps(images, steps)
        walked = self._codec.map(lambda image: apply_image_steps(image[None], steps), images)
        return np.concatenate(list(walked))
