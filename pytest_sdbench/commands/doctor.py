"""Say what this machine lacks for which card, with checksums verified and the remedy named."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_sdbench.base.errors import SdbenchError, Unavailable
from pytest_sdbench.base.paths import real, told
from pytest_sdbench.base.text import plain
from pytest_sdbench.cards.card import Card, find_card, own_names, read_card
from pytest_sdbench.cards.cases import judged_protocols
from pytest_sdbench.cards.network import checkpoint_of
from pytest_sdbench.commands.shared import cards_of, named_card, protocol_of, share, show
from pytest_sdbench.evaluation.fidelity import pairs_of
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.metric_specs import IMPORTED, ReferencedSpec
from pytest_sdbench.protocols.protocol import Protocol
from pytest_sdbench.report.cells import plain_table

if TYPE_CHECKING:
    from pytest_sdbench.models.checkpoint import Checkpoint


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    share(command, "cards", "--data")


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    findings = examine(cards_of(options.cards), data_root=options.data)
    show(report(findings))
    return 0 if all(finding.found for finding in findings) else 1


@dataclass(frozen=True)
class Finding:
    """One thing that a card needs: whether it is here, and what to do if it is not."""

    card: str
    need: str
    """``card``, ``weights``, ``prompts``, ``statistics`` or ``extractor``."""
    name: str
    state: str
    """``ok``, ``missing`` or ``broken``."""
    detail: str

    @property
    def found(self) -> bool:
        return self.state == "ok"


@dataclass
class Search:
    """Looks for what cards need, and for each thing once; downloads nothing and makes no image."""

    data_root: Path | None = None
    _seen: dict[tuple[Path, str, str], tuple[str, str]] = field(default_factory=dict)

    def protocols(self, card: Card, names: Sequence[str] = ()) -> tuple[list[Protocol], list[Finding]]:
        """Return the protocols that a card is judged by, or those of these names, and the broken ones."""
        whole, broken, near = [], [], (card.path.parent,)
        for name in dict.fromkeys(names) or card.judged_by:
            try:
                whole.append(protocol_of(name, card) if names else load_protocol(name, near))
            except SdbenchError as error:
                broken.append(Finding(card.name, "prompts", name, "broken", str(error)))
        # One that has changed since every claim of it was made needs nothing.
        needed = whole if names or broken else judged_protocols(card)
        failing = (problem for problem in card.problems if problem.fails)
        broken += [Finding(card.name, "card", each.id, "broken", str(each.error)) for each in failing]
        return needed, broken

    def protocol(self, card: Card, protocol: Protocol) -> Iterator[Finding]:
        """Yield what a card needs for a protocol: prompts, reference statistics and extractors."""
        for need, name, look in _needs(protocol, self.data_root):
            # By folder too: "./" and a protocol beside the card mean another thing elsewhere.
            key = (real(card.path.parent), need, name)
            if key not in self._seen:
                self._seen[key] = _look(look)
            yield Finding(card.name, need, name, *self._seen[key])

    def reference(
        self, card: Card, weights: Path | None = None
    ) -> tuple[Card, Checkpoint | None, Finding] | None:
        """Return the card whose pictures a card's are compared with, its checkpoint, and what to say of it.

        None where that would be a baseline, and the card names none.
        """
        other = card
        if weights is None:
            if card.baseline is None:
                return None
            try:
                other = read_card(find_card(card.baseline, card.path))
            except SdbenchError as error:
                return card, None, Finding(card.name, "card", card.baseline, "broken", str(error))
        checkpoint, finding = self.checkpoint(other)
        return other, checkpoint, replace(finding, card=card.name)

    def checkpoint(self, card: Card, weights: Path | None = None) -> tuple[Checkpoint | None, Finding]:
        """Return the verified checkpoint of a card, or None, and what there is to say about it."""
        here: list[Checkpoint] = []

        def look() -> str:
            here.append(checkpoint_of(card, weights))
            return "; ".join([f"verified, fingerprint {here[0].fingerprint}", *here[0].choices])

        name = told(weights or card.checkpoint or f"of {card.name}")
        finding = Finding(card.name, "weights", name, *_look(look))
        return (here[0] if finding.found else None), finding


def examine(cards: Sequence[Path], *, data_root: Path | None = None) -> list[Finding]:
    """Look for everything that the cards need."""
    search, findings = Search(data_root), []
    for path, name in own_names(cards).items():
        try:
            card = named_card(path, name)
        except SdbenchError as error:
            findings.append(Finding(name, "card", path.name, "broken", str(error)))
            continue
        protocols, broken = search.protocols(card)
        findings += [search.checkpoint(card)[1], *broken]
        for protocol in protocols:
            # Whether scores were imported is to be seen in a store, which is not looked into here.
            needs = search.protocol(card, protocol)
            findings += [each for each in needs if not each.name.startswith(IMPORTED)]
        if any(map(pairs_of, protocols)) and (found := search.reference(card)) is not None:
            findings.append(found[2])
    return findings


def report(findings: Sequence[Finding]) -> str:
    """Return a table of what is here, and each missing thing with its remedy and its users."""
    needs = ("card", "weights", "prompts", "statistics", "extractor")
    rows = []
    for card in dict.fromkeys(finding.card for finding in findings):
        row = [card]
        for need in needs:
            states = {each.state for each in findings if (each.card, each.need) == (card, need)}
            unsaid = "ok" if need == "card" else "-"
            row.append(next((state for state in ("broken", "missing", "ok") if state in states), unsaid))
        rows.append(row)
    parts = [plain_table(["name", *needs], rows, "l" * (len(needs) + 1))]
    here = dict.fromkeys(
        f"  {each.need} {plain(each.name)}: {plain(each.detail)}" for each in findings if each.found
    )
    if here:
        parts += ["\nHere:", *here]
    notes = lacking(findings)
    parts += ["\nMissing or broken:", *notes] if notes else ["\nNothing is missing."]
    return "\n".join(parts)


def lacking(findings: Sequence[Finding]) -> list[str]:
    """Return a paragraph for each thing that is not here: who needs it, and how to get it."""
    missing: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        if not finding.found:
            missing.setdefault((finding.need, finding.name, finding.detail), []).append(finding.card)
    return [
        f"\n{need} {plain(name)}\n  needed by {plain(', '.join(dict.fromkeys(users)))}\n  {plain(detail)}"
        for (need, name, detail), users in missing.items()
    ]


def _needs(protocol: Protocol, data_root: Path | None) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """Yield what a protocol needs: the kind of need, its name, and a function that looks for it."""
    from pytest_sdbench.features import extractors, references
    from pytest_sdbench.protocols.prompts import load_prompts

    yield (
        "prompts",
        protocol.name,
        lambda: f"{len(load_prompts(protocol, data_root)):,} prompts, checksum verified",
    )
    statistics: dict[str, list[ReferencedSpec]] = {}
    for spec in protocol.metrics.values():
        if isinstance(spec, ReferencedSpec):
            statistics.setdefault(spec.statistics.file, []).append(spec)
    for file, specs in statistics.items():
        look = partial(references.describe, protocol, specs, data_root)
        yield "statistics", f"{file} ({protocol.name})", look
    for name in protocol.extractors:
        yield "extractor", name, partial(extractors.describe, name, data_root)


def _look(look: Callable[[], str]) -> tuple[str, str]:
    """Return ``ok``, ``missing`` or ``broken``, and what there is to say about it."""
    try:
        return "ok", look()
    except Unavailable as lacking:
        return "missing", str(lacking)
    except SdbenchError as error:
        return "broken", str(error)
