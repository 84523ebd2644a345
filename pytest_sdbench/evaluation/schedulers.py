"""Make the schedulers of a protocol, tried whole before an image is drawn."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pytest_sdbench.base.errors import CheckpointError, ProtocolError, first_line
from pytest_sdbench.models.values import try_scheduler
from pytest_sdbench.protocols.protocol import Protocol

_STEADY = ("DDIMScheduler", "EulerDiscreteScheduler")
"""Schedulers that take a generator and draw nothing from it as pipelines call them: eta and s_churn are 0."""

_SOLVERS = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler")
"""Those that draw noise with the algorithms of an SDE alone."""
_UNSEEDED = ("DPMSolverSDEScheduler",)


def scheduler_factory(pipeline: Any, protocol: Protocol) -> Callable[[], Any]:
    """Return what makes fresh schedulers of a protocol for this pipeline's checkpoint.

    Raises CheckpointError for one whose own is another than the protocol's, and ProtocolError for one that
    cannot draw so.
    """
    from diffusers import StableDiffusionPipeline

    wanted, own = protocol.sampling.scheduler, pipeline.scheduler
    # Pipelines of Stable Diffusion correct a scheduler whose settings are silent; SDXL's take it as it is.
    clips = not isinstance(pipeline, StableDiffusionPipeline)
    kind: Any
    if wanted.name == "checkpoint":
        kind = type(own)
        if wanted.must_be and kind.__name__ != wanted.must_be:
            what = f"protocol {protocol.name} samples with the checkpoint's own {wanted.must_be}"
            remedy = "Put that scheduler into the checkpoint, or claim under a protocol of its own."
            raise CheckpointError(what, key="scheduler", found=kind.__name__, remedy=remedy)
    else:
        kind = _named(wanted.name, protocol)
    unknown = sorted(set(wanted.config) - set(inspect.signature(kind.__init__).parameters))
    if unknown:
        raise ProtocolError(
            f"{kind.__name__} has no such setting",
            file=protocol.path,
            key=f"sampling.scheduler.config.{unknown[0]}",
            remedy="Leave it out: diffusers would ignore it silently.",
        )

    def make() -> Any:
        return with_settings(kind, own, wanted.config, clips=clips)

    if kind.__name__ in _UNSEEDED:
        raise ProtocolError(
            "this scheduler draws noise from a generator of its own, not from the seeds of the protocol",
            file=protocol.path,
            key="sampling.scheduler",
            found=kind.__name__,
            remedy="Name a scheduler that takes a generator, such as DPMSolverMultistepScheduler with "
            "algorithm_type: sde-dpmsolver++",
        )
    try:
        try_scheduler(make(), protocol.sampling.steps)
    except Exception as error:  # they fail in as many ways as there are wrong values
        raise ProtocolError(
            f"{kind.__name__} does not draw so: {type(error).__name__}: {first_line(error)}",
            file=protocol.path,
            key="sampling.scheduler" if wanted.config else "sampling.steps",
            found=wanted.config or protocol.sampling.steps,
            remedy="Correct the scheduler's settings, or the number of steps",
        ) from error
    return make


def with_settings(
    kind: Any, scheduler: Any, changes: Mapping[str, Any] | None = None, *, clips: bool = False
) -> Any:
    """Return a scheduler of a class with the settings of another one, as far as it knows them, and changes.

    Of one of the same class all settings are taken: a pipeline of Stable Diffusion corrects its own, defaults
    too. Defaults of another class are no settings, as `from_config` has it. Settings that the class does not
    know are left out: they would warn at every load. Latents are no pixels: they are not clipped, unless the
    settings say so, or with `clips` the defaults of the class.
    """
    found = dict(scheduler.config)
    defaults = () if type(scheduler) is kind else found.get("_use_default_values", ())
    stated = {name: value for name, value in found.items() if name not in defaults}
    settings = ({} if clips else {"clip_sample": False}) | stated | dict(changes or {})
    known = inspect.signature(kind.__init__).parameters
    return kind(**{name: value for name, value in settings.items() if name in known})


def _named(name: str, protocol: Protocol) -> Any:
    """Return a scheduler's class; raise ProtocolError where there is none, or where it lacks a library."""
    import diffusers

    kind = getattr(diffusers, name, None)
    if lacking := getattr(kind, "_backends", None):
        raise ProtocolError(
            f"{name} needs {', '.join(lacking)}, and not all of them are installed",
            file=protocol.path,
            key="sampling.scheduler.name",
            remedy=f"pip install {' '.join(lacking)}",
        )
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ProtocolError(
            f"diffusers {diffusers.__version__} has no such scheduler",
            file=protocol.path,
            key="sampling.scheduler.name",
            found=name,
            remedy="Give `checkpoint` or a class name such as DDIMScheduler.",
        )
    return kind


def draws_noise(scheduler: Any) -> bool:
    """Return whether a scheduler draws from its generator between steps, as pipelines call it."""
    if "generator" not in inspect.signature(type(scheduler).step).parameters:
        return False
    name, algorithm = type(scheduler).__name__, str(scheduler.config.get("algorithm_type", ""))
    return name not in _STEADY and not (name in _SOLVERS and not algorithm.startswith("sde"))
