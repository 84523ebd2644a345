"""Judge what a card claims or has recorded of its network: size, compute, speed and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_sdbench.base.environment import device_name, timed_on, versions
from pytest_sdbench.base.errors import Unavailable
from pytest_sdbench.cards.card import Card, MemoryClaim
from pytest_sdbench.cards.records import EAGER_LATENCY, DeviceRecord
from pytest_sdbench.gate.hardware import (
    judge_compute,
    judge_count,
    judge_latency,
    judge_memory,
    judge_recorded_latency,
    judge_speed,
    worst,
)
from pytest_sdbench.gate.verdict import Verdict, uncalibrated
from pytest_sdbench.models.latency import Ratio

COMPONENTS = {
    "unet": "U-Net",
    "text_encoder": "text encoder",
    "image_decoder": "image decoder",
    "whole": "whole",
}
"""What is counted, as it is called in a verdict."""


@dataclass(frozen=True)
class Place:
    """Where a call was timed: a torch device and a precision."""

    device: str
    dtype: str

    def of(self, claim: str) -> bool:
        """Return whether a claim that names this device, or none, is of this place."""
        return claim in ("", device_name(self.device))

    def record(self, card: Card) -> DeviceRecord | None:
        """Return what the card has recorded of this place."""
        return card.recorded_on(timed_on(self.device), self.dtype)


def judge_size(card: Card, component: str, counts: Mapping[str, int]) -> Verdict:
    """Judge the parameters of a component by the exact count; the published one is rounded and only shown.

    Raises Unavailable for a component that could not be counted.
    """
    label, claim = COMPONENTS[component], card.size.get(component)
    if component not in counts:
        raise Unavailable(
            f"the card's U-Net alone does not say what its {label} is",
            file=card.path,
            key="sdbench.architecture",
            remedy=f"Give the checkpoint: --sdbench-weights {card.name}=FOLDER",
        )
    if claim is None or claim.exact is None:
        return uncalibrated(f"{label}: {counts[component]:,} parameters; no exact count is claimed")
    return judge_count(label=label, claimed=claim.exact, measured=counts[component])


def judge_macs(card: Card, measured: int) -> Verdict:
    """Judge the multiply-accumulates of one U-Net call by the card's claim."""
    if card.unet_macs is None:
        return uncalibrated(f"{measured / 1e9:,.4g} G MACs a call; none are claimed")
    return judge_compute(claimed=card.unet_macs, measured=measured)


def judge_timing(card: Card, latency: Ratio, place: Place) -> Verdict:
    """Judge a latency as a ratio to the baseline's, and by what is claimed or recorded of this place."""
    claim, ratio = card.speed, latency.ratio
    shown = f"{latency.candidate_median:.3g} s a call"
    if latency.identical:
        shown += ", the architecture of the baseline"
    if ratio is None:
        verdict = uncalibrated(f"{shown}; the card names no baseline to compare it with")
    elif claim is None:
        verdict = uncalibrated(f"{shown}, {ratio:.3f} of the baseline's; the card claims no ratio")
    else:
        verdict = judge_speed(
            label=shown,
            largest=claim.max,
            ratio=ratio,
            seconds=latency.seconds,
            baseline_seconds=latency.baseline_seconds,
        )
    absolute = judge_latency_of(card, latency.seconds, place)
    return verdict if absolute is None else worst(verdict, absolute)


def largest_ratio(card: Card, place: Place) -> float | None:
    """Return the largest ratio to the baseline's latency that a card allows; None if seconds count, too."""
    seconds = card.latency is not None or place.record(card) is not None
    return None if seconds or card.speed is None else card.speed.max


def judge_latency_of(card: Card, seconds: Sequence[float], place: Place) -> Verdict | None:
    """Judge an absolute latency by what the card claims or has recorded of this place, and of no other.

    None where the card has neither.
    """
    claim, record = card.latency, place.record(card)
    if claim is not None and place.of(claim.device) and claim.dtype in ("", place.dtype):
        return judge_latency(claimed=claim.max, seconds=seconds)
    if record is not None:
        verdict = judge_recorded_latency(recorded=record.seconds, seconds=seconds)
        if then := {name: made for name, made in record.versions.items() if made != versions().get(name)}:
            listed = ", ".join(f"{name} {made}" for name, made in then.items())
            verdict = replace(verdict, reason=f"{verdict.reason}; it was recorded with {listed}")
        return verdict
    if claim is not None:
        where = ", ".join(part for part in (claim.device, claim.dtype) if part)
        of = f"{claim.max:.4g} s a call are claimed of {where}"
    elif places := [f"{each.device}, {each.dtype}" for each in card.devices if each.key[2:] == EAGER_LATENCY]:
        of = f"a latency is recorded of {'; '.join(places)}"
    else:
        return None
    return uncalibrated(f"{of}; this is {timed_on(place.device)}, {place.dtype}")


def memory_claim(card: Card, place: Place) -> MemoryClaim | None:
    """Return what a peak is judged by: the card's claim, or its record where the claim is of elsewhere."""
    claim, record = card.memory, place.record(card)
    own = claim is not None and place.of(claim.device) and claim.dtype in ("", place.dtype)
    if not own and record is not None and record.peak_bytes is not None:
        return MemoryClaim(record.peak_bytes)
    return claim


def judge_peak(claim: MemoryClaim | None, peak: int, place: Place) -> Verdict:
    """Judge the peak memory of one U-Net call, in bytes, by a claim of the same device."""
    shown = f"{peak / 2**20:,.0f} MiB at the peak of one U-Net call"
    if claim is None:
        return uncalibrated(f"{shown}; none is claimed")
    if not place.of(claim.device):
        return uncalibrated(f"{shown}; the claim is of {claim.device}")
    if claim.dtype not in ("", place.dtype):
        return uncalibrated(f"{shown} in {place.dtype}; the claim is of {claim.dtype}")
    return judge_memory(claimed=claim.max, measured=peak)
