"""Teach scenes-small one subject and score it: `python -m benchmarks.family.dreambooth`.

In miniature what DreamBooth (Ruiz et al. 2023) reports and BK-SDM repeats with its students: how faithful
the pictures are to the subject and to the prompt, and what is left of the class. What each figure is stands
in `training/subject_scores.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.report import RESULTS, ROOT
from pytest_sdbench.base.paths import user_cache
from training.students.networks import Parts, load_parts

GUIDANCE, STEPS = 2.0, 25
COLUMNS = {
    "seen": "subject seen ↑",
    "subject_by_features": "subject, by features ↑",
    "subject_by_clip": "CLIP-I ↑",
    "prompt_by_clip": "CLIP-T ↑",
    "prior_seen": "subject in the class ↓",
    "prior_leak": "class like subject ↓",
    "prior_diversity": "diversity of the class ↑",
}


@dataclass(frozen=True)
class Way:
    """One way to personalise, as overrides of the recipe."""

    label: str
    overrides: tuple[str, ...] = ()


WAYS = (
    Way("all weights"),
    Way("all weights, no prior preservation", ("objective.prior_weight=0.0",)),
    Way(
        "LoRA, rank 16",
        ("objective.lora={rank: 16, alpha: 27.0}", "optimizer.learning_rate=2.0e-3"),
    ),
)


def train(way: Way, folder: Path, threads: int) -> Path:
    """Train one way, unless that is done; return the exported checkpoint."""
    from benchmarks.family.subject import write_pictures
    from pytest_sdbench.models.checkpoint import resolve
    from training.recipes.load import load_recipe
    from training.run.state import identity

    pictures = write_pictures(folder / "subject")
    changes = (f"data.path={pictures}", *way.overrides)
    recipe = load_recipe("scenes-dreambooth", changes)
    assert recipe.teacher is not None
    own = folder / f"{identity(recipe)}-{resolve(recipe.teacher).fingerprint}"
    out = own / "export"
    if not (out / "README.md").is_file():
        command = [sys.executable, "-m", "training", recipe.name, *changes, "--device", "cpu"]
        command += ["--threads", str(threads), "--folder", str(own / "run"), "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True)
    return out


def score(parts: Parts, each: int) -> tuple[dict[str, float], Any, Any]:
    """Draw `each` pictures of every prompt, as many of the class as of all; return figures and pictures."""
    from benchmarks.family.subject import CLASS_PROMPT, PROMPTS, pictures
    from benchmarks.family.subject_scores import score_subject
    from pytest_sdbench.features.classifier import load_classifier
    from pytest_sdbench.features.clip import load_clip
    from training.export.samples import draw

    prompts = [prompt for prompt in PROMPTS for _ in range(each)]
    drawn = draw(parts, prompts, guidance=GUIDANCE, steps=STEPS)
    of_class = draw(parts, [CLASS_PROMPT] * len(prompts), guidance=GUIDANCE, steps=STEPS, seed=10_000)
    scores = score_subject(
        drawn,
        prompts,
        of_class,
        pictures(),
        classifier=load_classifier(),
        clip=load_clip("local:scenes-clip"),
    )
    return scores.to_dict(), drawn, of_class


def ceiling() -> dict[str, float]:
    """Score the pictures of the subject as the autoencoder returns them: no model here draws it better."""
    import torch

    from benchmarks.family.subject import pictures, shows_subject
    from benchmarks.family.subject_scores import embeddings, features, mean_cosine
    from pytest_sdbench.evaluation.sampler import to_uint8
    from pytest_sdbench.features.classifier import load_classifier
    from pytest_sdbench.features.clip import load_clip
    from training.data.source import to_pixels

    real = pictures()
    vae = load_parts("embedded:scenes-sd").vae.eval()
    with torch.no_grad():
        encoded = vae.encode(to_pixels(list(real))).latent_dist.mean
        decoded = vae.decode(encoded).sample / 2 + 0.5
    returned = to_uint8(decoded.clamp(0, 1).permute(0, 2, 3, 1).numpy())
    classifier, clip = load_classifier(), load_clip("local:scenes-clip")
    return {
        "seen": float(shows_subject(returned).mean()),
        "subject_by_features": mean_cosine(features(classifier, returned), features(classifier, real)),
        "subject_by_clip": mean_cosine(embeddings(clip, returned), embeddings(clip, real)),
    }


def report(found: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    table = tabulate(
        [
            [row["model"], *(f"{row[name]:.3f}" if name in row else "" for name in COLUMNS)]
            for row in found["rows"]
        ],
        ["", *COLUMNS.values()],
        tablefmt="github",
        disable_numparse=True,
    )
    count = found["pictures"]
    most = 0.5 / count**0.5
    return (
        "# DreamBooth: one subject, a heart that is half green and half purple\n\n"
        f"{count} pictures of the prompts, and {count} of the class prompt; shares are ± {most:.2f} at most. "
        "What each figure is stands in [subject_scores.py](../../training/subject_scores.py).\n\n"
        f"{table}\n\n"
        "The first row is a ceiling: the autoencoder, which has never seen an object of two colours, "
        "returns the real pictures with a seam between the halves, and the reader of the subject allows"
        " as wide a seam.\n\n"
        "All ways learn the subject and pay for it in fidelity to the prompt (backgrounds of the five "
        "pictures come along) and in diversity of the class. Without prior preservation the class "
        "becomes the subject.\n\n"
        "![samples](dreambooth.png)\n"
    )


def main(arguments: list[str] | None = None) -> None:
    """Train, score, write table and sheet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.family.dreambooth", description=__doc__)
    parser.add_argument("--each", type=int, default=8, help="pictures of each of the eight prompts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=user_cache() / "experiments" / "dreambooth")
    options = parser.parse_args(arguments)

    import torch

    from benchmarks.family.subject import CLASS_PROMPT, PROMPTS, pictures
    from training.export.samples import Row, sheet

    torch.set_num_threads(options.threads)
    models: dict[str, Any] = {
        "scenes-small, as it is": {"base": "embedded:scenes-sd", "unet": "embedded:scenes-small"}
    }
    for way in WAYS:
        models[way.label] = str(train(way, options.folder, options.threads))
    rows, drawn, of_class = [{"model": "its pictures, through the autoencoder", **ceiling()}], {}, {}
    for label, spec in models.items():
        figures, drawn[label], of_class[label] = score(load_parts(spec), options.each)
        rows.append({"model": label, **figures})
        print(rows[-1], flush=True)

    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {"pictures": options.each * len(PROMPTS), "guidance": GUIDANCE, "steps": STEPS, "rows": rows}
    (RESULTS / "dreambooth.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    text = report(content)
    (RESULTS / "dreambooth.md").write_text(text, encoding="utf-8")
    real = pictures()
    lines = [
        Row(prompt, [real[i % len(real)], *(drawn[label][i * options.each] for label in models)])
        for i, prompt in enumerate(PROMPTS)
    ]
    lines += [Row(CLASS_PROMPT, [real[0], *(of_class[label][i] for label in models)]) for i in range(2)]
    sheet(lines, RESULTS / "dreambooth.png", columns=["the subject", *models], cell=110)
    print(text)


if __name__ == "__main__":
    main()
