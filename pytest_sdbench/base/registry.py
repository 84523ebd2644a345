"""Know definitions by name: those of this package, of installed packages, and of a conftest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, TypeVar

from pytest_sdbench.base.errors import SdbenchError


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str: ...


Definition = TypeVar("Definition", bound=Named)


class Registry(Mapping[str, Definition]):
    """Definitions by name, each loaded when it is first asked for.

    `ours` says where the definitions of this package stand (``module:attribute``); packages that are
    installed beside it add theirs under the entry point `group`, a conftest with `register`.
    """

    def __init__(self, kind: type[Definition], group: str, ours: Mapping[str, str]) -> None:
        self._kind, self._group, self._ours = kind, group, ours
        self._loaded: dict[str, Definition] = {}

    @cached_property
    def _places(self) -> dict[str, EntryPoint]:
        ours = [EntryPoint(name, value, self._group) for name, value in self._ours.items()]
        places: dict[str, EntryPoint] = {}
        for place in (*ours, *entry_points(group=self._group)):
            if place.name in places:
                raise SdbenchError(
                    f"two packages define {place.name}",
                    key=self._group,
                    found=[places[place.name].value, place.value],
                    remedy="Uninstall one of them, or rename its definition",
                )
            places[place.name] = place
        return places

    def __getitem__(self, name: str) -> Definition:
        if name not in self._loaded:
            self._loaded[name] = self._load(self._places[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._places, **self._loaded})

    def __len__(self) -> int:
        return len({**self._places, **self._loaded})

    def is_installed(self, name: str) -> bool:
        """Return whether other processes have this definition, too: not one that a conftest registers."""
        return name in self._places

    def register(self, definition: Definition) -> None:
        """Add a definition; the same one may come twice.

        Raises SdbenchError for a name that another definition has.
        """
        if definition.name in self and self[definition.name] != definition:
            remedy = "Give the definition another name"
            raise SdbenchError("this name is taken", key=self._group, found=definition.name, remedy=remedy)
        self._loaded[definition.name] = definition

    def _load(self, place: EntryPoint) -> Definition:
        fault, cause = f"an entry point is no {self._kind.__name__} of the name {place.name!r}", None
        try:
            found = place.load()
            if isinstance(found, self._kind) and found.name == place.name:
                return found
        except (ImportError, AttributeError) as problem:
            fault, cause = f"an entry point cannot be loaded: {problem}", problem
        remedy = "Mend or uninstall the package that declares it"
        raise SdbenchError(fault, key=self._group, found=place.value, remedy=remedy) from cause
