"""Measure what the blocks of the teacher, and the words of its captions, have to say in its prediction.

Silenced: a block's whole output is set to zero, skips and all. Removed: the teacher goes on without blocks as
its students do, before any training of theirs. Exchanged: one word of the caption is another, or all are
gone. What comes of it is told as the mean square change of the prediction, over its variance.

`python -m benchmarks.family` has these tables among others; `python -m benchmarks.family.blocks FOLDER`
prints them of a teacher in a folder, while it is trained say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from benchmarks import options
from benchmarks.report import table
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.pictograms import PLURALS
from pytest_sdbench.protocols.splitmix import Dice
from training.data.batch import tokenize
from training.data.source import to_pixels
from training.students.block_removal import build_student
from training.students.networks import Parts, load_parts

Row = dict[str, Any]
BANDS = ((0, 200), (200, 400), (400, 600), (600, 800), (800, 1000))
"""Timesteps that are told apart: from, and before."""
BLOCKS = {
    "up_blocks.3": 0,
    "down_blocks.0": 0,
    "up_blocks.2": 1,
    "down_blocks.1": 1,
    "up_blocks.1": 2,
    "down_blocks.2": 2,
    "up_blocks.0": 3,
    "down_blocks.3": 3,
    "mid_block": 3,
}
"""Blocks that are silenced, one at a time, and their level: 0 is the outermost."""
REMOVED = {
    "mid": "the mid block (what Small lacks beyond Base)",
    "level": "the innermost level with its skips, the mid block too (what Tiny lacks beyond Base)",
    "base": "one block of each pair (what Base lacks)",
    "small": "all that Small lacks",
    "tiny": "all that Tiny lacks",
}
EXCHANGED = {
    "name": "one name, for another",
    "colour": "one colour, for another",
    "empty": "all words, for none",
}
UNSEEN = scenes.EVALUATION[:64]
"""Scenes whose indices no training draws."""
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From noisy latents, their timesteps and text states to a prediction."""


@dataclass(frozen=True)
class Way:
    """One thing that is done to the teacher or to its captions."""

    kind: Literal["silenced", "removed", "exchanged"]
    what: str
    predict: Predict
    captions: tuple[str, ...]


def measure(parts: Parts, indices: range) -> list[Row]:
    """Return a row for each way, over all timesteps and in each band; scene i has one timestep of each band.

    The scenes should be ones that no training has seen.
    """
    unet: Any = parts.unet.eval()
    told = tuple(scenes.captions(indices))
    with torch.inference_mode():
        cases = list(noisy_latents(parts, indices))
        states = _states(parts, told)
        whole = [_call(unet, *case, states) for case in cases]
        rows = []
        for way in ways(unet, indices):
            own = states if way.captions == told else _states(parts, way.captions)
            squares = [
                float((way.predict(*case, own) - one).square().mean())
                for case, one in zip(cases, whole, strict=True)
            ]
            bands = [square / float(one.var()) for square, one in zip(squares, whole, strict=True)]
            every = sum(squares) / len(squares) / float(torch.cat(whole).var())
            rows.append({"kind": way.kind, "what": way.what, "all": every, "bands": bands})
    return rows


