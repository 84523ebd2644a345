"""Make shards with networks that stay loaded: what a worker does, whoever hands out the shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain
from typing import Any

from pytest_sdbench.evaluation.engine import NO_WORK, Setup, Work, make
from pytest_sdbench.evaluation.job import Job, check_number
from pytest_sdbench.evaluation.measuring import measure_kept
from pytest_sdbench.features.extractors import Extractors, open_extractors
from pytest_sdbench.protocols.prompts import load_prompts
from pytest_sdbench.store.gap import Gap
from pytest_sdbench.store.shards import Evidence


class Maker:
    """Extractors and pipeline of one job, on one device; the pipeline is loaded at the first image drawn."""

    def __init__(self, job: Job, evidence: Evidence | None = None) -> None:
        """Open what the job writes to, and find out whether it can; `evidence` is that, opened before."""
        self.job = job
        self.evidence = evidence or job.evidence()
        self.evidence.prepare()

    @cached_property
    def extractors(self) -> Extractors:
        """What measures the pictures."""
        job, workspace = self.job, self.job.workspace
        return open_extractors(
            job.protocol,
            columns=job.columns,
            data_root=workspace.data_root,
            device=workspace.device,
            download=workspace.download,
        )

    @cached_property
    def pipeline(self) -> Any:
        """What draws the pictures."""
        from pytest_sdbench.models.pipeline import load_pipeline

        job, dtype = self.job, self.job.protocol.sampling.dtype
        if job.load is not None:
            return job.load(dtype)
        return load_pipeline(job.checkpoint, device=job.workspace.device, dtype=dtype)

    def make(
        self,
        shards: Iterator[range],
        *,
        count: Callable[[int], object] = lambda images: None,
        done: Callable[[range], object] = lambda images: None,
    ) -> Work:
        """Make what lacks of some shards, and return what was drawn.

        Whoever yields a shard has lately listed the folder (`Evidence.left`). Columns are read off pictures
        that are kept, and what has none is drawn. `count` is told of images as they are made, `done` of each
        shard that is whole in the store. Raises what sampler, extractors and store raise; what was written
        stays.
        """
        job, evidence = self.job, self.evidence
        drawing = self._to_draw(shards, count, done)
        first = next(drawing, None)
        if first is None:
            return NO_WORK
        setup = Setup(self.pipeline, self.extractors, job.workspace.device, job.tuning, job.extras.reference)
        prompts = load_prompts(job.protocol, job.workspace.data_root)
        gaps, n = chain([first], drawing), job.protocol.n
        return make(evidence, job.protocol, prompts, gaps, setup, n=n, count=count, done=done)

    def _to_draw(
        self, shards: Iterator[range], count: Callable[[int], object], done: Callable[[range], object]
    ) -> Iterator[Gap]:
        """Yield what is to be drawn, having measured the pictures that are kept."""
        job, evidence = self.job, self.evidence
        planned = {gap.images for gap in job.gaps if gap.draws}
        for images in shards:
            gap = evidence.gap(images, last=True)
            extractors = self.extractors  # before the pipeline: what they lack is found sooner
            measured = bool(gap) and measure_kept(
                evidence, job.protocol, gap, extractors, reference=job.extras.reference
            )
            if gap and not measured and images not in planned:  # its pictures are damaged, and lack now
                check_number(evidence.gaps(job.protocol.n), job.most, job.protocol, evidence)
                gap = evidence.gap(images, last=True)
            if measured or not gap:
                count(len(images))
                done(images)
                continue
            yield gap
