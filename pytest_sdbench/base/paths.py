"""Find what ships with the package, and where to keep what is made."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

# A scheme has an end, so that a long text without any is searched in no time.
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'\"<>]+")


def user_cache() -> Path:
    """Return the folder of what can be made again: that of `SDBENCH_CACHE`, else in the user's cache."""
    named = os.environ.get("SDBENCH_CACHE")  # a `~` is the shell's to follow, and not every file's
    return Path(os.path.expanduser(named)) if named else Path.home() / ".cache" / "pytest-sdbench"


def reference() -> Path:
    """Return the folder of cards, protocols, statistics and embedded checkpoints.

    In a wheel it is ``pytest_sdbench/_reference``; in a checkout it is ``reference/`` beside the package.
    """
    package = Path(__file__).resolve().parents[1]
    shipped = package / "_reference"
    return shipped if shipped.is_dir() else package.parent / "reference"


def real(path: str | Path) -> Path:
    """Return a path from the root on, with `~` and links followed; what leads in a circle stays as it is."""
    return Path(os.path.realpath(os.path.expanduser(path)))


def real_file(path: str | Path) -> Path:
    """Return a path as `real`, but for the last link where it is a file's: its name says of which kind it is.

    Caches of the hub, DVC and git-annex link each file to one that is named by its checksum.
    """
    whole = Path(os.path.abspath(os.path.expanduser(path)))
    return real(whole.parent) / whole.name if os.path.isfile(whole) else real(path)


def shown(path: str | Path) -> str:
    """Return a path as files tell it: from the working folder or `~` on, or of another place its name."""
    path = real_file(path)
    text = told(path)
    return path.name if text.startswith("/") else text


def told(text: object) -> str:
    """Return a text that others may read: URLs by `without_secrets`, paths from the working folder or `~` on.

    Absolute paths of other places stay: whoever reads a message has to find them.
    """
    said = str(text)
    # A URL alone is one to its end, whatever its password holds; one in a message ends at a space or a quote.
    alone = _URL.match(said) and not re.search(r"\s", said)
    said = without_secrets(said) if alone else _URL.sub(lambda url: without_secrets(url[0]), said)
    for place, within, itself in _own_places():
        whole = rf"(?<![\w.~/-]){re.escape(place)}"  # not a part of a longer path or name
        said = re.sub(rf"{whole}(?![\w./-])", itself, re.sub(f"{whole}/", within, said))
    return said


def without_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment; a password may hold any sign."""
    scheme, _, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    # No user, but a version within a path: hf://datasets/ORG/NAME@VERSION.
    within = "/" in user and ":" not in user
    kept = rest if within or not at else f"***@{place}"
    return f"{scheme}://{re.split('[?#]', kept)[0]}"


def _own_places() -> list[tuple[str, str, str]]:
    """Return the working folder and the user's own, each with what stands before a path in it, and for it."""
    places: dict[str, tuple[str, str]] = {}
    with contextlib.suppress(RuntimeError):  # nobody's home
        places |= dict.fromkeys((str(Path.home()), str(Path.home().resolve())), ("~/", "~"))
    with contextlib.suppress(OSError):  # it was removed
        places[str(Path.cwd())] = ("", ".")
    inner_first = sorted(places.items(), key=lambda each: -len(each[0]))
    return [(place, *signs) for place, signs in inner_first if place != "/"]
