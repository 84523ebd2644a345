"""Score images that another tool made, under a protocol: its image steps, extractors, metrics and references.

How the images were sampled cannot be seen in them, so that there are scores here and never a verdict.
"""

from __future__ import annotations

import argparse
from typing import Any

from pytest_sdbench.base.environment import torch_device, versions
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.claims import Claim
from pytest_sdbench.commands.score_images import Scores, score
from pytest_sdbench.commands.shared import share, show, write_figures
from pytest_sdbench.features.extractors import identity
from pytest_sdbench.metrics.estimates import Estimate
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.report.cells import plain_table, with_error


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    told = "a folder or archive (.zip, .tar) of images, or shards (data-{000..012}.tar)"
    command.add_argument("images", nargs="+", metavar="IMAGES", help=told)
    told = "those of the first N prompts alone"
    command.add_argument("--images", type=int, dest="n", metavar="N", help=told)
    told = "whether the images are as the sampler made them, or have been through the protocol's codec and "
    told += "resize already; default: told from their size"
    command.add_argument("--stage", choices=("sampled", "final"), help=told)
    told = (
        "how the prompt of an image is found: by the caption that comes with it, by its name in the file of "
    )
    told += "prompts, by the number at the end of its name, or by the order of names; default: the first of "
    told += "these that the images have, but never their order"
    command.add_argument("--match", choices=("caption", "name", "index", "order"), help=told)
    command.add_argument("--card", metavar="CARD", help="show what this card (name or file) claims beside it")
    share(command, "--protocol", "--background", "--data", "--device", "--download", "--json")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    found = score(
        options.images,
        options.protocol,
        Workspace(
            data_root=options.data,
            device=torch_device(options.device, option="--device"),
            download=options.download,
        ),
        n=options.n,
        stage=options.stage,
        match_by=options.match,
        card=options.card,
        background=options.background,
    )
    show(score_table(found))
    write_figures(figures(found), options.json)
    return 0


def score_table(found: Scores) -> str:
    """Return scores as a table and what is to be known about them, for a terminal."""
    fewer = found.protocol.n != found.requested
    heading = ["", "value", "N", "without bias"]
    heading += [f"predicted at {found.requested:,}"] if fewer else []
    heading += [f"{found.card} claims"] if found.claims else []
    rows, lines = [], []
    for metric in found.protocol.metrics:
        known, each = METRICS[metric], found.estimates.get(metric)
        if not isinstance(each, Estimate):
            reason = each.reason if each is not None else found.lacking[metric]
            lines.append(f"{known.label}: {reason}")
            continue
        digits = f".{known.recorded_decimals}f"
        value = with_error(each.value, each.standard_error, known.recorded_decimals)
        row = [f"{known.label} {known.arrow}", value, f"{each.n:,}"]
        # A mean of images has no bias: its corrected value is the value.
        biased = each.corrected is not None and each.corrected != each.value
        row.append(f"{each.corrected:{digits}}" if biased else "")
        if fewer:
            predicted = found.predicted(metric)
            row.append("" if predicted is None else f"{predicted:{digits}}")
        if found.claims:
            row.append(", ".join(_claimed(claim) for claim in found.claims if claim.metric == metric))
        rows.append(row)
    done = "as the sampler made them; the protocol has no image steps"
    if found.protocol.image and found.stage == "sampled":
        done = "as the sampler made them; the protocol's image steps were applied here"
    elif found.protocol.image:
        done = "through codec and resize already; no step was applied here"
    about = [
        f"{found.protocol.name}: {found.protocol.n:,} images of {found.origin}; ± is one standard error",
        f"taken as: {done}",
        f"matched with their prompts {found.matched}",
    ]
    if fewer:
        asked = f"the protocol asks for {found.requested:,} images"
        about.append(f"{asked}: compare its figures with the prediction for so many, not with the value")
    if found.claims:
        about.append("no verdict: nothing shows that the images were sampled as the protocol says")
    elif found.card is not None:
        about.append(f"{found.card} claims nothing under {found.protocol.name}")
    return "\n".join(
        [plain_table(heading, rows, "l" + "r" * (len(heading) - 1)), "", *about, *lines, *found.notes]
    )


def figures(found: Scores) -> dict[str, Any]:
    """Return scores as plain data."""
    metrics: dict[str, Any] = {}
    for metric in found.protocol.metrics:
        each = found.estimates.get(metric)
        if not isinstance(each, Estimate):
            metrics[metric] = {"reason": each.reason if each is not None else str(found.lacking[metric])}
            continue
        names = ("value", "standard_error", "n", "corrected")
        metrics[metric] = {name: getattr(each, name) for name in names}
        if found.protocol.n != found.requested:
            metrics[metric]["predicted"] = found.predicted(metric)
    return {
        "images": found.origin,
        "protocol": found.protocol.name,
        "protocol_fingerprint": found.protocol.fingerprint,
        "n": found.protocol.n,
        "requested": found.requested,
        "stage": found.stage,
        "matched": found.matched,
        "metrics": metrics,
        "extractors": [identity(name) for name in found.protocol.extractors],
        "versions": versions(),
        "card": found.card,
        "claims": [
            {
                "metric": each.metric,
                "value": each.value,
                "kind": each.kind,
                "assumed": each.assumed is not None,
            }
            for each in found.claims
        ],
        "notes": list(found.notes),
    }


def _claimed(claim: Claim) -> str:
    """Return a claim with what a reader must know of it."""
    known = "recorded" if claim.kind == "recorded" else "assumed" if claim.assumed else ""
    return f"{claim.text} ({known})" if known else claim.text