def noisy_latents(parts: Parts, indices: range) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the latents of real scenes with noise, and their timesteps, for each of `BANDS`."""
    vae, generator = parts.vae.eval(), torch.Generator().manual_seed(0)
    pictures = to_pixels(list(scenes.render_batch(indices)))
    latents = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
    schedule = DDPMScheduler.from_config(parts.scheduler.config)
    for first, stop in BANDS:
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.randint(first, stop, (len(indices),), generator=generator)
        yield schedule.add_noise(latents, noise, steps), steps


def ways(unet: Any, indices: range) -> Iterator[Way]:
    """Yield all that is done to the teacher and to the captions of these scenes."""
    drawn = [scenes.scene(index) for index in indices]
    told = tuple(one.caption for one in drawn)
    for block in BLOCKS:
        yield Way("silenced", block, partial(_hooked, silenced, unet, block), told)
    yield Way("removed", "mid", partial(_hooked, without_mid, unet), told)
    yield Way("removed", "level", partial(_hooked, without_level, unet), told)
    for remove in ("base", "small", "tiny"):
        student = build_student(unet, remove).eval()
        yield Way("removed", remove, partial(_call, student), told)
    for what in ("name", "colour"):
        other = tuple(exchanged(one, what) for one in drawn)
        yield Way("exchanged", what, partial(_call, unet), other)
    yield Way("exchanged", "empty", partial(_call, unet), ("",) * len(drawn))


def _call(unet: Any, noisy: Tensor, steps: Tensor, states: Tensor) -> Tensor:
    found: Tensor = unet(noisy, steps, states).sample
    return found


def _hooked(change: Callable[..., Any], unet: Any, *arguments: Any) -> Tensor:
    *names, noisy, steps, states = arguments
    with change(unet, *names):
        return _call(unet, noisy, steps, states)


@contextmanager
def silenced(unet: Any, block: str) -> Iterator[None]:
    """Set all that a block puts out to zero: what it passes on, and its skips."""

    def zero(output: Any) -> Any:
        return torch.zeros_like(output) if torch.is_tensor(output) else tuple(map(zero, output))

    hook = unet.get_submodule(block).register_forward_hook(lambda _module, _inputs, output: zero(output))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def without_mid(unet: Any) -> Iterator[None]:
    """Pass on what comes to the mid block, as a U-Net without one does."""
    hook = unet.mid_block.register_forward_hook(lambda _module, inputs, _output: inputs[0])
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def without_level(unet: Any) -> Iterator[None]:
    """Turn round at the level above the innermost: before it is halved, its output goes up again."""
    kept: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        *_, last, _halved = output[1]
        kept[:] = [last]

    hooks = [
        unet.down_blocks[-2].register_forward_hook(keep),
        unet.up_blocks[0].register_forward_hook(lambda _module, _inputs, _output: kept.pop()),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def exchanged(one: scenes.Scene, what: Literal["name", "colour"]) -> str:
    """Return the caption of a scene with another name, or another colour, of one of its objects."""
    dice = Dice(one.index, stream=3)
    thing = dice.pick(one.objects)
    name, colour = thing.name, thing.colour
    if what == "name":
        # Both with an article, or both without.
        plural = name in PLURALS
        name = dice.pick([each for each in scenes.NAMES if each != name and (each in PLURALS) == plural])
    else:
        colour = dice.pick([each for each in scenes.COLOURS if each != colour])
    # A name may begin another one: sun, sunburst.
    return re.sub(rf"\b{thing.colour} {thing.name}\b", f"{colour} {name}", one.caption, count=1)


def _states(parts: Parts, captions: tuple[str, ...]) -> Tensor:
    found: Tensor = parts.text_encoder.eval()(tokenize(parts.tokenizer, list(captions))[0]).last_hidden_state
    return found


def report(rows: list[Row], side: int, count: int) -> str:
    """Return the tables as Markdown; latents are `side` wide, and `count` scenes were looked at."""
    bands = [(f"{first} to {stop - 1}", _band(k)) for k, (first, stop) in enumerate(BANDS)]

    def some(kind: str, first: str, label: Callable[[Row], str], *more: tuple[str, Any]) -> str:
        own = [row for row in rows if row["kind"] == kind]
        return table(own, [(first, label), *more, ("all timesteps", "{all:.1e}"), *bands])

    def place(row: Row) -> str:
        width = side >> BLOCKS[row["what"]]
        return f"{width} x {width}"

    return "\n\n".join(
        (
            "## What the blocks of the teacher say",
            f"The mean square change of its prediction, over the variance of that, on {count} scenes "
            "that training did not draw, with their captions, each with one timestep of every range.",
            some("silenced", "silenced", lambda row: f"`{row['what']}`", ("works at", place)),
            "Silenced: all that the block puts out is zero. Removed: the teacher goes on without it as its "
            "students do, before any training of theirs.",
            some("removed", "removed", lambda row: REMOVED[row["what"]]),
            "## What the words of the caption say",
            some("exchanged", "exchanged", lambda row: EXCHANGED[row["what"]]),
        )
    )


def _band(number: int) -> Callable[[Row], str]:
    return lambda row: f"{row['bands'][number]:.1e}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables of the checkpoint that is named."""
    parser = options.parser("family.blocks", __doc__)
    parser.add_argument("checkpoint", metavar="FOLDER", help="of a checkpoint in training, or embedded:NAME")
    parts = load_parts(parser.parse_args(arguments).checkpoint)
    side = int(parts.unet.config.sample_size)
    print(report(measure(parts, UNSEEN), side, len(UNSEEN)))


if __name__ == "__main__":
    main()
