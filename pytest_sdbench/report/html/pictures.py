"""Put pictures of a checkpoint beside its baseline's of the same prompt and noise, the worst first."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_sdbench.base.errors import EvidenceError, SdbenchError
from pytest_sdbench.cards.card import Card, find_card, read_card
from pytest_sdbench.metrics.registry import METRICS
from pytest_sdbench.protocols.load import load_protocol
from pytest_sdbench.protocols.scene_parts import Scene
from pytest_sdbench.report.cells import decimals
from pytest_sdbench.report.html.claims import rank
from pytest_sdbench.report.html.run import Run
from pytest_sdbench.report.results import Row
from pytest_sdbench.store.shard_format import SHARD
from pytest_sdbench.store.shards import Store

SIDE = 256
"""Pixels that a side of a picture has at most."""
DOZEN, WORST = 12, 10
"""Pairs of each checkpoint: the first ones, and those that lost most."""
MOST = 6_500_000
"""Characters that the pictures of a page take at most; where its text is long, `render` gives them fewer."""
_SMALL = 96
"""Pixels of a side up to which a picture is kept to the bit; of larger ones nobody sees the difference."""
_QUALITY = 85
_FILE = "8 MB"

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """One picture, as the page holds it."""

    role: str
    """``candidate``, ``baseline`` or ``real``."""
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Value:
    """What one picture has of a score."""

    label: str
    value: str
    beside: str
    """What the baseline's picture has, or equal ones would have; empty where it is not known."""


@dataclass(frozen=True)
class Pair:
    """Pictures of one prompt and noise."""

    index: int
    prompt: str
    seed: int
    why: str
    """``worst of PSNR``, or empty for one of the fixed dozen."""
    pictures: tuple[Picture, ...]
    values: tuple[Value, ...]

    @property
    def compares(self) -> bool:
        """Whether there is a baseline to compare with."""
        return any(picture.role == "baseline" for picture in self.pictures)

    @property
    def is_scene(self) -> bool:
        """Whether the real scene is beside them."""
        return any(picture.role == "real" for picture in self.pictures)


@dataclass(frozen=True)
class PairGroup:
    """The pairs of one checkpoint under one draw."""

    card: str
    protocols: str
    candidate: str
    baseline: str
    """Empty where no baseline has pictures."""
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    """What is not shown, and why."""


@dataclass(frozen=True)
class _Draw:
    """One checkpoint under one draw: whose pictures, and what the rows say of them."""

    card: Card
    rows: tuple[Row, ...]
    candidate: str
    draw: str
    scenes: Mapping[int, Scene]
    """The scene behind each prompt, for those that have one and where scenes can be drawn."""
    undrawn: str
    """Why scenes that are there are not drawn."""
    wanted: tuple[tuple[int, str], ...]
    """Index and reason, in the order in which they are shown."""


@dataclass
class _Album:
    """Reads kept pictures, each file once."""

    stores: tuple[Store, ...]
    wanted: frozenset[int]
    """Images that are looked at: no others are held, as a file has 64."""
    files: dict[tuple[str, int], dict[int, tuple[str, int, Pixels]]] = field(default_factory=dict)
    lost: dict[str, None] = field(default_factory=dict)
    """What could not be read, in words."""

    def find(self, checkpoint: str, draw: str, index: int) -> tuple[str, int, Pixels] | None:
        """Return prompt, seed and pixels of one picture; None where it is not kept."""
        start = index - index % SHARD
        key = f"{checkpoint}-{draw}", start
        if key not in self.files:
            found = (self._read(store, checkpoint, draw, start) for store in self.stores)
            self.files[key] = next(filter(None, found), {})
        return self.files[key].get(index)

    def _read(
        self, store: Store, checkpoint: str, draw: str, start: int
    ) -> dict[int, tuple[str, int, Pixels]]:
        try:
            evidence = store.open(checkpoint, draw, {})
            files = evidence.storage.files()
            for stop in range(start + SHARD, start, -1):
                # The last file of a draw is shorter.
                if f"pictures-{start:08d}-{stop:08d}.tar" in files:
                    found = evidence.pictures(range(start, stop))
                    if found is not None:
                        prompts, seeds, images = found[0].prompts, found[0].seeds, found[0].images
                        kept = self.wanted.intersection(range(start, start + len(images)))
                        return {
                            at: (prompts[at - start], int(seeds[at - start]), images[at - start].copy())
                            for at in kept
                        }
        except EvidenceError as error:
            self.lost[str(error)] = None
        return {}


