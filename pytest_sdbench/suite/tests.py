"""The tests that every card runs: ordinary functions, spread over the card's claims.

A test measures, asks the gate for a verdict and files it. It passes, fails, or is skipped with a reason and
the command that would make it run. Nothing is asserted that was not claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.base.paths import told
from pytest_sdbench.cards.card import Card
from pytest_sdbench.cards.cases import Case, quality_cases
from pytest_sdbench.cards.network import Network
from pytest_sdbench.gate import network
from pytest_sdbench.gate.quality import Judgement, beside, incomparable
from pytest_sdbench.gate.verdict import noted
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import count_prompts
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.suite.collection import card_of
from pytest_sdbench.suite.overrides import PlainPipeline, dtype_name
from pytest_sdbench.suite.rows import claim_figures
from pytest_sdbench.suite.session import SdbenchSession

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.evaluate import Evaluation
    from pytest_sdbench.models.checkpoint import Checkpoint
    from pytest_sdbench.models.latency import Ratio
    from pytest_sdbench.protocols.protocol import Protocol

Conclude = Callable[..., None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Spread a test over the components or the claims of its card."""
    module = card_of(metafunc.definition)
    assert module is not None
    if "sdbench_component" in metafunc.fixturenames:
        metafunc.parametrize("sdbench_component", list(network.COMPONENTS))
    if "sdbench_case" in metafunc.fixturenames:
        cases = quality_cases(module.card)
        metafunc.parametrize("sdbench_case", cases, ids=[case.id for case in cases])
    if "sdbench_protocol" in metafunc.fixturenames:
        names = {case.protocol for case in quality_cases(module.card) if case.protocol}
        none = pytest.param("", marks=pytest.mark.skip(reason="the card states no protocol"))
        metafunc.parametrize("sdbench_protocol", sorted(names) or [none])
    if metafunc.function is test_speed and metafunc.config.getoption("benchmark_only", False):
        # `--benchmark-only` knows a benchmark by the fixture that it asks for.
        metafunc.fixturenames.append("benchmark")


@pytest.mark.size
def test_size(
    sdbench_component: str, sdbench_card: Card, sdbench_network: Network, sdbench_conclude: Conclude
) -> None:
    """Count parameters and compare the exact figure; the published one is rounded and only shown."""
    from pytest_sdbench.models.counts import component_sizes

    counts = component_sizes(sdbench_network.checkpoint or sdbench_network.unet)
    component, notes = sdbench_component, sdbench_network.notes
    verdict, claim = network.judge_size(sdbench_card, component, counts), sdbench_card.size.get(component)
    sdbench_conclude(
        noted(verdict, notes),
        claimed=claim.exact if claim else None,
        claimed_text=claim.published_text if claim and claim.published_text else "",
        measured=float(counts[component]),
        unit="parameters",
        extra={"notes": list(notes)} if notes else {},
    )


@pytest.mark.compute
def test_compute(sdbench_card: Card, sdbench_network: Network, sdbench_conclude: Conclude) -> None:
    """Count the multiply-accumulates of one U-Net call, attention included."""
    from pytest_sdbench.models.counts import unet_macs

    macs, notes = unet_macs(sdbench_network.unet), sdbench_network.notes
    sdbench_conclude(
        noted(network.judge_macs(sdbench_card, macs.total), notes),
        claimed=sdbench_card.unet_macs,
        measured=float(macs.total),
        unit="MACs",
        extra={"without_attention": float(macs.conv_linear)} | ({"notes": list(notes)} if notes else {}),
    )


@pytest.mark.speed
def test_speed(
    sdbench_card: Card,
    sdbench_time: Callable[[float | None], Ratio],
    sdbench_device: str,
    sdbench_dtype: str,
    sdbench_environment: Mapping[str, Any],
    sdbench_conclude: Conclude,
) -> None:
    """Time one U-Net call beside the baseline's, interleaved, and judge the ratio."""
    dtype = dtype_name(sdbench_dtype)
    claim, place = sdbench_card.speed, network.Place(str(sdbench_device), dtype)
    latency = sdbench_time(network.largest_ratio(sdbench_card, place))
    sdbench_conclude(
        network.judge_timing(sdbench_card, latency, place),
        claimed=claim.max if claim else None,
        measured=latency.ratio,
        unit="of the baseline",
        extra={**sdbench_environment, "dtype": dtype, **latency.as_dict()},
    )


@pytest.mark.memory
def test_memory(
    sdbench_card: Card,
    sdbench_network: Network,
    sdbench_device: str,
    sdbench_dtype: str,
    sdbench_environment: Mapping[str, str],
    sdbench_conclude: Conclude,
) -> None:
    """Measure the peak memory of one U-Net call."""
    import torch

    from pytest_sdbench.models.latency import peak_memory

    device, dtype = str(sdbench_device), dtype_name(sdbench_dtype)
    peak = peak_memory(sdbench_network.timed, device=device, dtype=getattr(torch, dtype))
    place = network.Place(device, dtype)
    claim = network.memory_claim(sdbench_card, place)
    sdbench_conclude(
        network.judge_peak(claim, peak, place),
        claimed=claim.max if claim else None,
        measured=float(peak),
        unit="bytes",
        extra={**sdbench_environment, "dtype": dtype},
    )


