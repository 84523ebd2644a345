"""Compare the embedded family: `python -m benchmarks.family`.

The published table in miniature: quality, size and speed of the teacher and of its students. All are drawn
from the same prompts and seeds, so differences are also taken image by image, which is sharper than the
difference of two scores. Images that the evidence store holds are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.family.experiments import BASE
from benchmarks.family.quality import difference, quality
from benchmarks.machine import describe
from benchmarks.report import RESULTS
from pytest_sdbench.base.paths import user_cache

FAMILY = ("scenes-sd", "scenes-base", "scenes-small", "scenes-small-2m", "scenes-tiny")
PAIRS = (
    ("scenes-base", "scenes-sd"),
    ("scenes-small", "scenes-base"),
    ("scenes-tiny", "scenes-base"),
    ("scenes-tiny", "scenes-small"),
    ("scenes-small-2m", "scenes-small"),
)
BLOCKS = {
    "up_blocks.3": "8 x 8 positions",
    "down_blocks.0": "8 x 8",
    "up_blocks.2": "4 x 4",
    "down_blocks.1": "4 x 4",
    "up_blocks.1": "2 x 2",
    "down_blocks.2": "2 x 2",
    "up_blocks.0": "1 x 1; not in Tiny",
    "down_blocks.3": "1 x 1; not in Tiny",
    "mid_block": "1 x 1; not in Small and Tiny",
}
"""Blocks of the teacher that are silenced, one at a time, and where they work."""

NOTES = """\
What does not appear here, and a likely reason:

- **Base, Small and Tiny in this order.** Every student lies below its teacher in CLIP score, but no student
  can be told from another. What block removal takes from Small and Tiny beyond Base is what the embedded
  teacher does not use: see the table of silenced blocks. Its latents have 8 x 8 positions, and little is left
  to be said at 2 x 2 and 1 x 1; those of Stable Diffusion have 64 x 64.
- **A gain of ten times the data.** 2,128 scenes hold every shape, colour and place many times over, and the
  teacher answers fresh noise at every visit. A quarter of them costs something: see
  [growing-data.md](growing-data.md).
