"""Say which experiments there are: runs of training, or checkpoints, and how they are drawn from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from benchmarks.family.members import BASE, spec
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import CHECKED_CAPTIONS
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.protocols.sections import ScenesPrompts, Scheduler


@dataclass(frozen=True)
class Draw:
    """One way to draw from a checkpoint: a protocol, and what it departs in."""

    label: str
    protocol: str = "scenes-5k"
    steps: int | None = None
    scheduler: Scheduler | None = None
    domain: str | None = None
    """What the captions' names are taken from, where that is not the protocol's: no reference statistics are
    of these scenes, so metrics that compare with real ones are left out."""

    def of(self, images: int) -> Protocol:
        """Return the protocol of this way to draw, with at most so many images."""
        protocol = load_protocol(self.protocol)
        changes = {"steps": self.steps, "scheduler": self.scheduler}
        sampling = protocol.sampling.model_copy(update={k: v for k, v in changes.items() if v is not None})
        protocol = protocol.model_copy(update={"sampling": sampling})
        if self.domain is not None:
            protocol = _of_domain(protocol, self.domain)
        return protocol.with_samples(min(images, protocol.n))


def _of_domain(protocol: Protocol, domain: str) -> Protocol:
    """Return a protocol of scenes with the names of another domain, without what compares with real ones."""
    prompts = protocol.prompts
    assert isinstance(prompts, ScenesPrompts)
    assert prompts.layouts is None
    checked = scenes.captions(range(prompts.first, prompts.first + CHECKED_CAPTIONS), domain)
    digest = hashlib.sha256("".join(f"{caption}\n" for caption in checked).encode()).hexdigest()
    left = protocol.without([name for name in protocol.metrics if METRICS[name].reference != "none"])
    margins = {name: margin for name, margin in left.margins.items() if name in left.metrics}
    changed = prompts.model_copy(update={"domain": domain, "captions_sha256": digest})
    return left.model_copy(update={"prompts": changed, "margins": margins})


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
    against: str
    """Label of the run that differences are from, after as many images where that one was stopped, too."""
    against_draw: str = ""
    """How that one is drawn from; by default as the run beside it."""
    notes: str = ""

    def places(self) -> list[tuple[Run, int, Draw]]:
        """Return what is scored, in order: a run, after how many images, and how it is drawn from."""
        return [(run, stop, draw) for run in self.runs for stop in run.stops or (0,) for draw in run.draws]

    def counterpart(self, run: Run, stop: int, draw: Draw) -> tuple[Run, int, Draw] | None:
        """Return the place that the difference of a place is from; None for that one itself, or for none."""
        wanted = self.against_draw or draw.label
        for place in self.places():
            first, at, how = place
            same = first.label == self.against and how.label == wanted and at == (stop if first.stops else 0)
            if same:
                return None if (run.label, draw.label) == (first.label, how.label) else place
        return None


STUDENTS = ("scenes-base", "scenes-small", "scenes-tiny")
"""The students of block removal, the largest first; trained alike."""
IMAGES = 12_800
"""That each of them learns from."""
SEEDS = (0, 1)
"""Seeds of training: the first is that of the recipes, and of the checkpoints that ship."""

_GROWTH = tuple(IMAGES * quarter // 4 for quarter in (1, 2, 3, 4))
_NO_OUTPUT, _NO_FEATURE = "objective.weights.output=0.0", "objective.weights.feature=0.0"
_RANDOM = "student.init=random"
_WITHOUT = "teacher weights, no distillation"
_COMPONENTS: dict[str, tuple[str, ...]] = {
    "teacher weights, output and feature distillation": (),
    "teacher weights, output distillation": (_NO_FEATURE,),
    "teacher weights, feature distillation": (_NO_OUTPUT,),
    _WITHOUT: (_NO_OUTPUT, _NO_FEATURE),
    "random weights, output and feature distillation": (_RANDOM,),
    "random weights, no distillation": (_RANDOM, _NO_OUTPUT, _NO_FEATURE),
}
# Its defaults cut latents off at 1, as if they were pixels, and with the teacher's spacing it would begin
# below the timestep of pure noise.
_DDIM = Scheduler(
    name="DDIMScheduler",
    config={"clip_sample": False, "timestep_spacing": "trailing", "steps_offset": 0},
)
_DPM = Scheduler(name="DPMSolverMultistepScheduler", config={"timestep_spacing": "trailing"})
_FEWER_STEPS = (Draw("DPM-Solver++ 10", steps=10, scheduler=_DPM),)
"""For runs that are compared with each other alone: two fifths of the U-Net calls of PNDM 25."""
_DRAWN_WITH = "Drawn with ten steps of DPM-Solver++ (trailing spacing), guidance 2."
_LCM_DRAWS = tuple(Draw(f"LCM {steps}", "scenes-lcm4-5k", steps) for steps in (1, 2, 4, 8))
_TINY_DRAWS = (
    Draw("PNDM 25"),
    Draw("PNDM 4", steps=4),
    Draw("PNDM 8", steps=8),
    *(Draw(f"DDIM {steps}", steps=steps, scheduler=_DDIM) for steps in (1, 2, 4, 8)),
)
_PORTRAIT_DRAWS = (
    Draw("faces", "scenes-portrait-5k"),
    Draw("all other scenes", steps=10, scheduler=_DPM, domain="things"),
)


def seeded(member: str, seed: int) -> str:
    """Return the label of a student that was trained with this seed; the teacher has one training alone."""
    return member if member == "scenes-sd" else f"{member}, seed {seed}"


def _twice(member: str) -> tuple[Run, Run]:
    """Return a student as it ships, and trained once more from another seed."""
    again = (f"schedule.seed={SEEDS[1]}",)
    return (
        Run(seeded(member, SEEDS[0]), checkpoint=spec(member)),
        Run(seeded(member, SEEDS[1]), member, again, (IMAGES,)),
    )


EXPERIMENTS = {
    "order": Experiment(
        "The order of the students: Base, Small and Tiny beside their teacher, each trained twice",
        "BK-SDM, table 1: what each removal costs",
        (Run("scenes-sd", checkpoint=BASE), *(run for member in STUDENTS for run in _twice(member))),
        against="scenes-sd",
    ),
    "growing-data": Experiment(
        f"Growing data: scenes-small on four numbers of pairs, {IMAGES:,} images each",
        "BK-SDM, ablation of the data size for Small: IS and CLIP improve over training with more pairs",
        (
            Run("53 pairs", "scenes-small", ("data.pairs=53",), _GROWTH, draws=_FEWER_STEPS),
            Run("213 pairs", "scenes-small", (), _GROWTH, draws=_FEWER_STEPS),
            Run("709 pairs", "scenes-small", ("data.pairs=709",), _GROWTH, draws=_FEWER_STEPS),
            Run("2,257 pairs", "scenes-small-2m", (), _GROWTH, draws=_FEWER_STEPS),
        ),
        against="213 pairs",
        notes=_DRAWN_WITH,
    ),
    "ablation": Experiment(
        f"What helps: initialisation, output and feature distillation; scenes-small, {IMAGES:,} images",
        "BK-SDM, ablation of the components for Small",
        tuple(
            Run(label, "scenes-small", without, (IMAGES,), draws=_FEWER_STEPS)
            for label, without in _COMPONENTS.items()
        ),
        against=_WITHOUT,
        notes=_DRAWN_WITH,
    ),
    "consistency": Experiment(
        "Few steps: scenes-tiny-lcm beside scenes-tiny",
        "LCM (Luo et al. 2023), and tiny-sd-lcm-6400",
        (
            Run("scenes-tiny", checkpoint=spec("scenes-tiny"), draws=_TINY_DRAWS),
            Run("scenes-tiny-lcm", checkpoint=spec("scenes-tiny-lcm"), draws=_LCM_DRAWS),
        ),
        against="scenes-tiny",
        against_draw="PNDM 25",
        notes="Guidance 2. A step is one U-Net call for scenes-tiny-lcm, which knows the guidance, and two "
        "for scenes-tiny (PNDM takes one step more). PNDM is what the family is evaluated with; DDIM stands "
        "beside it, from pure noise on (trailing spacing).",
    ),
    "finetuning": Experiment(
        "Fine-tuning: scenes-portrait beside scenes-tiny, on faces and on all other scenes",
        "segmind/portrait-finetuned: tiny-sd fine-tuned to portraits",
        tuple(
            Run(name, checkpoint=spec(name), draws=_PORTRAIT_DRAWS)
            for name in ("scenes-tiny", "scenes-portrait")
        ),
        against="scenes-tiny",
        notes=f"{_DRAWN_WITH} All other scenes: the same places, colours and sizes, with names that are no "
        "faces. No reference statistics are of these, so they have no FID.",
    ),
}
