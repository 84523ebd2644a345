"""Fixtures of the suite; a team overrides any of them in its own conftest.py.

Every name starts with ``sdbench_``, so that no fixture of a project is taken over by accident. Heavy
modules are imported inside, when a test asks for what they make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from pytest_sdbench.base.errors import SdbenchError, Unavailable
from pytest_sdbench.base.text import plain
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import Card, baseline_of
from pytest_sdbench.cards.cases import Case
from pytest_sdbench.cards.network import (
    Network,
    baseline_checkpoint,
    candidate_remedy,
    checkpoint_of,
    named_network,
    network_of,
)
from pytest_sdbench.suite.collection import CardModule, card_of
from pytest_sdbench.suite.overrides import PlainPipeline, dtype_name, loader
from pytest_sdbench.suite.references import compared_protocols, reference_card
from pytest_sdbench.suite.rows import conclude
from pytest_sdbench.suite.session import SdbenchSession

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.evaluate import Evaluation
    from pytest_sdbench.gate.quality import Judgement
    from pytest_sdbench.models.checkpoint import Checkpoint
    from pytest_sdbench.models.latency import Ratio
    from pytest_sdbench.protocols.protocol import Protocol


T = TypeVar("T")


def _once(done: dict[Any, T | SdbenchError], key: object, make: Callable[[], T]) -> T:
    """Return what was made, or raise what prevented it: no claim tries again what failed for another."""
    if key not in done:
        try:
            done[key] = make()
        except SdbenchError as error:
            done[key] = error
    found = done[key]
    if isinstance(found, SdbenchError):
        raise found
    return found


@pytest.fixture(scope="session")
def sdbench_session(pytestconfig: pytest.Config) -> SdbenchSession:
    """Return this run: its settings and results."""
    session = pytestconfig.pluginmanager.get_plugin("sdbench-session")
    assert isinstance(session, SdbenchSession)
    return session


@pytest.fixture(scope="module")
def sdbench_card(request: pytest.FixtureRequest) -> Card:
    """Return the card that is being tested."""
    return _module(request).card


def _module(request: pytest.FixtureRequest) -> CardModule:
    module = card_of(request.node)
    if module is None:
        raise pytest.UsageError(f"{request.node.nodeid}: the sdbench fixtures belong to the tests of a card")
    return module


@pytest.fixture(scope="module")
def sdbench_baseline(sdbench_card: Card) -> Card | None:
    """Return the card that this card is compared with, or None."""
    return baseline_of(sdbench_card)


@pytest.fixture(scope="session")
def sdbench_device(sdbench_session: SdbenchSession) -> str:
    """Return the torch device of this process; under xdist the workers share out the GPUs."""
    from pytest_sdbench.base.environment import torch_device

    settings = sdbench_session.settings
    return torch_device(settings.device, option="--sdbench-device", part=settings.part)


@pytest.fixture(scope="session")
def sdbench_drawing_device(sdbench_session: SdbenchSession) -> Iterator[str]:
    """Return the torch device of the workers of a cluster, which live until the end of the run."""
    from pytest_sdbench.evaluation.executors import ray

    settings = sdbench_session.settings
    yield ray.cluster_of(settings.pool).device(settings.device)
    ray.close()


@pytest.fixture(scope="session")
def sdbench_data(sdbench_session: SdbenchSession) -> Path | None:
    """Return the data root (prompts, reference statistics, extractor weights), or None."""
    return sdbench_session.settings.data


@pytest.fixture(scope="session")
def sdbench_store(sdbench_session: SdbenchSession) -> Path | str:
    """Return the evidence store: a folder, or an fsspec URL."""
    return sdbench_session.settings.store


@pytest.fixture(scope="session")
def sdbench_pictures(request: pytest.FixtureRequest) -> Mapping[str, int]:
    """Return, by draw, of how many images the cards of this run compare the pictures one by one.

    Those of a teacher are kept when its own card is the first to draw them, and drawn once.
    """
    from pytest_sdbench.evaluation.job import compared_pictures

    session = request.getfixturevalue("sdbench_session")
    return compared_pictures(compared_protocols(session, request.session.items))


@pytest.fixture(scope="module")
def sdbench_weights(request: pytest.FixtureRequest, sdbench_session: SdbenchSession) -> Path | None:
    """Return the checkpoint that ``--sdbench-weights`` puts in the place of the card's own, or None."""
    module = _module(request)
    return sdbench_session.weights_for(module.path)


@pytest.fixture(scope="module")
def sdbench_checkpoint(
    sdbench_session: SdbenchSession, sdbench_card: Card, sdbench_weights: Path | None
) -> Checkpoint:
    """Return the verified checkpoint under test; skip with the remedy when it is not on this machine."""
    return checkpoint_of(sdbench_card, sdbench_weights, download=sdbench_session.settings.download)


