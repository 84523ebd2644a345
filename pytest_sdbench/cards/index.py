"""Read a card's ``model-index`` entry by entry, each into a claim or into what is wrong with it.

The index is the hub's own form, and people publish in it whatever they measured: one odd entry takes nothing
else of a card down.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from pytest_sdbench.base.errors import CardError, cut
from pytest_sdbench.base.schema import Keys
from pytest_sdbench.cards.claims import UNSTATED, Claim, Margins, check_protocol, margin_of
from pytest_sdbench.cards.front_matter import FrontMatter, check_yaml_1_1
from pytest_sdbench.cards.schema import Figure, Figures, Result, Results, Source, check_value, validate
from pytest_sdbench.metrics.registry import METRICS, metric_name

_NEAR = 0.8
"""How alike a misspelt name is to the one that it means."""
_LIKELY = 0.6
"""And one that is likely to mean it: `coco30k` means `coco30k-bksdm`."""
_NUMBER_OF_IMAGES = ("numsamples", "nsamples", "numimages", "nimages", "samples", "images")
"""How `num_samples` is spelt, letters alone."""
_OF_ANY_TASK = ("precision", "recall", "coverage", "density")
"""Names that figures of classification and detection have as well."""
_ORIGIN = ("model", "dataset", "config", "args", "split", "label", "source", "verified")
"""What may tell two figures of one protocol and metric apart, first what readers would name first."""


@dataclass(frozen=True)
class Problem:
    """An entry of a card that is no claim, and why."""

    error: CardError
    fails: bool
    """Whether it fails: a figure that cannot be. Else nothing can be compared with it, and it is skipped."""
    claim: Claim | None = None
    """What could be read of it, if that is a figure of ours; its value is none."""

    @property
    def id(self) -> str:
        """Return the problem's name in a test id: that of the claim that it would be, or its key."""
        return self.claim.id if self.claim else str(self.error.key)

    def __str__(self) -> str:
        figure = f"{self.claim.label} {self.claim.text}".rstrip() + ": " if self.claim else ""
        return f"{figure}{self.error}"


@dataclass(frozen=True)
class _Context:
    """What an entry is read with."""

    front: FrontMatter
    known: Sequence[str]
    margins: Margins
    sources: Mapping[str, str]
    hub: bool


def published(
    front: FrontMatter,
    known: Sequence[str],
    margins: Margins,
    sources: Mapping[str, str],
    *,
    hub: bool = False,
) -> tuple[list[Claim], list[Problem]]:
    """Return the claims of the model index, and every entry that is none.

    `known` are the protocols there are. In a card for the hub alone (`hub`) an entry that says nothing to
    compare with is skipped; in one with an ``sdbench`` block it fails if it is of a metric of ours.
    """
    entries = list(_entries(_Context(front, known, margins, sources, hub)))
    found = _told_apart([claim for entry in entries if (claim := _claim_of(entry))], hub=hub)
    # A source may be that of one of several figures, by the id that tells it apart.
    apart = iter(
        replace(claim, source=Source(sources[claim.id]))
        if claim.source is None and claim.id in sources
        else claim
        for claim in found
    )
    claims: dict[str, Claim] = {}
    problems: list[Problem] = []
    for entry in entries:
        claim = next(apart) if _claim_of(entry) else None
        if isinstance(entry, Problem):
            problems.append(replace(entry, claim=claim))
        elif claim is not None and (first := claims.setdefault(claim.id, claim)) is not claim:
            remedy = "Keep one; two numbers of images are told apart by `dataset.args.num_samples`, "
            remedy += "two ways of measuring by `dataset.config`"
            at, both = (f"model-index: {claim.id}",), f"{first.text} and {claim.text}"
            error = front.error(at, "the same figure is claimed twice", both, remedy)
            problems.append(Problem(error, True, claim))
    taken = [*claims]
    for number, problem in enumerate(problems):
        if problem.claim and problem.id in taken:
            suffix = f"{problem.claim.suffix}-again-{number}".strip("-")
            problems[number] = replace(problem, claim=replace(problem.claim, suffix=suffix))
        taken.append(problem.id)
    return list(claims.values()), problems


def _claim_of(entry: Claim | Problem) -> Claim | None:
    return entry.claim if isinstance(entry, Problem) else entry


