"""Tables of what was measured: a table a protocol, a row a model, and which differences are sure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pytest_sdbench.base.errors import ProtocolError
from pytest_sdbench.cards.card import Card
from pytest_sdbench.cards.records import Record
from pytest_sdbench.metrics.difference import FEWEST_PROMPTS, Difference
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.metrics.standard_error import images_per_trial
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.report.cells import NONE, in_order, titles, with_error
from pytest_sdbench.report.grids import MARK, Cell, Grid
from pytest_sdbench.report.results import Row

Compare = Callable[[str, str, str, str], Difference | None]
"""Returns the first card's score less the second's, under a protocol, of a metric; None where no images of
both are known."""
ERROR = 0.05
NOTE = (
    f"± is one standard error; bold is the best of a column; {MARK} is surely worse than that (the chance of "
    f"any wrong mark in a column is {100 * ERROR:.0f} %), picture by picture where both are recorded."
)


@dataclass(frozen=True)
class Score:
    """A measured score of a card."""

    card: str
    protocol: str
    metric: str
    value: float
    standard_error: float | None
    n: int
    reference: str = ""
    """Fingerprint of the checkpoint that its pairs are compared with; empty for what has no pairs."""
    content: str = ""
    """Fingerprint of the protocol as it was, where several of one name may be meant."""
    predicted: bool = False
    """Whether it is a prediction for `n` images, from fewer."""
    prompts: int | None = None
    """Different prompts of the images, where it is known that some have one prompt."""

    @property
    def independent(self) -> int:
        """Return how many images are independent of each other: those of one prompt count as one."""
        return self.n if self.prompts is None else self.prompts


def recorded_scores(cards: Sequence[Card]) -> list[Score]:
    """Return what the cards record."""
    return [
        Score(
            *(card.name, each.protocol, each.metric, each.value, each.standard_error, each.n),
            reference=each.reference_fingerprint or "",
            content=_content(card, each),
        )
        for card in cards
        for each in card.records
        if each.metric in METRICS
    ]


def _content(card: Card, record: Record) -> str:
    """Return the fingerprint of a record's protocol as it is now, or else as it was then."""
    made = record.protocol_fingerprint or ""
    try:
        today = load_protocol(record.protocol, search=(card.path.parent,))
    except ProtocolError:
        return made
    return today.fingerprint if not made or today.covers(made, record.metric) else made


def measured_scores(rows: Sequence[Row]) -> list[Score]:
    """Return what a run measured as the protocol says, once where several claims are of it.

    A variant of a project's fixtures is a row of its own.
    """
    found = {
        (row.card, row.protocol, row.metric, row.n, ahead, row.variant): Score(
            *(
                f"{row.card}{row.variant}",
                row.protocol,
                row.metric,
                row.measured,
                row.standard_error,
                ahead or row.n,
            ),
            reference=str(row.extra.get("reference_fingerprint", "")),
            content=str(row.extra.get("protocol_fingerprint", "")),
            predicted=ahead is not None,
            prompts=row.extra.get("prompts"),
        )
        for row in rows
        for ahead in [row.extra.get("predicted_for")]
        if row.test == "quality" and row.metric in METRICS and row.measured is not None and row.n is not None
        if row.verdict != "mismatch"
    }
    return list(found.values())