@pytest.fixture(scope="module")
def sdbench_reference(
    sdbench_session: SdbenchSession,
    sdbench_card: Card,
    sdbench_baseline: Card | None,
    sdbench_weights: Path | None,
) -> Callable[[Protocol], Checkpoint]:
    """Return a function to the checkpoint whose pictures those under test are compared with, one by one.

    It is the card's own where another one stands in its place and the card claims nothing beside its
    baseline, else the baseline's. The function raises Unavailable where there is none.
    """

    def find(protocol: Protocol) -> Checkpoint:
        download = sdbench_session.settings.download
        if reference_card(sdbench_card, sdbench_weights, protocol) is sdbench_card:
            return checkpoint_of(sdbench_card, download=download)
        return baseline_checkpoint(sdbench_card, sdbench_baseline, protocol.name, download=download)

    return find


@pytest.fixture(scope="module")
def sdbench_network(
    request: pytest.FixtureRequest, sdbench_card: Card, sdbench_weights: Path | None
) -> Network:
    """Return the network under test: the checkpoint's where it is at hand, else the card's architecture."""
    try:
        checkpoint = request.getfixturevalue("sdbench_checkpoint")
    except Unavailable as error:
        if sdbench_weights is not None:
            raise  # a candidate was named: the card's architecture must not pass in its place
        return network_of(sdbench_card, None, error)
    return network_of(sdbench_card, checkpoint)


@pytest.fixture(scope="module")
def sdbench_baseline_network(
    sdbench_session: SdbenchSession, sdbench_baseline: Card | None
) -> Network | None:
    """Return the network that latency is compared with, or None if the card names no baseline."""
    if sdbench_baseline is None:
        return None
    return named_network(sdbench_baseline, download=sdbench_session.settings.download)


@pytest.fixture(scope="session")
def sdbench_latencies() -> dict[Any, Any]:
    """Return the timings of this session: one architecture is timed once, however many cards have it."""
    return {}


@pytest.fixture(scope="module")
def sdbench_pipeline(sdbench_checkpoint: Checkpoint, sdbench_device: str) -> Callable[[str], Any]:
    """Return a function from a dtype's name to the diffusers pipeline under test.

    Override it to test a pipeline that ``from_pretrained`` does not build. Called if images are missing.
    """
    return PlainPipeline(sdbench_checkpoint, str(sdbench_device))


@pytest.fixture(scope="module")
def sdbench_evaluate(
    request: pytest.FixtureRequest,
    sdbench_session: SdbenchSession,
    sdbench_card: Card,
    sdbench_checkpoint: Checkpoint,
    sdbench_pipeline: Callable[[str], Any],
    sdbench_device: str,
    sdbench_data: Path | None,
    sdbench_store: Path | str,
) -> Callable[..., Evaluation]:
    """Return a function that evaluates the checkpoint under a protocol, once for all claims.

    Called with a protocol, and with a number of images where not all of them are wanted.
    """
    from pytest_sdbench.evaluation.evaluate import evaluate
    from pytest_sdbench.evaluation.job import Extras
    from pytest_sdbench.gate.identity import recorded_changes

    settings = sdbench_session.settings
    # A pipeline of one's own has no fingerprint: its images are kept apart, for this run alone.
    plain = isinstance(sdbench_pipeline, PlainPipeline)
    draw = loader(sdbench_pipeline)
    pool = settings.pool if plain else None
    device = request.getfixturevalue("sdbench_drawing_device") if pool else str(sdbench_device)
    store = sdbench_store if plain else request.getfixturevalue("tmp_path_factory").mktemp("sdbench-store")
    dtype = None if settings.dtype == "auto" else settings.dtype
    who: dict[str, Any] = {"part": settings.part, "pool": pool}
    keep = settings.keep_images if plain else 0
    workspace = Workspace(store, sdbench_data, device, dtype, settings.download, keep_images=keep, **who)
    sdbench_session.places[sdbench_card.path] = sdbench_store, sdbench_data
    done: dict[tuple[str, str, int | None], Evaluation | SdbenchError] = {}
    load = None if plain else draw
    if settings.budget and not (plain and (pool or device == "cuda")):  # each worker has its own pipeline
        load = lru_cache(maxsize=1)(draw)  # a sequence comes back for more images

    def once(protocol: Protocol, samples: int | None = None) -> Evaluation:
        def make() -> Evaluation:
            find = partial(request.getfixturevalue("sdbench_reference"), protocol)
            later = request.getfixturevalue("sdbench_pictures").get(protocol.draw_fingerprint, 0)
            candidate = request.getfixturevalue("sdbench_weights")
            instead = "" if candidate else candidate_remedy(sdbench_card, protocol.name)
            with sdbench_session.visible_progress() as progress:
                found = evaluate(
                    sdbench_checkpoint,
                    protocol,
                    replace(workspace, progress=progress),
                    samples=samples or settings.samples,
                    max_images=settings.limit(device),
                    load=load,
                    extras=Extras(later=later, original=find, instead=instead, original_store=sdbench_store),
                )
            if not plain:
                return replace(found, checkpoint_fingerprint="")
            return replace(found, changes=recorded_changes(sdbench_card, sdbench_checkpoint, protocol.name))

        # Protocols may differ in name and margins alone, and what a claim is judged by has both.
        return _once(done, (protocol.name, protocol.fingerprint, samples), make)

    return once