def _entries(context: _Context) -> Iterator[Claim | Problem]:
    front = context.front
    models = front.data.get("model-index") or []
    if not isinstance(models, list):
        remedy = "Begin it with `- name: NAME` and give it `results`"
        yield Problem(front.error(("model-index",), "not a list", models, remedy), True)
        return
    for m in range(len(models)):
        model: Keys = ("model-index", m)
        try:
            results = validate(Results, front, model).results
        except CardError as error:
            yield Problem(error, not context.hub)
            continue
        if not isinstance(name := models[m].get("name"), str) or not name:
            nameless = front.error((*model, "name"), "the model has no name", name, "Give it one, as text")
            yield Problem(nameless, not context.hub)
        for r in range(len(results)):
            at = (*model, "results", r)
            try:
                figures = validate(Figures, front, at).metrics
            except CardError as error:
                yield Problem(error, not context.hub)
                continue
            for k in range(len(figures)):
                yield _entry(context, at, (*at, "metrics", k), str(name or ""))


def _entry(context: _Context, at: Keys, place: Keys, model: str) -> Claim | Problem:
    """Return what a figure of a result claims, or what is wrong with it."""
    front = context.front
    try:
        figure = validate(Figure, front, place)
    except CardError as error:
        return Problem(error, not context.hub)
    metric = metric_name(figure.type)
    if metric is None:
        return _foreign(front, (*place, "type"), figure.type, hub=context.hub)
    if metric in _OF_ANY_TASK and (task := _other_task(front, at)):
        message, remedy = f"a figure of {task}, and not of images that were made", "Nothing is to be done"
        return Problem(front.error((*place, "type"), message, figure.type, remedy), False)
    value_at = (*place, "value")
    text = cut(front.scalar(*value_at) or ("" if front.find(*value_at) is None else repr(figure.value)))
    label = figure.name or METRICS[metric].label
    claim = Claim(metric, math.nan, text, UNSTATED, label=label, place=value_at)
    try:
        claim = _with_result(context, at, claim, figure, model)
        check_yaml_1_1(front, value_at)
    except CardError as error:
        return Problem(error, not context.hub, claim)
    try:
        if front.find(*value_at) is None:
            raise front.error(value_at, "a key is missing", None, "Add it, or remove the figure")
        return replace(claim, value=check_value(front.path, value_at, metric, figure.value))
    except CardError as error:
        number = isinstance(figure.value, int | float)
        return Problem(error, number or not context.hub, claim)


def _other_task(front: FrontMatter, at: Keys) -> str:
    """Return the task of a result where it makes no images; empty where it does, or nothing says so."""
    task = front.scalar(*at, "task", "type") or ""
    made = re.search("image-generation|to-image", re.sub("[ _]", "-", task), re.IGNORECASE)
    return "" if not task or made else task


def _foreign(front: FrontMatter, at: Keys, name: str, *, hub: bool) -> Problem:
    """Return why a figure is none of ours: it is of another metric (sFID, CLIP-I), or its metric is misspelt.

    On a hub card nobody can tell which; a card with a block of ours means our metrics.
    """
    near = _near(name)
    message = "unknown metric" if near else "not a metric of this suite, so nothing is compared with it"
    remedy = f"{f'Did you mean {near[0]!r}? ' if near else ''}Known metrics: {', '.join(METRICS)}"
    return Problem(front.error(at, message, name, remedy), bool(near) and not hub)


