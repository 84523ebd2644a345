"""Name the pictograms of scenes: what captions say, and which glyph of DejaVu Sans draws it.

Only the names and the numbers of the glyphs stand here, so that evaluation needs no font.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from pytest_sdbench.protocols.splitmix import mix

DOMAINS = ("all", "faces", "things")
"""What the names of a scene may be taken from: `all`, pictures of faces alone, or of everything else."""


@dataclass(frozen=True)
class Pictogram:
    """One thing that captions can name."""

    name: str
    """One or two words of the letters a to z."""
    code: int
    """Number of its character in DejaVu Sans."""
    lined: bool
    """The glyph draws lines: its body is painted in the object's colour, its lines in a shade of it."""
    domain: str
    """`faces` or `things`."""


_SOLID = {
    "sun": 0x2600,
    "cloud": 0x2601,
    "umbrella": 0x2602,
    "star": 0x2605,
    "telephone": 0x260E,
    "clover": 0x2618,
    "skull": 0x2620,
    "radiation sign": 0x2622,
    "biohazard sign": 0x2623,
    "peace sign": 0x262E,
    "ship wheel": 0x2638,
    "king": 0x265A,
    "queen": 0x265B,
    "rook": 0x265C,
    "bishop": 0x265D,
    "knight": 0x265E,
    "pawn": 0x265F,
    "spade": 0x2660,
    "heart": 0x2665,
    "diamond": 0x2666,
    "hot spring": 0x2668,
    "note": 0x266A,
    "beamed notes": 0x266B,
    "recycling sign": 0x267B,
    "wheelchair": 0x267F,
    "flag": 0x2691,
    "hammers": 0x2692,
    "anchor": 0x2693,
    "swords": 0x2694,
    "scales": 0x2696,
    "flask": 0x2697,
    "tulip": 0x2698,
    "gear": 0x2699,
    "atom": 0x269B,
    "lily": 0x269C,
    "scissors": 0x2702,
    "aeroplane": 0x2708,
    "pen nib": 0x2712,
    "tick": 0x2714,
    "cross": 0x2716,
    "plus": 0x271A,
    "sparkle": 0x2726,
    "sunburst": 0x2739,
    "asterisk": 0x2731,
    "flower": 0x273F,
    "snowflake": 0x2744,
    "leaf": 0x2766,
    "arrow": 0x27A1,
    "circle": 0x25CF,
    "square": 0x25A0,
    "triangle": 0x25B2,
    "pointing hand": 0x261B,
    "female sign": 0x2640,
    "male sign": 0x2642,
    "dollar": 0x24,
    "euro": 0x20AC,
    "question mark": 0x3F,
    "exclamation mark": 0x21,
    "ampersand": 0x26,
    "infinity": 0x221E,
    "hash": 0x23,
    "at sign": 0x40,
    "percent": 0x25,
    "pi": 0x3C0,
    "yin yang": 0x262F,
    "pinwheel": 0x2743,
    "key": 0x26B7,
    "trident": 0x2646,
    "lightning": 0x26A1,
    "headphones": 0x260A,
    "bow tie": 0x22C8,
}

_LINED = {
    "house": 0x2302,
    "keyboard": 0x2328,
    "envelope": 0x2709,
    "snowman": 0x2603,
    "mug": 0x2615,
    "moon": 0x263E,
    "reel": 0x2707,
    "pencil": 0x270F,
    "victory hand": 0x270C,
    "writing hand": 0x270D,
    "die": 0x2684,
    "domino": 0x1F093,
    "warning sign": 0x26A0,
    "coins": 0x26C3,
    "target": 0x25CE,
    "ticked box": 0x2611,
    "benzene": 0x232C,
    "playing card": 0x1F0A1,
    "clock": 0x25F7,
    "vase": 0x26B1,
}

_FACES = {
    "sad face": 0x2639,
    "happy face": 0x263A,
    "grinning face": 0x1F600,
    "joyful face": 0x1F602,
    "laughing face": 0x1F606,
    "angel": 0x1F607,
    "devil": 0x1F608,
    "hungry face": 0x1F60B,
    "loving face": 0x1F60D,
    "cool face": 0x1F60E,
    "smirking face": 0x1F60F,
    "neutral face": 0x1F610,
    "annoyed face": 0x1F612,
    "pensive face": 0x1F614,
    "confused face": 0x1F615,
    "troubled face": 0x1F616,
    "kissing face": 0x1F618,
    "cheeky face": 0x1F61C,
    "angry face": 0x1F620,
    "crying face": 0x1F622,
    "sobbing face": 0x1F62D,
    "fearful face": 0x1F628,
    "tired face": 0x1F62B,
    "surprised face": 0x1F62E,
    "screaming face": 0x1F631,
    "blank face": 0x1F636,
    "masked face": 0x1F637,
    "cat face": 0x1F431,
    "grinning cat": 0x1F638,
    "loving cat": 0x1F63B,
    "smirking cat": 0x1F63C,
    "angry cat": 0x1F63E,
    "crying cat": 0x1F63F,
    "shocked cat": 0x1F640,
    "mouse face": 0x1F42D,
    "cow face": 0x1F42E,
    "monkey face": 0x1F435,
}


def _ranked() -> tuple[Pictogram, ...]:
    """Return all pictograms, the frequent ones first: the order is a shuffle by hash, and never changes."""
    every = [
        *(Pictogram(name, code, False, "things") for name, code in _SOLID.items()),
        *(Pictogram(name, code, True, "things") for name, code in _LINED.items()),
        *(Pictogram(name, code, True, "faces") for name, code in _FACES.items()),
    ]
    return tuple(sorted(every, key=lambda one: mix(one.code)))


PLURALS = frozenset({"beamed notes", "coins", "hammers", "headphones", "scales", "scissors", "swords"})
"""Names that go without an article."""

PICTOGRAMS = {one.name: one for one in _ranked()}
"""Every pictogram by its name, in the order of how often scenes show it."""

NAMES = tuple(PICTOGRAMS)

WEIGHTS = {name: 10_000 // (rank + 10) for rank, name in enumerate(NAMES)}
"""How often scenes show each: by Zipf's law, the first fourteen times as often as the last."""


@cache
def names_of(domain: str) -> tuple[str, ...]:
    """Return the names of a domain, the frequent ones first.

    Raises ValueError for a domain that does not exist.
    """
    if domain not in DOMAINS:
        raise ValueError(f"there is no domain {domain!r} of names; there are {', '.join(DOMAINS)}")
    return tuple(name for name, one in PICTOGRAMS.items() if domain in ("all", one.domain))


LADDERS = {domain: tuple(accumulate(WEIGHTS[name] for name in names_of(domain))) for domain in DOMAINS}
"""Running sums of the weights of every domain's names: where a ticket falls is the name it draws."""
