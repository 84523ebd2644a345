"""Make the images that a store lacks, as fast as the hardware allows.

On a CPU several workers, each a thread that computes in one thread, make a shard each: a small network gives
several cores too little to do together. On an accelerator one worker keeps the device busy with the
U-Net, while a thread beside it decodes, encodes, measures and writes what was drawn before. Shards lie on a
fixed grid and batches do not cross it, so an image's neighbours depend on neither kills nor workers: the
evidence is the same to the bit. Another batch size or memory layout rounds otherwise: less than a hundredth
of the bytes of a picture move, by at most 2 of 255, and scores by less than a ten-thousandth.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_sdbench.base.environment import out_of_memory, shared_threads, true_float32
from pytest_sdbench.evaluation.tuning import Tuning, _keep_memory, arrange, default_batch_size, worker_count
from pytest_sdbench.features.extractors import Extractors
from pytest_sdbench.protocols.image_steps import Images, apply_image_steps
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.store.shards import SHARD, Evidence, Rows

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.sampler import Drawn, Sampler


_DECODED = 1 << 16
"""Pixels that a CPU decodes at a time: what the decoder makes of more does not fit its caches."""


_AHEAD = 2
"""Batches that may wait to be decoded: a device is never idle then, and memory stays bounded."""


def make(
    evidence: Evidence,
    protocol: Protocol,
    prompts: Sequence[str],
    work: Iterator[range],
    *,
    n: int,
    pipeline: Any,
    extractors: Extractors,
    device: str = "cpu",
    tuning: Tuning | None = None,
    count: Callable[[int], object] = lambda images: None,
) -> int:
    """Make the shards that `work` yields, write each when it is whole, and return the number of images.

    `n` is the number of images of the whole run, of which `work` yields the missing ones: how many threads
    compute an image depends on `n` alone, so that a run that goes on makes the bits of an undisturbed one.
    `count` is told of images as they are made. Raises what the sampler, the extractors and the store raise;
    what was written stays.
    """
    from pytest_sdbench.evaluation.sampler import Sampler, draws_singly

    tuning = tuning or Tuning()
    run = _Run(evidence, protocol, extractors, tuning, device, count, work)
    run.batch_size = tuning.batch_size or default_batch_size(protocol, device)
    if draws_singly(pipeline, protocol):
        run.batch_size = 1
    if device.startswith("cpu"):
        run.chunk = max(1, _DECODED // protocol.sampling.resolution**2)
    arrange(pipeline, tuning, full_batch=run.batch_size, images=n)
    workers = worker_count(protocol, n, device, tuning)

    def worker() -> None:
        try:
            _work(run, Sampler(pipeline, protocol, prompts, remember_text=tuning.remember_text))
        except BaseException:
            run.stop.set()
            raise

    started = time.monotonic()
    if tuning.keep_memory:
        _keep_memory()
    with true_float32(), shared_threads(workers) if device.startswith("cpu") else contextlib.nullcontext():
        if workers == 1:
            worker()
        else:
            with ThreadPoolExecutor(workers, "sdbench-worker") as pool:
                running = [pool.submit(worker) for _ in range(workers)]
                try:
                    for done in as_completed(running):
                        done.result()
                except BaseException:
                    run.stop.set()
                    raise
    if run.made:
        evidence.keep_pace((time.monotonic() - started) / run.made)
    return run.made


@dataclass(eq=False)
class _Run:
    """What the workers of a run share."""

    evidence: Evidence
    protocol: Protocol
    extractors: Extractors
    tuning: Tuning
    device: str
    count: Callable[[int], object]
    work: Iterator[range]
    batch_size: int = 1
    chunk: int = SHARD
    """Pictures that the VAE decodes at a time."""
    made: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def overlap(self) -> bool:
        wanted = self.tuning.overlap
        return not self.device.startswith("cpu") if wanted is None else wanted

    def shards(self) -> Iterator[range]:
        """Yield the shards that fall to one worker."""
        while not self.stop.is_set():
            with self.lock:
                images = next(self.work, None)
            if images is None:
                return
            yield images

    def add(self, images: int) -> None:
        with self.lock:
            self.made += images
            self.count(images)


def _work(run: _Run, sampler: Sampler) -> None:
    """Make shards until there are none left."""
    with _Finisher(run, sampler) as finisher:
        for images in run.shards():
            left = list(images)
            while left and not run.stop.is_set():
                drawn = _draw(run, sampler, left)
                left = left[len(drawn.indices) :]
                finisher.take(drawn, images)


def _draw(run: _Run, sampler: Sampler, left: Sequence[int]) -> Drawn:
    """Draw the next batch, of half as many images whenever memory runs out."""
    while True:
        size = min(run.batch_size, len(left))
        try:
            return sampler.draw(left[:size])
        except RuntimeError as error:
            if size == 1 or not out_of_memory(error):
                raise
        run.batch_size = min(run.batch_size, math.ceil(size / 2))
        _free(run.device)


class _Finisher:
    """Turns what a worker has drawn into rows and shards: at once, or in a thread beside it."""

    def __init__(self, run: _Run, sampler: Sampler) -> None:
        self._run, self._sampler = run, sampler
        self._parts: list[Rows] = []
        self._broken = False
        self._waiting: deque[Future[None]] = deque()
        self._beside = ThreadPoolExecutor(1, "sdbench-finisher") if run.overlap else None
        # Pillow lets go of the interpreter: pictures go through codec and resize side by side.
        self._codec = ThreadPoolExecutor(8, "sdbench-codec") if run.overlap and run.protocol.image else None

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

    def take(self, drawn: Drawn, images: range) -> None:
        """Finish a batch of the shard of these images; the last one completes it."""
        if self._beside is None:
            self._finish(drawn, images)
            return
        self._waiting.append(self._beside.submit(self._finish, drawn, images))
        if len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def _finish(self, drawn: Drawn, images: range) -> None:
        if self._broken:  # a batch before this one is lost: its shard cannot become whole
            return
        self._broken = True
        self._add(drawn, images)
        self._broken = False

    def _add(self, drawn: Drawn, images: range) -> None:
        run = self._run
        batch = self._decode(drawn)
        self._parts.append(
            {
                **run.extractors.extract(self._through_codec(batch.images), batch.prompts),
                "seed": batch.seeds,
                "blacked_out": batch.blacked_out,
                "truncated": batch.truncated,
            }
        )
        if drawn.indices[-1] == images[-1]:
            parts, self._parts = self._parts, []
            shard = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            run.evidence.write(images.start, shard)
        run.add(len(drawn.indices))

    def _decode(self, drawn: Drawn) -> Any:
        while True:
            chunk = min(self._run.chunk, len(drawn.indices))
            try:
                return self._sampler.decode(drawn, chunk)
            except RuntimeError as error:
                if chunk == 1 or not out_of_memory(error):
                    raise
            self._run.chunk = math.ceil(chunk / 2)
            _free(self._run.device)

    def _through_codec(self, images: Images) -> Images:
        steps = self._run.protocol.image
        if self._codec is None:
            return apply_image_steps(images, steps)
        walked = self._codec.map(lambda image: apply_image_steps(image[None], steps), images)
        return np.concatenate(list(walked))


def _free(device: str) -> None:
    """Give back what the failed batch took."""
    import gc

    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