def measured_grids(
    cards: Sequence[Card], scores: Sequence[Score], compare: Compare = lambda *_: None
) -> list[Grid]:
    """Return a table for each protocol, number of images and reference of pairs.

    Two protocols of one name, such as one before and after it was changed, have a table each. Of a single
    card nothing is best: its table has neither bold nor marks.
    """
    shown, order = titles(cards), [card.name for card in in_order(cards)]
    order += [name for name in dict.fromkeys(score.card for score in scores) if name not in order]
    named = {each.checkpoint_fingerprint: card.name for card in cards for each in card.records}
    tables: dict[tuple[str, int, bool, str, str], dict[str, dict[str, Score]]] = {}
    for score in scores:
        place = score.protocol, score.n, score.predicted, score.reference, score.content
        columns = tables.setdefault(place, {})
        columns.setdefault(score.metric, {})[score.card] = score
    grids, namesakes = [], Counter(tuple(rest) for *rest, _ in tables)
    for (protocol, n, predicted, reference, content), columns in tables.items():
        marked = {metric: _cells(metric, by_card, compare) for metric, by_card in columns.items()}
        names = [name for name in order if any(name in by_card for by_card in columns.values())]
        rows = [
            (Cell(shown.get(name, name)), *(marked[metric].get(name, Cell(NONE)) for metric in columns))
            for name in names
        ]
        heading = ("Model", *(f"{METRICS[metric].label} {METRICS[metric].arrow}" for metric in columns))
        which = f" ({content})" if namesakes[protocol, n, predicted, reference] > 1 else ""
        beside = f", beside {named.get(reference, reference)}" if reference else ""
        of = f"{protocol}{which}, {'predicted for ' if predicted else ''}{n:,} images{beside}"
        grids.append(Grid("Measured", heading, tuple(rows), of=of, note=NOTE if len(names) > 1 else ""))
    return grids


def _cells(metric: str, scores: Mapping[str, Score], compare: Compare) -> dict[str, Cell]:
    """Return the cell of each card in a column."""
    known = METRICS[metric]
    values = [score.value for score in scores.values()]
    best = max(values) if known.higher_is_better else min(values)
    winner = next(score for score in scores.values() if score.value == best)
    # The best is chosen by looking: any two of a column may come to be compared.
    pairs = max(1, len(scores) * (len(scores) - 1) // 2)
    reach = NormalDist().inv_cdf(1 - ERROR / (2 * pairs))
    least, cells = 10.0**-known.recorded_decimals, {}
    for name, score in scores.items():
        by, error = _lead_of_share(winner, score) if known.share else _lead(winner, score, compare)
        worse = error is not None and by > max(reach * error, least)
        shown, _, beside = with_error(score.value, score.standard_error, known.decimals).partition(" ± ")
        cells[name] = Cell(
            shown,
            beside,
            best=score.value == best and len(scores) > 1,
            worse=worse and score.value != best,
        )
    return cells


def _lead(best: Score, score: Score, compare: Compare) -> tuple[float, float | None]:
    """Return by how much the best score leads, and the standard error of that; None where it is open."""
    by = abs(score.value - best.value)
    if score.independent < FEWEST_PROMPTS or score.card == best.card:
        return by, None
    found = compare(score.card, best.card, score.protocol, score.metric)
    if found is not None and found.prompts is not None and found.prompts < FEWEST_PROMPTS:
        return by, None
    if found is not None and found.paired and found.standard_error is not None:
        # Of images that the figures are not of it says nothing.
        said = score.value - best.value
        near = abs(found.value - said) <= 2 * 10.0 ** -METRICS[score.metric].recorded_decimals
        if near or math.isclose(found.value, said, rel_tol=1e-3):
            return by, found.standard_error
    if score.standard_error is None or best.standard_error is None:
        return by, None
    return by, math.hypot(score.standard_error, best.standard_error)


def _lead_of_share(best: Score, score: Score) -> tuple[float, float | None]:
    """Return the same of two shares, whose counts may be too small for their own errors: 0 of 512 has none.

    Each gets one image more that counts and one that does not (Agresti, Caffo 2000, American Statistician
    54, 280-288).
    """
    pair = ((each.value, each.standard_error) for each in (best, score))
    trials = score.n / images_per_trial(score.n, pair)
    if min(trials, score.independent) < FEWEST_PROMPTS or score.card == best.card:
        return 0.0, None
    shares = [(each.value * trials + 1) / (trials + 2) for each in (best, score)]
    error = math.sqrt(sum(share * (1 - share) for share in shares) / (trials + 2))
    return abs(shares[1] - shares[0]), error