@pytest.fixture(scope="module")
def sdbench_judgements() -> dict[Any, Any]:
    """Return the verdicts of this card by protocol: its claims are judged together, once."""
    return {}


@pytest.fixture
def sdbench_judge(
    request: pytest.FixtureRequest,
    sdbench_session: SdbenchSession,
    sdbench_card: Card,
    sdbench_data: Path | None,
    sdbench_judgements: dict[Any, Any],
) -> Callable[[Case, Protocol], Judgement]:
    """Return a function that judges a score under a protocol; the checkpoint is asked for when it is called.

    It raises Unavailable for a metric that cannot be computed here, before an image is made.
    """
    from pytest_sdbench.evaluation.evidence import NothingToMeasure
    from pytest_sdbench.gate.quality import check_metric, images_unclaimed, judge, judge_unclaimed

    budget = sdbench_session.settings.budget

    def evaluate(protocol: Protocol, samples: int | None) -> Evaluation:
        evaluation: Evaluation = request.getfixturevalue("sdbench_evaluate")(protocol, samples)
        return evaluation

    def claims(protocol: Protocol) -> Mapping[str, Judgement]:
        # A project's fixtures may be parametrized: what is judged is that of the evaluation of now.
        return _once(
            sdbench_judgements,
            (request.getfixturevalue("sdbench_evaluate"), protocol.name, protocol.fingerprint),
            lambda: judge(sdbench_card, protocol, partial(evaluate, protocol), budget),
        )

    def judged(case: Case, protocol: Protocol) -> Judgement:
        check_metric(sdbench_card, case, protocol, sdbench_data)
        try:
            return found(case, protocol)
        except NothingToMeasure as nothing:
            raise nothing.reasons.get(case.metric, nothing) from None

    def found(case: Case, protocol: Protocol) -> Judgement:
        if case.claim is not None:
            judgement = claims(protocol)[case.claim.id]
        else:
            samples = images_unclaimed(protocol, budget, partial(claims, protocol))
            judgement = judge_unclaimed(case.metric, protocol, evaluate(protocol, samples))
        if case.metric in judgement.evaluation.lacking:
            raise judgement.evaluation.lacking[case.metric]
        return judgement

    return judged


@pytest.fixture
def sdbench_time(
    request: pytest.FixtureRequest,
    sdbench_session: SdbenchSession,
    sdbench_card: Card,
    sdbench_network: Network,
    sdbench_baseline_network: Network | None,
    sdbench_device: str,
    sdbench_dtype: str,
    sdbench_latencies: dict[Any, Any],
) -> Callable[[float | None], Ratio]:
    """Return a function that times one U-Net call beside the baseline's, given the largest ratio allowed.

    It raises Unavailable where timing is switched off.
    """

    def time(largest: float | None = None) -> Ratio:
        import torch

        from pytest_sdbench.models.latency import Effort, measure_latency

        if not request.config.pluginmanager.has_plugin("benchmark"):
            raise Unavailable("timing needs pytest-benchmark", remedy="Run without -p no:benchmark")
        if request.config.getoption("benchmark_skip", False):
            raise Unavailable("timing is switched off", remedy="Run without --benchmark-skip")

        def benchmark() -> Any:
            found = request.getfixturevalue("benchmark")  # whose table is to say whose the times are
            found.name = plain(sdbench_session.names.get(sdbench_card.path, sdbench_card.name))
            return found

        with sdbench_session.visible_progress() as progress:
            return measure_latency(
                benchmark,
                sdbench_network.timed,
                sdbench_baseline_network.timed if sdbench_baseline_network else None,
                device=str(sdbench_device),
                dtype=getattr(torch, dtype_name(sdbench_dtype)),
                cache=sdbench_latencies,
                effort=Effort(largest=largest),
                progress=progress,
            )

    return time


@pytest.fixture
def sdbench_conclude(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that files a verdict with its figures, and passes, fails or skips the test."""
    return lambda verdict, **figures: conclude(request.node, verdict, **figures)


@pytest.fixture(scope="session")
def sdbench_dtype(sdbench_session: SdbenchSession, sdbench_device: str) -> str:
    """Return the precision of timings: float16 on CUDA, float32 elsewhere, or what the run was told."""
    asked = sdbench_session.settings.dtype
    if asked != "auto":
        return asked
    return "float16" if str(sdbench_device).startswith("cuda") else "float32"


@pytest.fixture(scope="session")
def sdbench_environment(sdbench_device: str) -> Mapping[str, Any]:
    """Return the device's name and the library versions, as they stand in reports and records."""
    from pytest_sdbench.base.environment import device_name, versions

    return {"device": device_name(str(sdbench_device)), "versions": versions()}
