"""Say what is wrong with a recipe: all of it at once, each with its key and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pytest_sdbench.base.schema import suggestion
from pytest_sdbench.cards.front_matter import dotted
from training.errors import TrainingError

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    key: str
    message: str
    found: object
    remedy: str
    on_command_line: bool = False

    def place(self, given: Sequence[str]) -> Problem:
        """Return the same problem, blamed on the command line if that is where its key was given."""
        blamed = any(f"{self.key}.".startswith((f"{key}.", f"{key}[")) for key in given)
        return replace(self, on_command_line=blamed)


def raise_all(problems: Sequence[Problem], file: str | Path) -> None:
    """Raise one TrainingError that lists the problems; return if there are none."""
    errors = [
        TrainingError(
            problem.message,
            file=COMMAND_LINE if problem.on_command_line else file,
            key=problem.key or None,
            found=problem.found,
            remedy=problem.remedy,
        )
        for problem in problems
    ]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise TrainingError(
            f"{len(errors)} errors in a recipe:\n" + "\n".join(f"  {error}" for error in errors)
        )


def explain(
    error: ValidationError, shape: type[BaseModel], values: Mapping[str, Any], given: Sequence[str]
) -> list[Problem]:
    """Return pydantic's errors in our words; ``given`` are the keys that the command line set."""
    problems = []
    for each in error.errors():
        place = list(each["loc"])
        if len(place) > 1 and place[0] in ("objective", "data"):
            del place[1]  # the kind, which is no key
        kind, key, found = each["type"], dotted(tuple(place)), each["input"]
        if kind == "extra_forbidden":
            problem = Problem(key, "unknown key", str(place[-1]), _known(shape, values, place))
        elif kind == "missing":
            problem = Problem(key, "a key is missing", None, "Add it")
        elif kind == "union_tag_not_found":
            kinds = _kinds(shape, str(place[0]))
            problem = Problem(f"{key}.kind", "a key is missing", None, f"Take one of: {', '.join(kinds)}")
        elif kind == "union_tag_invalid":
            kinds, tag = _kinds(shape, str(place[0])), str(each["ctx"]["tag"])
            remedy = f"{suggestion(tag, kinds)}Take one of: {', '.join(kinds)}"
            problem = Problem(f"{key}.kind", "unknown kind", tag, remedy)
        elif kind == "literal_error":
            choices = each["ctx"]["expected"]
            words = [word.strip("'") for word in choices.replace(" or ", ", ").split(", ")]
            remedy = f"{suggestion(str(found), words)}Take one of: {', '.join(words)}"
            problem = Problem(key, "unknown value", found, remedy)
        elif kind == "value_error":
            message, _, remedy = str(each["ctx"]["error"]).partition(": ")
            problem = Problem(key, message, found, remedy[:1].upper() + remedy[1:])
        else:
            message, remedy = _WORDS.get(kind, (each["msg"][:1].lower() + each["msg"][1:], "Correct it"))
            context = each.get("ctx", {})
            problem = Problem(key, message.format(**context), found, remedy.format(**context))
        problems.append(problem.place(given))
    # A misspelt key explains itself, and often the missing one too.
    return sorted(problems, key=lambda problem: problem.message != "unknown key")


_NUMBER = "Write a number such as 0.5 or 1e-4"
_WORDS = {
    "float_type": ("not a number", f"{_NUMBER}, without quotes"),
    "int_type": ("not a whole number", "Write a whole number such as 64, without quotes"),
    "int_from_float": ("not a whole number", "Write a whole number such as 64"),
    "bool_type": ("neither true nor false", "Write true or false"),
    "string_type": ("not text", 'Put quotes around it: "..."'),
    "string_too_short": ("empty text", "Write something, or leave the key out"),
    "string_pattern_mismatch": ("not a name", "Take letters, digits, dots, dashes and underscores"),
    "greater_than": ("not above {gt}", "Take a larger number"),
    "greater_than_equal": ("below {ge}", "Take a larger number"),
    "less_than": ("not below {lt}", "Take a smaller number"),
    "less_than_equal": ("above {le}", "Take a smaller number"),
    "finite_number": ("not a finite number", _NUMBER),
    "tuple_type": ("not a list", "Write a list: [a, b]"),
    "too_long": ("too many entries", "Write {max_length}"),
    "dict_type": ("not a mapping", "Write `key: value` pairs below it"),
    "model_type": ("not a mapping", "Write `key: value` pairs below it"),
    "model_attributes_type": ("not a mapping", "Write `key: value` pairs below it"),
}


def _known(shape: type[BaseModel], values: Mapping[str, Any], place: Sequence[str | int]) -> str:
    """Return what to write instead of an unknown key."""
    word = str(place[-1])
    here = _fields(_model_at(shape, values, place[:-1]))
    if near := suggestion(word, list(here)):
        return f"{near}Known keys: {', '.join(here)}"
    elsewhere = [key for key in _all_keys(shape, values) if key.split(".")[-1] == word]
    return (f"Did you mean {elsewhere[0]!r}? " if elsewhere else "") + f"Known keys: {', '.join(here)}"


def _model_at(
    shape: type[BaseModel], values: Mapping[str, Any], place: Sequence[str | int]
) -> type[BaseModel]:
    value: Any = values
    for part in place:
        if not isinstance(part, str):
            continue
        value = value.get(part) if isinstance(value, Mapping) else None
        shape = _model_of(_fields(shape).get(part), value) or shape
    return shape


def _all_keys(shape: type[BaseModel], values: Any, prefix: str = "") -> Iterator[str]:
    for name, annotation in _fields(shape).items():
        yield prefix + name
        value = values.get(name) if isinstance(values, Mapping) else None
        if (below := _model_of(annotation, value)) is not None:
            yield from _all_keys(below, value, f"{prefix}{name}.")


def _fields(shape: type[BaseModel]) -> dict[str, Any]:
    """Return the keys of a model, as a file writes them, and their types."""
    return {field.alias or name: field.annotation for name, field in shape.model_fields.items()}


def _model_of(annotation: Any, value: Any) -> type[BaseModel] | None:
    """Return the model that a type contains; of several kinds, the one that the value names."""
    models = list(_models(annotation))
    if len(models) < 2:
        return models[0] if models else None
    tag = value.get("kind") if isinstance(value, Mapping) else None
    return next((model for model in models if tag in get_args(model.model_fields["kind"].annotation)), None)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _kinds(shape: type[BaseModel], field: str) -> list[str]:
    models = _models(shape.model_fields[field].annotation)
    return [kind for model in models for kind in get_args(model.model_fields["kind"].annotation)]


def schema_keys(recipe: BaseModel) -> list[str]:
    """Return every dotted key of a recipe."""

    def walk(value: Any, prefix: str) -> Iterator[str]:
        if isinstance(value, Mapping):
            for name, part in value.items():
                yield f"{prefix}{name}"
                yield from walk(part, f"{prefix}{name}.")

    return list(walk(recipe.model_dump(by_alias=True, exclude={"sources", "unstated"}), ""))
