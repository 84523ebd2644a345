"""Say which experiments there are: runs of training, or checkpoints, and how they are drawn from."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.family.members import spec
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import Scheduler


@dataclass(frozen=True)
class Draw:
    """One way to draw from a checkpoint: a protocol, and what it departs in."""

    label: str
    protocol: str = "scenes-quick"
    steps: int | None = None
    scheduler: Scheduler | None = None

    def of(self, samples: int) -> Protocol:
        """Return the protocol of this way to draw, with at most so many images."""
        protocol = load_protocol(self.protocol)
        changes = {"steps": self.steps, "scheduler": self.scheduler}
        sampling = protocol.sampling.model_copy(update={k: v for k, v in changes.items() if v is not None})
        return protocol.model_copy(update={"sampling": sampling}).with_samples(min(samples, protocol.n))


@dataclass(frozen=True)
class Run:
    """One training run, or a checkpoint that is there already."""

    label: str
    recipe: str | None = None
    overrides: tuple[str, ...] = ()
    stops: tuple[int, ...] = ()
    """Images after which the run is scored; the last one ends it."""
    checkpoint: str | dict[str, str] | None = None
    draws: tuple[Draw, ...] = (Draw("PNDM 25"),)


@dataclass(frozen=True)
class Experiment:
    """What is compared, and in whose miniature."""

    title: str
    source: str
    runs: tuple[Run, ...]
    notes: str = ""

    def places(self) -> list[tuple[Run, int, Draw]]:
        """Return what is scored, in order: a run, after how many images, and how it is drawn from."""
        return [(run, stop, draw) for run in self.runs for stop in run.stops or (0,) for draw in run.draws]


_GROWTH = (32_000, 64_000, 96_000, 128_000)
_BUDGET = ("schedule.steps=1000", "data.pairs=22565", "watch.validation_images=0")
_NO_OUTPUT, _NO_FEATURE = "objective.weights.output=0.0", "objective.weights.feature=0.0"
_RANDOM = "student.init=random"
_COMPONENTS: dict[str, tuple[str, ...]] = {
    "teacher weights, output and feature distillation": (),
    "teacher weights, output distillation": (_NO_FEATURE,),
    "teacher weights, feature distillation": (_NO_OUTPUT,),
    "teacher weights, no distillation": (_NO_OUTPUT, _NO_FEATURE),
    "random weights, output and feature distillation": (_RANDOM,),
    "random weights, no distillation": (_RANDOM, _NO_OUTPUT, _NO_FEATURE),
    "all of it, no caption dropped": ("objective.caption_dropout=0.0",),
}
# Its defaults cut latents off at 1, as if they were pixels, and with the teacher's spacing it would begin
# below the timestep of pure noise.
_DDIM = Scheduler(
    name="DDIMScheduler",
    config={"clip_sample": False, "timestep_spacing": "trailing", "steps_offset": 0},
)
_LCM_DRAWS = tuple(Draw(f"LCM {steps}", "scenes-lcm4-quick", steps) for steps in (1, 2, 4, 8))
_TINY_DRAWS = (
    Draw("PNDM 4", steps=4),
    Draw("PNDM 8", steps=8),
    Draw("PNDM 25"),
    *(Draw(f"DDIM {steps}", steps=steps, scheduler=_DDIM) for steps in (1, 2, 4, 8)),
)
_PORTRAIT_DRAWS = (Draw("one object", "scenes-portrait-quick"), Draw("all scenes"))

EXPERIMENTS = {
    "growing-data": Experiment(
        "Growing data: scenes-small on four numbers of pairs, 128,000 images each",
        "BK-SDM, ablation of the data size for Small: IS and CLIP improve over training with more pairs",
        tuple(
            Run(f"{size:,} pairs", "scenes-small", (f"data.pairs={size}", "schedule.steps=4000"), _GROWTH)
            for size in (532, 2128, 7092, 22565)
        ),
        "532 pairs seem too few: from 96,000 images on they lie behind all others, by one to two "
        "standard errors. More than 2,128 bring nothing that could be told apart.",
    ),
    "ablation": Experiment(
        "What helps: initialisation, output and feature distillation; scenes-small, 32,000 images",
        "BK-SDM, ablation of the components for Small",
        tuple(
            Run(label, "scenes-small", (*_BUDGET, *without), (32_000,))
            for label, without in _COMPONENTS.items()
        ),
        "The teacher's weights are worth most by far, then dropped captions, then distillation; "
        "output and feature distillation do nearly the same alone. A student with random weights "
        "has not got far in 32,000 images, with distillation or without. Guidance subtracts the "
        "prediction for the empty prompt, which a student without dropped captions is never shown.",
    ),
    "consistency": Experiment(
        "Few steps: scenes-tiny-lcm beside scenes-tiny",
        "LCM (Luo et al. 2023), and tiny-sd-lcm-6400",
        (
            Run("scenes-tiny-lcm", checkpoint=spec("scenes-tiny-lcm"), draws=_LCM_DRAWS),
            Run("scenes-tiny", checkpoint=spec("scenes-tiny"), draws=_TINY_DRAWS),
        ),
        "Guidance 2. A step is one U-Net call for scenes-tiny-lcm, which knows the guidance, and two for "
        "scenes-tiny (PNDM takes one step more). PNDM is what the family is evaluated with; in few steps "
        "it breaks down, so DDIM stands beside it, from pure noise on (trailing spacing): it needs eight "
        "calls for what the consistency model does in two to four. That one is at its best in two to "
        "four steps and loses CLIP score in eight.",
    ),
    "finetuning": Experiment(
        "Fine-tuning: scenes-portrait beside scenes-tiny, on pictures of one object and on all",
        "segmind/portrait-finetuned: tiny-sd fine-tuned to portraits",
        tuple(
            Run(name, checkpoint=spec(name), draws=_PORTRAIT_DRAWS)
            for name in ("scenes-tiny", "scenes-portrait")
        ),
        "Fine-tuning gains nothing here: scenes of one object are a quarter of what scenes-tiny learned "
        "from already.",
    ),
}
