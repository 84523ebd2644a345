"""Read a recipe: everything that decides how one checkpoint is trained, typed and checked.

A recipe is a YAML file. Its figures carry their origin: ``sources`` says where each was published,
``unstated`` why we chose what the source does not say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from pytest_sdbench.base.schema import Fault, faults, suggestion
from pytest_sdbench.base.yaml import DEEPEST, YamlFault, read_yaml, read_yaml_file
from training.errors import TrainingError, TrainingErrors
from training.recipes.checks import contradictions
from training.recipes.schema import Data, Recipe

RECIPES = Path(__file__).parent
COMMAND_LINE = "command line"
OVERRIDDEN = "set on the command line"
"""What a recipe says of the origin of a figure that an override gave."""


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe in a file, or a shipped one by its name, with ``key=value`` overrides.

    Keys of overrides are dotted (``optimizer.learning_rate=1e-4``), values YAML. Raise TrainingError that
    names file (or "command line"), key, what was found and what to do; it lists everything that is wrong.
    """
    path = find_recipe(name_or_path)
    return parse_recipe(_read(path), file=path, overrides=overrides)


def find_recipe(name_or_path: str | Path) -> Path:
    """Return the file of a recipe; raise TrainingError, with the names there are, if there is none."""
    text = str(name_or_path)
    is_name = isinstance(name_or_path, str) and "/" not in text and not text.endswith((".yaml", ".yml"))
    is_name = is_name and (text in recipe_names() or not Path(text).is_file())
    path = RECIPES / f"{text}.yaml" if is_name else Path(os.path.expanduser(text))
    if path.is_file():
        return path
    known = recipe_names()
    raise TrainingError(
        "no such recipe",
        file=None if is_name else path,
        found=text,
        remedy=f"{suggestion(path.stem, known)}Give a file, or one of: {', '.join(known)}",
    )


def parse_recipe(
    values: Mapping[str, Any], *, file: str | Path = "recipe", overrides: Sequence[str] = ()
) -> Recipe:
    """Return the recipe that plain values mean; raise TrainingError as ``load_recipe`` does."""
    values, given = _override(values, overrides)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        _raise_all(faults(error, Recipe, values), file, given)
    _raise_all(contradictions(recipe), file, given)
    return recipe


def require_data(recipe: Recipe) -> None:
    """Raise TrainingError if the recipe leaves it to its user to say where the training data is."""
    data = recipe.data
    missing = {
        "folder": ("data.path", "a folder of pictures", "data.path=FOLDER"),
        "webdataset": ("data.urls", "tar files or their URLs", "'data.urls=shards/{00000..00099}.tar'"),
        "huggingface": ("data.name", "a dataset of the hub", "data.name=ORG/NAME"),
    }.get(data.kind)
    if missing is None:
        return
    key, what, example = missing
    if getattr(data, key.removeprefix("data.")):
        return
    origin = recipe.sources.get("data") or recipe.unstated.get("data")
    raise TrainingError(
        "the recipe needs training data that does not come with it",
        file=recipe.name,
        key=key,
        remedy=f"Name {what}: {example}" + (f". Published data: {origin}" if origin else ""),
    )


def _raise_all(faults: Sequence[Fault], file: str | Path, given: Sequence[str]) -> None:
    """Raise one TrainingError that lists the faults; return if there are none.

    A fault of a key that the command line set is blamed on the command line; `given` are these keys.
    """

    def place(fault: Fault) -> str | Path:
        blamed = any(f"{fault.key}.".startswith((f"{key}.", f"{key}[")) for key in given)
        return COMMAND_LINE if blamed else file

    errors = [fault.error(TrainingError, place(fault)) for fault in faults]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise TrainingErrors(
            f"{len(errors)} errors in a recipe:\n" + "\n".join(f"  {error}" for error in errors)
        )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = read_yaml_file(path)
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise TrainingError("cannot be read", file=path, found=found, remedy="Check the file") from error
    except YamlFault as fault:
        place = path if fault.line is None else f"{path}, line {fault.line + 1}"
        found = fault.found or None
        raise TrainingError(fault.message, file=place, found=found, remedy=fault.remedy) from None
    if not isinstance(values, Mapping):
        raise TrainingError(
            "not a recipe", file=path, found=type(values).__name__, remedy="Write `key: value` lines"
        )
    return values


def _override(values: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values with the overrides in their places, and the dotted keys that they set."""
    changed, given = deepcopy(dict(values)), []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")) or key.count(".") > DEEPEST:
            raise TrainingError(
                "not an override",
                file=COMMAND_LINE,
                found=override,
                remedy="Write key=value, such as optimizer.learning_rate=1e-4",
            )
        try:
            value, _ = read_yaml(text)
        except YamlFault as fault:
            remedy = "Put quotes around it: 'key=\"...\"'"
            raise TrainingError(
                f"the value: {fault.message}", file=COMMAND_LINE, key=key, found=text, remedy=remedy
            ) from None
        # What YAML takes for a comment, an anchor, an alias or a tag is a path or a prompt here.
        if isinstance(value, str | None) and re.search(r"^\s*[&*!]|^[^'\"]*\s#", text):
            raise TrainingError(
                "YAML leaves out a part of the value",
                file=COMMAND_LINE,
                key=key,
                found=f"{text.strip()}, read as {value}",
                remedy=f"Put quotes around it: '{key}=\"...\"'",
            )
        *parents, last = key.split(".")
        place = changed
        for position, part in enumerate(parents):
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
            if not isinstance(place, dict):
                raise TrainingError(
                    f"{'.'.join(parents[: position + 1])} has no parts",
                    file=COMMAND_LINE,
                    key=key,
                    found=place,
                    remedy=f"Give it as a whole: {'.'.join(parents[: position + 1])}=...",
                )
        place[last] = value
        given.append(key)
    _follow_kind(changed, values, given)
    _disown(changed, given)
    export = changed.get("export")
    other = any(key.partition(".")[0] == "teacher" for key in given)
    if other and isinstance(export, dict) and not any(key.partition(".")[0] == "export" for key in given):
        export.pop("license", None)  # it is that of the recipe's own teacher
    return changed, given


def _follow_kind(changed: dict[str, Any], before: Mapping[str, Any], given: Sequence[str]) -> None:
    """Leave out what the recipe says of data of another kind than the one that is given."""
    data, old = changed.get("data"), before.get("data")
    if "data.kind" not in given or not (isinstance(data, dict) and isinstance(old, Mapping)):
        return
    models = get_args(get_args(Data)[0])
    fields = {get_args(model.model_fields["kind"].annotation)[0]: model.model_fields for model in models}
    if (known := fields.get(data["kind"])) is not None and old.get("kind") != data["kind"]:
        for key in old.keys() - known.keys():
            if f"data.{key}" not in given:
                data.pop(key, None)


def _disown(values: dict[str, Any], given: Sequence[str]) -> None:
    """Take back what the recipe says about the origin of figures that were replaced."""
    for name in ("sources", "unstated"):
        notes = values.get(name)
        if isinstance(notes, dict):
            values[name] = {
                note: f"{text} (but for what was {OVERRIDDEN})"
                if any(str(key).startswith(f"{note}.") for key in given)
                else text
                for note, text in notes.items()
                if not any(note == key or str(note).startswith(f"{key}.") for key in given)
            }
    notes = values.setdefault("unstated", {})
    if isinstance(notes, dict):
        notes.update({key: OVERRIDDEN for key in given if key.split(".")[0] not in ("sources", "unstated")})
