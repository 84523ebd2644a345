"""Does an untouched checkpoint pass its own card? `python -m benchmarks.gate.untouched [CARD]...`.

Twenty times, each in a fresh store, with images made in other batches and by other numbers of workers than
the recorded ones: rounding alone differs. The images are made as `evaluate` makes them, and then judged by
`pytest --sdbench` itself, which may make none. What was tried already of the same checkpoint is not tried
again.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import options
from benchmarks.report import RESULTS, ROOT, Cell, load, paragraphs, save, table
from pytest_sdbench.base.environment import timed_on
from pytest_sdbench.base.paths import reference
from pytest_sdbench.base.workspace import Workspace
from pytest_sdbench.cards.card import Card, read_card
from pytest_sdbench.evaluation.evaluate import evaluate
from pytest_sdbench.evaluation.tuning import Tuning
from pytest_sdbench.models.checkpoint import Checkpoint, resolve
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.protocol import Protocol

BATCHES, WORKERS = (4, 7, 16, 50, 128), (1, 2, 3, 4)
TRIALS = tuple(product(BATCHES, WORKERS))
"""The batch size and the number of workers of each trial: twenty."""
KEY = ("card", "checkpoint", "protocol_fingerprint", "batch", "workers")
"""What tells trials apart."""
Row = dict[str, Any]
Key = tuple[Any, ...]


def _key(row: Row) -> Key:
    return tuple(row[each] for each in KEY)


def trial(card: Card, checkpoint: Checkpoint, protocol: Protocol, tuning: Tuning) -> dict[str, int]:
    """Make the images in a fresh store, judge them by the card, and count the items by what came of them."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        evaluate(checkpoint, protocol, Workspace(store, progress=False), tuning=tuning)
        xml = Path(folder, "junit.xml")
        words = ["--sdbench", str(card.path), "-m", "quality", "-k", protocol.name, "-q"]
        words += [f"--sdbench-store={store}", "--sdbench-max-images=0", f"--junitxml={xml}"]
        run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
        done = subprocess.run(run, cwd=ROOT, check=False, capture_output=True, text=True)
        if not xml.is_file():
            raise SystemExit(
                f"the run of {card.name} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return counted(xml.read_text(encoding="utf-8"))


def counted(xml: str) -> dict[str, int]:
    """Count the items of a junit file: passed, failed, and skipped, which is no pass."""
    found = {"passed": 0, "failed": 0, "skipped": 0}
    for case in ElementTree.fromstring(xml).iter("testcase"):
        outcomes = {child.tag for child in case}
        if outcomes & {"failure", "error"}:
            found["failed"] += 1
        else:
            found["skipped" if "skipped" in outcomes else "passed"] += 1
    return found


def passes(row: Mapping[str, Any]) -> bool:
    """Return whether a trial passed: all items did, and there were some."""
    return row["passed"] > 0 and not row["failed"] and not row["skipped"]


def measure(names: Sequence[str], protocol: str, keep: Path) -> list[Row]:
    """Run the trials that lack of some cards, and keep each as it ends; return all rows of these cards."""
    known: dict[Key, Row] = {_key(row): row for row in load(keep).get("rows", [])}
    mine = load_protocol(protocol)
    rows: list[Row] = []
    for name in names:
        card = read_card(reference() / "cards" / f"{name}.md")
        assert card.checkpoint is not None
        checkpoint = resolve(card.checkpoint)
        for batch, workers in TRIALS:
            about: Row = {"card": name, "checkpoint": checkpoint.fingerprint, "protocol": protocol}
            about |= {"protocol_fingerprint": mine.fingerprint, "batch": batch, "workers": workers}
            row = known.get(_key(about)) or about | trial(
                card, checkpoint, mine, Tuning(batch_size=batch, workers=workers)
            )
            rows.append(row)
            known[_key(row)] = row
            content = {"machine": timed_on("cpu"), "rows": list(known.values())}
            content["date"] = datetime.date.today().isoformat()
            save(keep, content, report(content))
            print(
                f"{name}, batches of {batch}, {workers} workers: {'passes' if passes(row) else row}",
                flush=True,
            )
    return rows


def report(found: Mapping[str, Any]) -> str:
    """Return how many trials passed as Markdown, by card and then one by one."""
    rows: list[Row] = found["rows"]
    cards = [
        {"card": card, "protocol": protocol, "trials": len(own), "passed": sum(map(passes, own))}
        for card, protocol in dict.fromkeys((row["card"], row["protocol"]) for row in rows)
        if (own := [row for row in rows if (row["card"], row["protocol"]) == (card, protocol)])
    ]
    which: list[tuple[str, Cell]] = [("card", "{card}"), ("protocol", "{protocol}")]
    each: list[tuple[str, Cell]] = [
        *which,
        ("batches of", "{batch}"),
        ("workers", "{workers}"),
        ("passed", "{passed}"),
        ("failed", "{failed}"),
        ("skipped", "{skipped}"),
    ]
    return paragraphs(
        "# Untouched checkpoints under their own cards",
        "Each trial in a fresh store; it passes if every item of the card's quality under the protocol does. "
        "Batches and workers are those that made the images.",
        table(cards, [*which, ("trials", "{trials}"), ("passed", "{passed}")]),
        table(rows, each),
        f"{found['date']}, {found['machine']}.",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the trials of the cards that are named, and say how many passed."""
    parser = options.parser("gate.untouched", __doc__)
    parser.add_argument("cards", nargs="*", metavar="CARD", help="[scenes-sd]")
    parser.add_argument("--protocol", default="scenes-quick", help="one of the cards' [%(default)s]")
    parser.add_argument("--results", type=Path, default=RESULTS / "untouched.json")
    asked = parser.parse_args(arguments)
    rows = measure(asked.cards or ["scenes-sd"], asked.protocol, asked.results)
    print(f"{sum(map(passes, rows))} of {len(rows)} trials passed")


if __name__ == "__main__":
    main()
