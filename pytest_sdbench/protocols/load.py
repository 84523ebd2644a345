"""Find and read protocol files."""

from __future__ import annotations

import contextlib
import filecmp
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pytest_sdbench.base.errors import ProtocolError
from pytest_sdbench.base.files import read_bounded
from pytest_sdbench.base.paths import real, reference
from pytest_sdbench.base.schema import suggestion
from pytest_sdbench.base.yaml import LARGEST, YamlFault, read_yaml_file
from pytest_sdbench.protocols.protocol import SEE, Protocol, validate

ENDINGS = (".yaml", ".yml")
"""How the files of protocols end."""


def load_protocol(name: str | Path, search: Sequence[Path] = ()) -> Protocol:
    """Read a protocol by the path of its YAML file, or by name.

    A name is looked up in the package, and in each folder of `search` and its `protocols` folder. Raises
    ProtocolError for a name that is unknown or means two things, and for a file that is broken.
    """
    text = str(name)
    named = isinstance(name, Path) or text.endswith(ENDINGS) or "/" in text
    if named and (Path(name).exists() or Path(name).name != text or Path(name).stem not in _files(search)):
        return _read(Path(name))
    text, found = Path(text).stem if named else text, _files(search)
    if text not in found:
        remedy = f"{suggestion(text, tuple(found))}Known are {', '.join(found)}"
        raise ProtocolError("unknown protocol", key="protocol", found=text, remedy=remedy)
    first, *others = found[text]
    for other in others:
        if not filecmp.cmp(other, first, shallow=False):
            message, remedy = f"the name {text!r} is taken by {first}", "Give this file another name."
            raise ProtocolError(message, file=other, remedy=remedy)
    return _read(first)


def protocol_names(search: Sequence[Path] = ()) -> tuple[str, ...]:
    """Return the names that `load_protocol` knows."""
    return tuple(_files(search))


def declare_imported(search: Sequence[Path]) -> None:
    """Make the metrics known that protocols in these folders declare, so that cards may claim them.

    A protocol that cannot be read declares nothing: whatever is measured under it says so.
    """
    packaged = reference() / "protocols"
    for file in (file for files in _files(search).values() for file in files if file.parent != packaged):
        with contextlib.suppress(OSError, ProtocolError):
            if b"imported" in read_bounded(file, LARGEST):
                load_protocol(file)


def _files(search: Sequence[Path]) -> dict[str, list[Path]]:
    folders = [reference() / "protocols"]
    for folder in search:
        folders += [folder, folder / "protocols"]
    found: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(real(folder) for folder in folders):
        for file in sorted(file for ending in ENDINGS for file in folder.glob(f"[!.]*{ending}")):
            found.setdefault(file.stem, []).append(file)
    return found


def _read(path: Path) -> Protocol:
    """Read a file, once while it stays the same: every claim of every card asks for its protocol."""
    try:
        status = path.stat()
    except OSError:
        return _parse(path, 0, 0)
    return _parse(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _parse(path: Path, _modified: int, _size: int) -> Protocol:
    try:
        content = read_yaml_file(path)
    except FileNotFoundError:
        remedy = f"Known names: {', '.join(protocol_names())}"
        raise ProtocolError("there is no such protocol file", file=path, remedy=remedy) from None
    except OSError as error:
        raise ProtocolError(f"the protocol cannot be read: {error.strerror}", file=path) from error
    except UnicodeDecodeError as error:
        raise ProtocolError(
            f"the protocol is not UTF-8 text: {error.reason}", file=path, remedy=SEE
        ) from None
    except YamlFault as fault:
        key = None if fault.line is None else f"line {fault.line + 1}"
        message, found = f"the protocol: {fault.message}", fault.found or None
        raise ProtocolError(message, file=path, key=key, found=found, remedy=fault.remedy) from None
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ProtocolError("a protocol is a mapping of keys", file=path, found=found, remedy=SEE)
    for key in ("name", "path"):
        if key in content:
            remedy = "The name of a protocol is that of its file."
            raise ProtocolError("unknown key", file=path, key=key, remedy=remedy)
    return validate({**content, "name": path.stem, "path": path}, path)