@pytest.mark.quality
def test_calibration(
    sdbench_protocol: str,
    sdbench_session: SdbenchSession,
    sdbench_card: Card,
    sdbench_weights: Path | None,
    sdbench_checkpoint: Checkpoint,
    sdbench_pipeline: Callable[[str], Any],
    sdbench_evaluate: Callable[..., Evaluation],
    sdbench_conclude: Conclude,
) -> None:
    """Run the checkpoint with other seeds, judge each run by the others, and record how they scatter."""
    from pytest_sdbench.gate.calibration import calibrate, calibrator, check_calibration, record_calibration

    if sdbench_weights is not None:
        raise Unavailable(
            "a protocol is calibrated with the card's own checkpoint",
            key="--sdbench-weights",
            remedy="Leave the option out",
        )
    drawn = load_protocol(sdbench_protocol, search=(sdbench_card.path.parent,))
    runs = sdbench_session.settings.calibrate
    assert runs is not None
    fingerprint = sdbench_checkpoint.fingerprint if isinstance(sdbench_pipeline, PlainPipeline) else ""
    check_calibration(drawn, calibrator(sdbench_card, fingerprint), runs)
    verdict, path = record_calibration(drawn, calibrate(sdbench_card, drawn, sdbench_evaluate, runs))
    extra = {} if path is None else {"recorded_in": told(path)}
    sdbench_conclude(verdict, protocol=sdbench_protocol, n=drawn.n, extra=extra)


@pytest.mark.quality
def test_quality(
    sdbench_case: Case,
    sdbench_card: Card,
    sdbench_baseline: Card | None,
    sdbench_weights: Path | None,
    sdbench_judge: Callable[[Case, Protocol], Judgement],
    sdbench_conclude: Conclude,
) -> None:
    """Score the checkpoint under the claim's protocol and judge the score by the claim."""
    case, search = sdbench_case, (sdbench_card.path.parent,)
    protocol = load_protocol(case.protocol, search=search) if case.protocol else None
    figures, verdict = claim_figures(case, protocol), incomparable(case, protocol)
    if protocol is None or verdict is not None:
        # Nothing is measured, and no checkpoint is needed, for what cannot be compared.
        sdbench_conclude(verdict, **figures)
        return
    judgement = sdbench_judge(case, protocol)
    extra = _extra(case.metric, judgement)
    if sdbench_weights is not None:
        extra["instead"] = told(sdbench_weights)
    if sdbench_baseline is not None and (less := beside(sdbench_baseline, protocol, judgement)) is not None:
        extra["beside"] = {
            "card": sdbench_baseline.name,
            "difference": less.value,
            "standard_error": less.standard_error,
        }
    figures |= {"n": judgement.evaluation.n, "margin": judgement.margin, "extra": extra}
    if isinstance(judgement.estimate, Estimate):
        figures |= {"measured": judgement.measured, "standard_error": judgement.estimate.standard_error}
    sdbench_conclude(judgement.verdict, **figures)


def _extra(metric: str, judgement: Judgement) -> dict[str, Any]:
    """Return what explains a score, for reports: where it comes from, and what the verdict rests on."""
    evaluation, estimate = judgement.evaluation, judgement.estimate
    extra = evaluation.provenance() | dict(judgement.verdict.figures)
    extra["torch_device"] = evaluation.torch_device
    extra["score_fingerprint"] = evaluation.protocol.only(metric).fingerprint
    if evaluation.reference is not None and METRICS[metric].reads == "pair":
        extra["reference"] = evaluation.reference.spec
        extra["reference_fingerprint"] = evaluation.reference.fingerprint
    if evaluation.checkpoint_fingerprint:  # a pipeline of one's own draws into a store of this run
        extra["draw_fingerprint"] = evaluation.draw_fingerprint
    if (scores := judgement.images) is not None:
        extra["first"] = [each.to_dict() for each in scores.first]
        if worst := scores.worst:
            extra["worst"] = [each.to_dict() for each in worst]
    if isinstance(estimate, Estimate) and estimate.corrected is not None:
        extra["without_bias"] = estimate.corrected
    if evaluation.groups is not None:
        extra["prompts"] = count_prompts(evaluation.n, evaluation.groups)
    early = evaluation.n < evaluation.requested
    if early and isinstance(estimate, Estimate) and judgement.measured not in (None, estimate.value):
        extra["predicted_for"] = evaluation.requested
    return extra