_ASIDE = re.compile(
    r"""
    [(] (?= [^()]* (?: \d | coco ) )       # "(10 splits)", "(COCO)": how it was measured,
        (?! [^()]* (?: x | \u00d7 | clip | dino | std ) ) [^()]* [)]   # and not "(x 1000)", "(CLIP)": of what
    | [\s_-] \d+ k? \s* $
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""What may stand behind a metric's name."""


_OTHERS = re.compile(
    "[cfgprs]fid|clipfid|fidclip|clipi(score)?|(d|m|ms)ssim|psnr(y|hvs)|kidx|(fid|is|kid)std"
)
"""Metrics of the field that are none of ours, however near their names are."""


def _near(name: str) -> list[str]:
    """Return our name of the metric that a text is a slip of, if of any: "FID-30K", "IS (10 splits)"."""
    known = {_plain(word): each.name for each in METRICS.values() for word in (each.name, *each.aliases)}
    # Short aliases are near to other metrics: CLIP-I is no slip of CLIP.
    names = [*map(_plain, METRICS), *(word for word in known if len(word) > 8)]
    for text in map(_plain, (name, _ASIDE.sub("", name))):
        if _OTHERS.fullmatch(text):
            return []
        near = [text] if text in known else get_close_matches(text, names, n=1, cutoff=_NEAR)
        # What is added, as in inception_score_std, makes another metric of it.
        if near and abs(len(near[0]) - len(text)) <= 2:
            return [known[near[0]]]
    return []


def _plain(text: str) -> str:
    """Return the letters and digits of a text, without accents, in lower case."""
    return "".join(sign for sign in unicodedata.normalize("NFKD", text).casefold() if sign.isalnum())


def _with_result(context: _Context, at: Keys, claim: Claim, figure: Figure, model: str) -> Claim:
    """Return a claim with what its result says of it."""
    front, known, margins = context.front, context.known, context.margins
    result = validate(Result, front, at)
    dataset, source = result.dataset, result.source
    config = None if dataset.config is None else str(dataset.config)
    protocol = config if config is not None and config in known else UNSTATED
    # A card with a block of ours means our protocols: a slip in a name must not ungate its claim.
    near = _NEAR if context.hub else _LIKELY
    # One of another number of images is no slip: `mscoco-30k` does not mean `coco5k`.
    meant = [_plain(name) for name in known if config and _same_number(config, name)]
    if protocol == UNSTATED and config and get_close_matches(_plain(config), meant, 1, near):
        check_protocol(front, (*at, "dataset", "config"), config, known, UNSTATED)
    assumed, n = _arguments(front, (*at, "dataset", "args"), dataset.args, protocol, known)
    own = margins.get(UNSTATED, {}).get(claim.metric) if protocol == UNSTATED else None
    margin = own if own is not None else margin_of(margins, assumed or protocol, claim.metric)
    claim = replace(claim, protocol=protocol, assumed=assumed, n=n, margin=margin, dataset=dataset.name)
    if source is not None and (name := source.name or source.url):
        source = replace(source, name=name)
    else:
        keys = (claim.id, claim.metric, protocol)
        source = next((Source(context.sources[key]) for key in keys if key in context.sources), None)
    said: dict[str, Any] = {
        "model": model,
        "dataset": dataset.name,
        "type": dataset.type,
        "config": config,
        "args": " ".join(f"{key} {_word(value)}" for key, value in dataset.args.items()),
        "split": dataset.split,
        "label": claim.label,
        "source": source.name if source else None,
        "verified": "verified" if figure.verified else None,
    }
    return replace(claim, source=source, origin={key: str(value) for key, value in said.items() if value})


def _same_number(word: str, other: str) -> bool:
    """Return whether two names begin their numbers alike, or one has none: `coco-30k` is no `coco5k`."""
    numbers = [re.findall(r"\d+", each) for each in (word, other)]
    return not all(numbers) or numbers[0][0] == numbers[1][0]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _arguments(
    front: FrontMatter, at: Keys, args: Mapping[str, Any], protocol: str, known: Sequence[str]
) -> tuple[str | None, int | None]:
    """Return the assumed protocol and the number of images that stand beside a result."""
    spelled = next((key for key in args if _plain(str(key)) in _NUMBER_OF_IMAGES), "num_samples")
    n, assumed = args.get(spelled), args.get("assumed")
    if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n <= 0):
        remedy = "Write a whole number such as 30000, or leave the key out"
        raise front.error((*at, spelled), "not a number of images", n, remedy)
    if assumed is not None:
        at = (*at, "assumed")
        check_protocol(front, at, str(assumed), known)
        if protocol != UNSTATED:
            remedy = f"Remove it, or write `config: {UNSTATED}`"
            raise front.error(at, "a protocol that is stated need not be assumed", assumed, remedy)
    return assumed, n


def _told_apart(claims: Sequence[Claim], *, hub: bool) -> list[Claim]:
    """Give figures of one protocol and metric ids of their own, by what the card says of them."""
    found = list(claims)
    if hub and len({claim.dataset for claim in claims}) > 1:
        found = [
            replace(claim, suffix=_slug(claim.dataset)) if claim.protocol == UNSTATED else claim
            for claim in claims
        ]
    groups: dict[str, list[int]] = {}
    for number, claim in enumerate(found):
        groups.setdefault(claim.id, []).append(number)
    for numbers in groups.values():
        said = {key: [found[number].origin.get(key, "") for number in numbers] for key in _ORIGIN}
        differ = [key for key, words in said.items() if len(set(words)) > 1]
        enough = next(([key] for key in differ if len(set(said[key])) == len(numbers)), differ)
        words = [" ".join(said[key][at] for key in enough) for at in range(len(numbers))]
        slugs = [_slug(word) for word in words]
        for number, word, slug in zip(numbers, words, slugs, strict=True):
            if slugs.count(slug) > 1:  # nothing of the Latin alphabet tells them apart
                slug = f"{slug}-{list(dict.fromkeys(words)).index(word) + 1}".strip("-") if enough else ""
            doubt = "`model-index` has this figure of several models, and a card is of one checkpoint"
            doubt += "; give each model a card of its own"
            found[number] = replace(
                found[number],
                suffix="-".join(part for part in (found[number].suffix, slug) if part),
                apart="" if enough == ["model"] else word,
                doubt=doubt if "model" in differ else "",
            )
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
