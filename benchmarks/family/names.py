"""Tell which names the family draws: `python -m benchmarks.family.names`.

A classifier that was trained on real scenes alone reads every object, of the pictures of some members and of
the real scenes behind the same prompts. A name's row has the share of its objects whose name and colour are
read right, at the place that the caption gives them. Images that the evidence store holds are not made again.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import options
from benchmarks.family.members import FAMILY, spec
from benchmarks.family.reading import COLUMN, readings, right, told, with_readings
from benchmarks.report import RESULTS, Cell, load, paragraphs, save, table
from pytest_sdbench.base.paths import user_cache
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.evaluation.evidence import make_evidence
from pytest_sdbench.features.classifier import load_classifier
from pytest_sdbench.metrics.moments import Rows
from pytest_sdbench.models.checkpoint import resolve
from pytest_sdbench.protocols import scenes
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.prompts import load_prompts, scenes_behind
from pytest_sdbench.protocols.protocol import Protocol
from training.recipes.load import load_recipe

MEMBERS = ("scenes-sd", "scenes-tiny")
REAL = "real scenes"
TRAINING = ("scenes-objects", "scenes-sd")
"""The recipes that the teacher learned by."""
Count = tuple[int, int]
"""Objects that are right, and objects."""


def counts(rows: Rows, captions: Sequence[str]) -> dict[str, Count]:
    """Return of every name how many of its objects have name and colour right, and how many there are.

    `rows` are those of `readings`, [n, 6]. The names stand in the order of how often scenes show them.
    """
    known, hits = Counter[str](), Counter[str]()
    hit, _ = right(rows, colour=True)
    for caption, own in zip(captions, hit.tolist(), strict=True):
        for (name, _), read in zip(told(caption), own, strict=False):
            known[name] += 1
            hits[name] += read
    return {name: (hits[name], known[name]) for name in scenes.NAMES if known[name]}


@cache
def trained_captions() -> frozenset[str]:
    """Return the captions that the teacher learned: a simple one is that of many scenes."""
    taken = (load_recipe(name).data for name in TRAINING)
    indices = (
        islice(scenes.indices_of(data.layouts or scenes.LAYOUTS, scenes.TRAINING), data.pairs)
        for data in taken
        if data.kind == "scenes"
    )
    return frozenset(scenes.captions(chain.from_iterable(indices)))


def total(found: Iterable[Sequence[int]]) -> Count:
    """Return the sums of counts."""
    right_of, objects = zip(*found, strict=True)
    return sum(right_of), sum(objects)


def drawn(member: str, protocol: Protocol, store: Path) -> Rows:
    """Return the readings of a member's images, [n, 6], making those that the store lacks."""
    checkpoint, wanted = resolve(spec(member)), with_readings(protocol, ())
    evidence = make_evidence(checkpoint, wanted, Workspace(store)).evidence
    return np.concatenate([batch[COLUMN] for batch in evidence.rows(wanted.n)])


@torch.inference_mode()
def real(protocol: Protocol, captions: Sequence[str]) -> Rows:
    """Return the readings of the real scenes behind the prompts of a protocol, [n, 6]."""
    model, rows = load_classifier(), []
    behind = scenes_behind(protocol, range(protocol.n))
    for start in range(0, protocol.n, 128):
        some = range(start, min(start + 128, protocol.n))
        pictures = np.stack([scenes.render(behind[at]) for at in some])
        seen = model(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        rows.append(readings(seen["name"], seen["colour"], captions[some.start : some.stop]))
    return np.concatenate(rows)


def measure(members: Sequence[str], protocol: Protocol, store: Path) -> dict[str, Any]:
    """Return what is read of the real scenes and of each member's pictures, by name."""
    captions = load_prompts(protocol)
    read = {REAL: real(protocol, captions), **{each: drawn(each, protocol, store) for each in members}}
    fresh = [k for k, caption in enumerate(captions) if caption not in trained_captions()]
    unseen = [captions[k] for k in fresh]
    return {
        "protocol": protocol.name,
        "n": protocol.n,
        "unseen": len(fresh),
        "date": datetime.date.today().isoformat(),
        "read": {label: counts(rows, captions) for label, rows in read.items()},
        "read_of_unseen": {label: counts(rows[fresh], unseen) for label, rows in read.items()},
    }


def report(found: Mapping[str, Any]) -> str:
    """Return the table as Markdown: all objects, quarters of the names by frequency, then every name."""
    read: Mapping[str, Mapping[str, Sequence[int]]] = found["read"]
    names = list(read[REAL])
    rows = [_row("**all objects**", names, read)]
    others: Mapping[str, Mapping[str, Sequence[int]]] = found["read_of_unseen"]
    rows.append(_row("**all objects of captions that training had not**", list(others[REAL]), others))
    quarters = ("most frequent", "second", "third", "rarest")
    for k, which in enumerate(quarters):
        some = [name for name in names if 4 * scenes.NAMES.index(name) // len(scenes.NAMES) == k]
        if some:
            rows.append(_row(f"**the {which} quarter of names**", some, read))
    rows += [_row(name, [name], read) for name in names]
    columns: list[tuple[str, Cell]] = [("name", "{name}"), ("objects", "{objects:,}")]
    columns += [(label, f"{{{label}}}") for label in read]
    return paragraphs(
        "# Which names the family draws",
        "Share of objects whose name and colour are read right, at the place that the caption gives them, on "
        f"{found['n']:,} prompts (`{found['protocol']}`), by a classifier that was trained on real scenes "
        "alone; real scenes: the pictures behind the same prompts. Training drew none of these, but had "
        f"the captions of {found['n'] - found['unseen']:,} of them word for word, nearly all of one object. "
        "Frequent names first.",
        table(rows, columns),
    )


def _row(label: str, names: Sequence[str], read: Mapping[str, Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": label, "objects": total(read[REAL][name] for name in names)[1]}
    for member, counted in read.items():
        hits, objects = total(counted[name] for name in names)
        row[member] = f"{hits / objects:.1%}"
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write Markdown and JSON."""
    parser = options.parser("family.names", __doc__, "--threads")
    parser.add_argument("members", nargs="*", metavar="MEMBER", help=f"[{' '.join(MEMBERS)}]")
    parser.add_argument("--images", type=int, default=256, help="of each member [%(default)s]")
    parser.add_argument("--protocol", default="scenes-5k")
    parser.add_argument("--report", action="store_true", help="only write the table again")
    parser.add_argument("--store", type=Path, default=user_cache() / "experiments" / "evidence")
    asked = options.parse(parser, arguments)
    if unknown := [name for name in asked.members if name not in (*FAMILY, "scenes-portrait")]:
        parser.error(f"no member that is drawn so: {', '.join(unknown)}; there are {', '.join(FAMILY)}")
    if asked.report:
        found = load(RESULTS / "names")
    else:
        protocol = load_protocol(asked.protocol)
        part = protocol.with_samples(min(asked.images, protocol.n))
        found = measure(asked.members or MEMBERS, part, asked.store)
    save(RESULTS / "names", found, report(found))
    print(report(found))


if __name__ == "__main__":
    main()