def pair_groups(
    rows: Sequence[Row], cards: Sequence[Card], run: Run, room: int = MOST
) -> tuple[PairGroup, ...]:
    """Return the pictures of each checkpoint of a run, as far as the store keeps them and the page has room.

    Of every checkpoint the worst pairs come first, then the first dozen. The room, in characters, is given in
    that order to all checkpoints in turn, so that none takes it from the others.
    """
    if not run.stores:
        return ()
    draws = list(_draws(rows, cards))
    album = _Album(
        tuple(map(Store, run.stores)), frozenset(index for draw in draws for index, _ in draw.wanted)
    )
    baselines = [_baseline(draw, album) for draw in draws]
    shown: list[dict[int, Pair]] = [{} for _ in draws]
    absent, crowded = [0] * len(draws), [0] * len(draws)
    for turn in zip_longest(*(draw.wanted for draw in draws)):
        for at, wanted in enumerate(turn):
            if wanted is None:
                continue
            if any(crowded):  # the page is full: nothing more is read
                crowded[at] += 1
                continue
            pair = _pair(draws[at], baselines[at], album, *wanted)
            size = 0 if pair is None else sum(len(picture.uri) for picture in pair.pictures)
            if pair is None:
                absent[at] += 1
            elif size > room:
                crowded[at] += 1
            else:
                room -= size
                shown[at][pair.index] = pair
    groups = []
    for draw, baseline, pairs, gone, full in zip(draws, baselines, shown, absent, crowded, strict=True):
        named = run.weights.get(draw.card.name) or _spec(draw.card)
        protocols = ", ".join(dict.fromkeys(row.protocol for row in draw.rows))
        title = "" if baseline is None else baseline[1]
        notes = (*_notes(baseline, gone, full, album), *([draw.undrawn] if draw.undrawn else []))
        groups.append(PairGroup(draw.card.name, protocols, named, title, tuple(pairs.values()), notes))
    return tuple(groups)


def _draws(rows: Sequence[Row], cards: Sequence[Card]) -> Iterator[_Draw]:
    """Yield each checkpoint and draw of which pictures may be kept; those that failed come first."""
    known = {card.name: card for card in cards}
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        keys = row.extra.get("checkpoint_fingerprint"), row.extra.get("draw_fingerprint")
        if row.card in known and row.measured is not None and all(keys):
            groups.setdefault((row.card, str(keys[0]), str(keys[1])), []).append(row)
    for found in groups.values():
        found.sort(key=rank)
    for (name, candidate, draw), found in sorted(groups.items(), key=lambda each: rank(each[1][0])):
        wanted = dict(_worst(found))
        n = max(row.n or 0 for row in found)
        for index in range(min(DOZEN, n)):
            wanted.setdefault(index, "")
        scenes, undrawn = _scenes(known[name], found[0].protocol, wanted)
        yield _Draw(known[name], tuple(found), candidate, draw, scenes, undrawn, tuple(wanted.items()))


def _worst(rows: Sequence[Row]) -> Iterator[tuple[int, str]]:
    """Yield the worst images of the scores in turn, each once, with the score that it is the worst of."""
    lists = [row.extra.get("worst", ()) for row in rows]
    seen: set[int] = set()
    for turn in zip_longest(*lists):
        for row, each in zip(rows, turn, strict=True):
            index = None if each is None else int(each["index"])
            if index is not None and index not in seen and len(seen) < WORST:
                seen.add(index)
                yield index, f"worst of {_label(row)}"


def _baseline(draw: _Draw, album: _Album) -> tuple[str, str] | None:
    """Return fingerprint and name of whom the pictures are compared with; None where nobody's are kept.

    That is the reference of metrics of pairs, else the checkpoint that the card's figures are recorded of,
    else that of the card's baseline.
    """
    found: dict[str, str] = {}
    for row in draw.rows:
        if reference := row.extra.get("reference_fingerprint"):
            found.setdefault(str(reference), str(row.extra.get("reference", "the reference")))
    protocols = {row.protocol for row in draw.rows}
    for card in (draw.card, _baseline_card(draw.card)):
        for record in card.records if card is not None else ():
            if card is not None and record.protocol in protocols and record.checkpoint_fingerprint:
                found.setdefault(record.checkpoint_fingerprint, _spec(card))
    for fingerprint, name in found.items():
        if fingerprint == draw.candidate:
            continue
        if any(album.find(fingerprint, draw.draw, index) is not None for index, _ in draw.wanted):
            return fingerprint, name
    return None