- **A teacher ahead in FID.** FID of teacher and students cannot be told apart.
"""

BATCHES = (1, 32)
"""Of the U-Net calls that are timed: one picture without guidance, and what the suite draws at once."""


def spec(name: str) -> str | dict[str, str]:
    """Return the checkpoint of a member of the family."""
    return BASE if name == "scenes-sd" else {"base": BASE, "unet": f"embedded:{name}"}


def latencies(batch: int, rounds: int) -> dict[str, list[float]]:
    """Time one U-Net call of every member, in turn; seconds of each round."""
    import torch

    from training.students.networks import load_parts

    unets = {
        name: load_parts(spec(name)).unet.eval().to(memory_format=torch.channels_last) for name in FAMILY
    }
    config = unets["scenes-sd"].config
    sample = torch.randn(batch, config.in_channels, config.sample_size, config.sample_size)
    states = torch.randn(batch, 77, config.cross_attention_dim)
    seconds: dict[str, list[float]] = {name: [] for name in FAMILY}
    calls = max(1, 64 // batch)
    with torch.inference_mode():
        for number in range(rounds + 2):
            # Each round begins with another one: who follows whom is no advantage.
            order = FAMILY[number % len(FAMILY) :] + FAMILY[: number % len(FAMILY)]
            for name in order:
                start = time.perf_counter()
                for _ in range(calls):
                    unets[name](sample, 500, states)
                if number >= 2:  # the first two warm up
                    seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def silenced(count: int = 64, first: int = 10_000_000) -> dict[str, float]:
    """Return how much the teacher's prediction changes when a block's whole output is set to zero.

    Mean squared change over the variance of the prediction, on `count` unseen scenes, a timestep each.
    """
    import torch
    from diffusers import DDPMScheduler

    from pytest_sdbench.protocols.scenes import captions, render_batch
    from training.data.batch import tokenize
    from training.data.source import to_pixels
    from training.students.networks import load_parts

    def zero(output: Any) -> Any:
        return torch.zeros_like(output) if torch.is_tensor(output) else tuple(map(zero, output))

    parts = load_parts(BASE)
    unet, vae, indices = parts.unet.eval(), parts.vae.eval(), range(first, first + count)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        latents = (
            vae.encode(to_pixels(list(render_batch(indices)))).latent_dist.mean * vae.config.scaling_factor
        )
        states = parts.text_encoder(tokenize(parts.tokenizer, captions(indices))[0]).last_hidden_state
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.randint(0, 1000, (count,), generator=generator)
        noisy = DDPMScheduler.from_config(parts.scheduler.config).add_noise(latents, noise, steps)
        whole = unet(noisy, steps, states).sample
        found = {}
        for name in BLOCKS:
            hook = unet.get_submodule(name).register_forward_hook(lambda _module, _inputs, out: zero(out))
            change = unet(noisy, steps, states).sample - whole
            hook.remove()
            found[name] = float(change.square().mean() / whole.var())
    return found


def sizes(name: str) -> tuple[int, int]:
    """Return parameters of the U-Net, and multiply-accumulates of one call at batch 1, from the card."""
    from pytest_sdbench.base.paths import reference
    from pytest_sdbench.cards.card import read_card

    card = read_card(reference() / "cards" / f"{name}.md")
    parameters = card.size["unet"].exact
    assert parameters is not None
    assert card.unet_macs is not None
    return parameters, int(card.unet_macs)


def measure(protocol: str, store: Path, rounds: int) -> dict[str, Any]:
    """Measure everything that the tables show."""
    import torch

    from pytest_sdbench.base.environment import versions
    from pytest_sdbench.protocols.load import load_protocol

    scored = {name: quality(spec(name), load_protocol(protocol), store) for name in FAMILY}
    timed = {batch: latencies(batch, rounds) for batch in BATCHES}
    members = []
    for name in FAMILY:
        parameters, macs = sizes(name)
        row: dict[str, Any] = {"name": name, "unet": parameters, "macs": macs, **scored[name].scores}
        for batch, seconds in timed.items():
            ratios = [a / b for a, b in zip(seconds[name], seconds["scenes-sd"], strict=True)]
            row[f"milliseconds_{batch}"] = 1000 * statistics.median(seconds[name])
            row[f"ratio_{batch}"] = statistics.median(ratios)
            row[f"ratio_{batch}_range"] = [min(ratios), max(ratios)]
        members.append(row)
    pairs = [
        {"first": first, "second": second, **difference(scored[first], scored[second])}
        for first, second in PAIRS
    ]
    machine = describe(torch.device("cpu"))
    return {
        "protocol": protocol,
        "rounds": rounds,
        "machine": machine,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "members": members,
        "pairs": pairs,
        "silenced": silenced(),
    }


def rescored(found: dict[str, Any], store: Path) -> dict[str, Any]:
    """Return recorded results with their scores computed anew."""
    from pytest_sdbench.protocols.load import load_protocol

    scored = {name: quality(spec(name), load_protocol(found["protocol"]), store) for name in FAMILY}
    members = [{**row, **scored[row["name"]].scores} for row in found["members"]]
    pairs = [
        {"first": first, "second": second, **difference(scored[first], scored[second])}
        for first, second in PAIRS
    ]
    return {**found, "members": members, "pairs": pairs}


def report(found: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    times = [f"time, batch {batch}" for batch in BATCHES]
    members = tabulate(
        [
            [
                row["name"],
                f"{row['unet'] / 1e6:.2f} M",
                f"{row['macs'] / 1e6:.1f} M",
                *(f"{row[f'ratio_{batch}']:.2f}" for batch in BATCHES),
                f"{row['fid']:.3f} ± {row['fid_se']:.3f}",
                f"{row['kid']:.5f}",
                f"{row['inception_score']:.2f}",
                f"{row['clip_score']:.4f} ± {row['clip_score_se']:.4f}",
            ]
            for row in found["members"]
        ],
        [*("", "U-Net", "MACs", *times), *("FID ↓", "KID ↓", "IS ↑", "CLIP score ↑")],
        tablefmt="github",
        disable_numparse=True,
    )
    pairs = tabulate(
        [
            [
                f"{row['first']} - {row['second']}",
                f"{row['fid']:+.4f} ± {row['fid_se']:.4f}",
                f"{row['clip_score']:+.5f} ± {row['clip_score_se']:.5f}",
            ]
            for row in found["pairs"]
        ],
        ["difference, image by image", "FID", "CLIP score"],
        tablefmt="github",
        disable_numparse=True,
    )
    blocks = tabulate(
        [[f"`{name}`", place, f"{found['silenced'][name]:.1g}"] for name, place in BLOCKS.items()],
        ["block of scenes-sd, silenced", "works at", "change of its prediction"],
        tablefmt="github",
        disable_numparse=True,
    )
    n = found["members"][0]["n"]
    return (
        "# The embedded family: quality, size and speed\n\n"
        "In miniature: BK-SDM, table 1 (Base, Small and Tiny beside their teacher).\n\n"
        f"{members}\n\n"
        f"Protocol `{found['protocol']}`, {n:,} images each, the same prompts and seeds; ± is one standard "
        "error. MACs: one U-Net call at batch 1. Time: one U-Net call over the teacher's, median of "
        f"{found['rounds']} rounds in which all take turns; {found['machine']}, float32.\n\n"
        f"{pairs}\n\n"
        "FID: difference of the scores; its error is that of the mean of differences of influence values.\n\n"
        f"{NOTES}\n{blocks}\n\n"
        "Change: mean square, over the variance of the prediction, on 64 unseen scenes with noise.\n"
    )


def draw_sheet(path: Path, first: int = 10_000_000, count: int = 10) -> None:
    """Draw some unseen captions with every member, from the same seeds, beside the real scenes."""
    from pytest_sdbench.protocols.scenes import captions, render_batch
    from training.export.samples import Row, draw, sheet
    from training.students.networks import load_parts

    prompts = captions(range(first, first + count))
    columns = {"real": list(render_batch(range(first, first + count)))}
    for name in FAMILY:
        columns[name] = list(draw(load_parts(spec(name)), prompts, guidance=2.0, steps=25))
    few = list(draw(load_parts(spec("scenes-tiny-lcm")), prompts, guidance=2.0, steps=4))
    columns["scenes-tiny-lcm, 4 steps"] = few
    rows = [Row(prompt, [column[i] for column in columns.values()]) for i, prompt in enumerate(prompts)]
    sheet(rows, path, columns=list(columns), cell=96)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write Markdown and JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family", description=__doc__)
    parser.add_argument("--protocol", default="scenes-5k")
    parser.add_argument("--rounds", type=int, default=40, help="0 scores anew and keeps the recorded times")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--store", type=Path, default=user_cache() / "experiments" / "evidence")
    options = parser.parse_args(arguments)

    import torch

    torch.set_num_threads(options.threads)
    if options.rounds:
        found = measure(options.protocol, options.store, options.rounds)
    else:
        found = rescored(json.loads((RESULTS / "family.json").read_text(encoding="utf-8")), options.store)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "family.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.rounds:
        draw_sheet(RESULTS / "family.png")
    text = report(found) + "\n![The same prompts and seeds](family.png)\n"
    (RESULTS / "family.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
