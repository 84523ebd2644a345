"""Teach scenes-small one subject and score it: `python -m benchmarks.family.dreambooth`.

In miniature what DreamBooth (Ruiz et al. 2023) reports and BK-SDM repeats with its students: how faithful
the pictures are to the subject and to the prompt, and what is left of the class. What each figure is stands
in `benchmarks/family/subject_scores.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import options
from benchmarks.family.members import BASE, identify, spec, train
from benchmarks.family.subject import CLASS_PROMPT, PROMPTS, pictures, write_pictures
from benchmarks.family.subject_scores import SCORES, Pixels, score_likeness, score_subject
from benchmarks.report import RESULTS, paragraphs, save, table
from pytest_sdbench.base.paths import user_cache
from pytest_sdbench.evaluation.sampler import to_uint8
from pytest_sdbench.features.classifier import load_classifier
from pytest_sdbench.features.clip import load_clip
from pytest_sdbench.report.figures.canvas import save as save_figure
from pytest_sdbench.report.figures.canvas import style
from pytest_sdbench.report.figures.sheet import Row, Sheet, draw_sheet, layout
from training.data.source import to_pixels
from training.export.samples import draw
from training.students.networks import Parts, load_parts

RECIPE, CLIP = "scenes-dreambooth", "local:scenes-clip"
GUIDANCE, STEPS = 2.0, 25
WAYS: dict[str, tuple[str, ...]] = {
    "all weights": (),
    "all weights, no prior preservation": ("objective.prior_weight=0.0",),
    "LoRA, rank 16": ("objective.lora={rank: 16, alpha: 27.0}", "optimizer.learning_rate=2.0e-3"),
}
"""Ways to personalise, as overrides of the recipe."""


def personalise(overrides: Sequence[str], folder: Path, threads: int) -> Path:
    """Train one way, unless that is done; return the exported checkpoint."""
    changes = (f"data.path={write_pictures(folder / 'subject')}", *overrides)
    own = folder / identify(RECIPE, changes)
    out = own / "export"
    if not (out / "README.md").is_file():
        train(RECIPE, changes, threads, "--folder", str(own / "run"), "--out", str(out))
    return out


def score(parts: Parts, each: int) -> tuple[dict[str, float], Pixels, Pixels]:
    """Draw `each` pictures of every prompt, as many of the class as of all; return figures and pictures."""
    prompts = [prompt for prompt in PROMPTS for _ in range(each)]
    drawn = draw(parts, prompts, guidance=GUIDANCE, steps=STEPS)
    of_class = draw(parts, [CLASS_PROMPT] * len(prompts), guidance=GUIDANCE, steps=STEPS, seed=10_000)
    classifier, clip = load_classifier(), load_clip(CLIP)
    found = score_subject(drawn, prompts, of_class, pictures(), classifier=classifier, clip=clip)
    return {name: round(value, 4) for name, value in found.items()}, drawn, of_class


def ceiling() -> dict[str, float]:
    """Score the pictures of the subject as the autoencoder returns them: no model here draws it better."""
    real = pictures()
    vae = load_parts(BASE).vae.eval()
    with torch.no_grad():
        encoded = vae.encode(to_pixels(list(real))).latent_dist.mean
        decoded = vae.decode(encoded).sample / 2 + 0.5
    returned = to_uint8(decoded.clamp(0, 1).permute(0, 2, 3, 1).numpy())
    return score_likeness(returned, real, load_classifier(), load_clip(CLIP))


def report(found: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    count = found["pictures"]
    columns = [(heading, f"{{{name}:.3f}}") for name, heading in SCORES.items()]
    return paragraphs(
        "# DreamBooth: one subject, a daisy that is half green and half purple",
        f"{count} pictures of the prompts, and {count} of the class prompt; shares are ± "
        f"{0.5 / count**0.5:.2f} at most. What each figure is stands in "
        "[subject_scores.py](../family/subject_scores.py).",
        table(found["rows"], [("", "{model}"), *columns]),
        "The first row is a ceiling: the real pictures as the autoencoder returns them, which has never seen "
        "an object of two colours.",
        "![samples](dreambooth.png)",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score, write table and sheet."""
    parser = options.parser("family.dreambooth", __doc__, "--threads")
    parser.add_argument("--each", type=int, default=8, help="pictures of each of the eight prompts")
    parser.add_argument("--folder", type=Path, default=user_cache() / "experiments" / "dreambooth")
    asked = options.parse(parser, arguments)
    models: dict[str, Any] = {"scenes-small, as it is": spec("scenes-small")}
    for label, overrides in WAYS.items():
        models[label] = str(personalise(overrides, asked.folder, asked.threads))
    rows: list[dict[str, Any]] = [{"model": "its pictures, through the autoencoder", **ceiling()}]
    drawn, of_class = {}, {}
    for label, checkpoint in models.items():
        figures, drawn[label], of_class[label] = score(load_parts(checkpoint), asked.each)
        rows.append({"model": label, **figures})
        print(rows[-1], flush=True)
    content = {"pictures": asked.each * len(PROMPTS), "guidance": GUIDANCE, "steps": STEPS, "rows": rows}
    save(RESULTS / "dreambooth", content, report(content))
    real = pictures()
    lines = [
        Row(prompt, [real[i % len(real)], *(drawn[label][i * asked.each] for label in models)])
        for i, prompt in enumerate(PROMPTS)
    ]
    lines += [Row(CLASS_PROMPT, [real[0], *(of_class[label][i] for label in models)]) for i in range(2)]
    sheet = Sheet(["the subject", *models], lines)
    with style():
        save_figure(
            draw_sheet(sheet, layout(sheet)), [RESULTS / "dreambooth.png"], "DreamBooth", sheet.described
        )
    print(report(content))


if __name__ == "__main__":
    main()