def _baseline_card(card: Card) -> Card | None:
    try:
        return None if card.baseline is None else read_card(find_card(card.baseline, card.path))
    except SdbenchError:  # its own row, or a test of the card, says what is wrong with it
        return None


def _spec(card: Card) -> str:
    place = card.checkpoint
    if isinstance(place, Mapping):
        return ", ".join(f"{key}: {value}" for key, value in place.items())
    return card.name if place is None else str(place)


def _pair(draw: _Draw, baseline: tuple[str, str] | None, album: _Album, index: int, why: str) -> Pair | None:
    mine = album.find(draw.candidate, draw.draw, index)
    if mine is None:
        return None
    prompt, seed, pixels = mine
    theirs = None if baseline is None else album.find(baseline[0], draw.draw, index)
    pictures = [_picture("candidate", pixels)]
    if theirs is not None:
        pictures.insert(0, _picture("baseline", theirs[2]))
    if index in draw.scenes:
        from pytest_sdbench.protocols.scenes import render

        pictures.insert(0, _picture("real", render(draw.scenes[index], pixels.shape[0])))
    return Pair(index, prompt, seed, why, tuple(pictures), tuple(_values(draw.rows, index)))


def _values(rows: Sequence[Row], index: int) -> Iterator[Value]:
    """Yield what one picture has of each score; a share of pictures says nothing of one."""
    metrics = {row.metric: row for row in reversed(rows)}  # one that is claimed twice is one score
    for metric, row in reversed(metrics.items()):
        if metric in METRICS and METRICS[metric].share and len(metrics) > 1:
            continue
        known: Iterable[Mapping[str, Any]] = (*row.extra.get("first", ()), *row.extra.get("worst", ()))
        each = next((each for each in known if each["index"] == index), None)
        if each is not None:
            form = f".{decimals(row)}f"
            theirs, whose = each.get("reference"), "recorded"
            if metric in METRICS and METRICS[metric].perfect is not None:
                whose = "equal pictures"
            beside = "" if theirs is None else f"{whose} {theirs:{form}}"
            yield Value(_label(row), f"{each['value']:{form}}", beside)


def _label(row: Row) -> str:
    return METRICS[row.metric].label if row.metric in METRICS else row.metric


def _scenes(card: Card, name: str, wanted: Iterable[int]) -> tuple[Mapping[int, Scene], str]:
    """Return the scene behind each prompt of a protocol, if any, and why scenes are not drawn here."""
    from pytest_sdbench.protocols.prompts import scenes_behind
    from pytest_sdbench.protocols.scene_glyphs import font_file

    try:
        found = scenes_behind(load_protocol(name, search=(card.path.parent,)), wanted)
    except (SdbenchError, OSError, ValueError):  # renamed or changed since: they are shown without
        return {}, ""
    try:
        if found:
            font_file()
    except SdbenchError as error:
        return {}, f"real scenes are not shown: {error}"
    return found, ""


def _picture(role: str, pixels: Pixels) -> Picture:
    """Return a picture as WebP in the page itself, no side longer than `SIDE`."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=max(image.size) <= _SMALL, quality=_QUALITY, method=6)
    uri = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return Picture(role, uri, *image.size)


def _notes(baseline: tuple[str, str] | None, absent: int, crowded: int, album: _Album) -> tuple[str, ...]:
    notes = []
    if absent:
        are = "1 pair is" if absent == 1 else f"{absent} pairs are"
        notes.append(f"{are} not shown, whose pictures the store does not keep: --sdbench-keep-images all")
    if baseline is None:
        notes.append("no baseline has kept pictures of these prompts and this noise in the store")
    if crowded:
        are = "1 pair is" if crowded == 1 else f"{crowded} pairs are"
        notes.append(f"{are} left out, so that this file stays under {_FILE}")
    return (*notes, *album.lost)


def room_text() -> str:
    """Say how many pictures a page shows at most, and how large."""
    return (
        f"Of each checkpoint the {WORST} worst pairs and the first {DOZEN}, at most {SIDE} pixels a side. "
        f"Pairs are left out where this file would grow beyond {_FILE}."
    )
