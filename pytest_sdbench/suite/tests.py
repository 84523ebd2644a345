"""The tests that every card runs: ordinary functions, spread over the card's claims.

A test measures, asks ``verdict`` for a judgement and files it; it passes, fails, or is skipped with a
reason and the command that would make it run. Nothing is asserted that was not claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sdbench.base.environment import timed_on
from pytest_sdbench.base.errors import CardError, Unavailable
from pytest_sdbench.cards.card import Card, MemoryClaim
from pytest_sdbench.cards.cases import Case, other_protocol, quality_cases
from pytest_sdbench.cards.network import Network
from pytest_sdbench.features.references import reference_of
from pytest_sdbench.gate import hardware
from pytest_sdbench.gate import verdict as judges
from pytest_sdbench.gate.hardware import _judge_latency
from pytest_sdbench.gate.judge import Judged, _unclaimed, beside
from pytest_sdbench.gate.looks import looks
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.names import METRICS
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.suite.collection import card_of
from pytest_sdbench.suite.session import SdbenchSession

if TYPE_CHECKING:
    from pytest_sdbench.evaluation.evaluate import Evaluation

COMPONENTS = {
    "unet": "U-Net",
    "text_encoder": "text encoder",
    "image_decoder": "image decoder",
    "whole": "whole",
}

Conclude = Callable[..., None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Spread a test over the components or the claims of its card."""
    module = card_of(metafunc.definition)
    assert module is not None
    if "component" in metafunc.fixturenames:
        metafunc.parametrize("component", list(COMPONENTS))
    if "case" in metafunc.fixturenames:
        cases = quality_cases(module.card)
        metafunc.parametrize("case", cases, ids=[case.id for case in cases])
    if "protocol" in metafunc.fixturenames:
        names = {case.protocol for case in quality_cases(module.card) if case.protocol}
        metafunc.parametrize("protocol", sorted(names))
    if metafunc.function is test_speed and metafunc.config.getoption("benchmark_only", False):
        # `--benchmark-only` knows a benchmark by the fixture that it asks for.
        metafunc.fixturenames.append("benchmark")


@pytest.mark.size
def test_size(
    component: str, sdbench_card: Card, sdbench_network: Network, sdbench_conclude: Conclude
) -> None:
    """Count parameters and compare the exact figure; the published one is rounded and only shown."""
    from pytest_sdbench.models.counts import component_sizes

    counts = component_sizes(sdbench_network.checkpoint or sdbench_network.unet)
    label = COMPONENTS[component]
    if component not in counts:
        raise Unavailable(
            f"the card's U-Net alone does not say what its {label} is",
            file=sdbench_card.path,
            key="sdbench.architecture",
            remedy=f"Give the checkpoint: --sdbench-weights {sdbench_card.name}=FOLDER",
        )
    measured = counts[component]
    claim = sdbench_card.size.get(component)
    if claim is None or claim.exact is None:
        verdict = judges.uncalibrated(f"{label}: {measured:,} parameters; no exact count is claimed")
    else:
        verdict = hardware.judge_count(label=label, claimed=claim.exact, measured=measured)
    sdbench_conclude(
        verdict,
        claimed=claim.exact if claim else None,
        claimed_text=claim.published_text if claim and claim.published_text else "",
        measured=float(measured),
        unit="parameters",
    )


@pytest.mark.compute
def test_compute(sdbench_card: Card, sdbench_network: Network, sdbench_conclude: Conclude) -> None:
    """Count the multiply-accumulates of one U-Net call, attention included."""
    from pytest_sdbench.models.counts import unet_macs

    macs = unet_macs(sdbench_network.unet)
    claimed = sdbench_card.unet_macs
    if claimed is None:
        verdict = judges.uncalibrated(f"{macs.total / 1e9:,.4g} G MACs a call; none are claimed")
    else:
        verdict = hardware.judge_compute(claimed=claimed, measured=macs.total)
    sdbench_conclude(
        verdict,
        claimed=claimed,
        measured=float(macs.total),
        unit="MACs",
        extra={"without_attention": float(macs.conv_linear)},
    )


@pytest.mark.speed
def test_speed(
    request: pytest.FixtureRequest,
    sdbench_session: SdbenchSession,
    sdbench_card: Card,
    sdbench_network: Network,
    sdbench_baseline_network: Network | None,
    sdbench_device: str,
    sdbench_dtype: str,
    sdbench_latencies: dict[Any, Any],
    sdbench_environment: Mapping[str, Any],
    sdbench_conclude: Conclude,
) -> None:
    """Time one U-Net call beside the baseline's, interleaved, and judge the ratio."""
    import torch

    from pytest_sdbench.models.latency import measure_latency

    if not request.config.pluginmanager.has_plugin("benchmark"):
        raise Unavailable("timing needs pytest-benchmark", remedy="Run without -p no:benchmark")
    if request.config.getoption("benchmark_skip", False):
        raise Unavailable("timing is switched off", remedy="Run without --benchmark-skip")
    with sdbench_session.visible_progress() as progress:
        latency = measure_latency(
            lambda: request.getfixturevalue("benchmark"),
            sdbench_network.unet,
            sdbench_baseline_network.unet if sdbench_baseline_network else None,
            device=sdbench_device,
            dtype=getattr(torch, sdbench_dtype),
            cache=sdbench_latencies,
            progress=progress,
        )
    claim, ratio = sdbench_card.speed, latency.ratio
    shown = f"{latency.candidate_median:.3g} s a call"
    if latency.identical:
        shown += ", the architecture of the baseline"
    if ratio is None:
        verdict = judges.uncalibrated(f"{shown}; the card names no baseline to compare it with")
    elif claim is None:
        verdict = judges.uncalibrated(f"{shown}, {ratio:.3f} of the baseline's; the card claims no ratio")
    else:
        verdict = hardware.judge_speed(
            label=shown,
            largest=claim.max,
            ratio=ratio,
            seconds=latency.seconds,
            baseline_seconds=latency.baseline_seconds,
        )
    absolute = _judge_latency(
        sdbench_card,
        latency.seconds,
        str(sdbench_environment["device"]),
        timed_on(sdbench_device),
        sdbench_dtype,
    )
    if absolute is not None:
        verdict = hardware.worst(verdict, absolute)
    sdbench_conclude(
        verdict,
        claimed=claim.max if claim else None,
        measured=ratio,
        unit="of the baseline",
        extra={**sdbench_environment, "dtype": sdbench_dtype, **latency.as_dict()},
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

    peak = peak_memory(sdbench_network.unet, device=sdbench_device, dtype=getattr(torch, sdbench_dtype))
    shown = f"{peak / 2**20:,.0f} MiB at the peak of one U-Net call"
    claim = sdbench_card.memory
    record = sdbench_card.recorded_on(timed_on(sdbench_device), sdbench_dtype)
    elsewhere = claim is None or (claim.device and claim.device != sdbench_environment["device"])
    if elsewhere and record is not None and record.peak_bytes is not None:
        claim = MemoryClaim(record.peak_bytes)
    if claim is None:
        verdict = judges.uncalibrated(f"{shown}; none is claimed")
    elif claim.device and claim.device != sdbench_environment["device"]:
        verdict = judges.uncalibrated(f"{shown}; the claim is of {claim.device}")
    else:
        verdict = hardware.judge_memory(claimed=claim.max, measured=peak)
    sdbench_conclude(
        verdict,
        claimed=claim.max if claim else None,
        measured=float(peak),
        unit="bytes",
        extra={**sdbench_environment, "dtype": sdbench_dtype},
    )


@pytest.mark.quality
def test_calibration(
    protocol: str,
    sdbench_session: SdbenchSession,
    sdbench_card: Card,
    sdbench_weights: Path | None,
    sdbench_evaluate: Callable[..., Evaluation],
    sdbench_conclude: Conclude,
) -> None:
    """Run the checkpoint with other seeds, judge each run by the others, and record how they scatter."""
    from pytest_sdbench.gate.calibration import calibrate, write_calibration

    if sdbench_weights is not None:
        raise Unavailable(
            "a protocol is calibrated with the card's own checkpoint",
            key="--sdbench-weights",
            remedy="Leave the option out",
        )
    drawn = load_protocol(protocol, search=(sdbench_card.path.parent,))
    runs = sdbench_session.settings.calibrate
    assert runs is not None
    found = calibrate(sdbench_card, drawn, sdbench_evaluate, runs)
    verdict, extra = found.verdict(), {}
    if verdict.outcome is judges.Outcome.PASS:
        extra["recorded_in"] = str(write_calibration(drawn, found))
        verdict = judges.Verdict(verdict.outcome, f"{verdict.reason}; recorded in {extra['recorded_in']}")
    sdbench_conclude(verdict, protocol=protocol, n=drawn.n, extra=extra)


@pytest.mark.quality
def test_quality(
    case: Case,
    request: pytest.FixtureRequest,
    sdbench_card: Card,
    sdbench_baseline: Card | None,
    sdbench_conclude: Conclude,
) -> None:
    """Score the checkpoint under the claim's protocol and judge the score by the claim."""
    if not case.metric:
        nothing = (
            "no score is claimed; name protocols in sdbench.protocols, and --sdbench-update records theirs"
        )
        sdbench_conclude(judges.uncalibrated(nothing))
    claim = case.claim
    figures: dict[str, Any] = {"metric": case.metric, "protocol": case.protocol or "unstated"}
    if claim is not None:
        figures |= {
            "claimed": claim.value,
            "claimed_text": claim.text,
            "kind": claim.kind,
            "margin": claim.margin,
        }
    if case.protocol is None:
        reason = "not comparable: the source does not state the protocol of this figure"
        sdbench_conclude(judges.Verdict(judges.Outcome.MISMATCH, reason), **figures)
    protocol = load_protocol(str(case.protocol), search=(sdbench_card.path.parent,))
    if figures.get("margin") is None:
        figures["margin"] = protocol.margins.get(case.metric)
    if claim is not None and (other := other_protocol(claim, protocol)):
        sdbench_conclude(judges.mismatch(other), **figures)
    spec = protocol.metrics.get(case.metric)
    if spec is None:
        raise CardError(
            f"{protocol.name} has no {METRICS[case.metric].label}",
            file=sdbench_card.path,
            key=case.id,
            remedy=f"It has {', '.join(protocol.metrics)}; name another protocol, or remove the claim",
        )
    if spec.metric == "fid" or spec.metric == "kid":
        # No image is made for a metric that cannot be computed from it here.
        reference_of(protocol, spec, request.getfixturevalue("sdbench_data"))
    # Asked for here and not by argument: a claim that cannot be compared needs no checkpoint.
    if claim is None:
        few: int | None = None
        if (budget := request.getfixturevalue("sdbench_session").settings.budget) is not None:
            # What nothing is claimed of costs no image more than what the claims were decided by.
            looked = [
                each.evaluation.n for each in request.getfixturevalue("sdbench_judge")(protocol).values()
            ]
            n = max(looked, default=looks(protocol.n, budget)[0].n)
            few = n if n < protocol.n else None
        evaluation: Evaluation = request.getfixturevalue("sdbench_evaluate")(protocol, few)
        judged = _unclaimed(protocol, evaluation, case.metric)
    else:
        judged = request.getfixturevalue("sdbench_judge")(protocol)[claim.id]
        evaluation = judged.evaluation
    if case.metric in evaluation.lacking:
        raise evaluation.lacking[case.metric]
    extra = _extra(judged) | {"torch_device": request.getfixturevalue("sdbench_device")}
    if sdbench_baseline is not None and (less := beside(sdbench_baseline, protocol, judged)) is not None:
        extra["beside"] = {
            "card": sdbench_baseline.name,
            "difference": less.value,
            "standard_error": less.standard_error,
        }
    figures |= {"n": evaluation.n, "margin": judged.margin, "extra": extra}
    if isinstance(judged.estimate, Estimate):
        figures |= {"measured": judged.measured, "standard_error": judged.estimate.standard_error}
    sdbench_conclude(judged.verdict, **figures)


def _extra(judged: Judged) -> dict[str, Any]:
    """Return what explains a score, for reports: where it comes from, and what the verdict rests on."""
    extra = judged.evaluation.provenance() | dict(judged.verdict.figures)
    if isinstance(judged.estimate, Estimate) and judged.estimate.corrected is not None:
        extra["without_bias"] = judged.estimate.corrected
    if isinstance(judged.estimate, Estimate) and judged.measured not in (None, judged.estimate.value):
        extra["predicted_for"] = judged.evaluation.requested
    return extra
