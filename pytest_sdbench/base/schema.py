"""Types of values in files, and what is wrong with those that pydantic refused: key, found, remedy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticKnownError, PydanticUseDefault

from pytest_sdbench.base.errors import SdbenchError

Word = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(gt=0, le=10**15, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]


def _left_out(value: Any) -> Any:
    if value is None:
        raise PydanticUseDefault
    return value


Value = TypeVar("Value")
OrDefault = Annotated[Value, BeforeValidator(_left_out)]
"""A value that a file may leave empty as it may leave it out."""


def one_of(*words: str) -> AfterValidator:
    """Return what lets one of some words through; to a type checker the value is text like any other."""

    def check(value: str) -> str:
        if value not in words:
            raise PydanticKnownError("literal_error", {"expected": ", ".join(words)})
        return value

    return AfterValidator(check)


Keys = tuple[str | int, ...]
"""The way to a value: keys of mappings and positions in lists."""
Shape = type[Any]
"""A pydantic model, or a dataclass that pydantic validates."""
Error = TypeVar("Error", bound=SdbenchError)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with the values of a file."""

    key: str
    """Dotted; empty where the file as a whole is meant."""
    message: str
    found: object
    remedy: str

    def error(self, kind: type[Error], file: str | Path) -> Error:
        """Return the fault as an error of a file."""
        return kind(self.message, file=file, key=self.key or None, found=self.found, remedy=self.remedy)


def faults(
    error: ValidationError,
    shape: Shape,
    values: object,
    *,
    above: Keys = (),
    unwritten: Collection[str] = (),
) -> list[Fault]:
    """Return all that is wrong with the values that a model refused, unknown keys first.

    A misspelt key explains itself, and often the missing one too. `above` is where the values stand in their
    file; `unwritten` are fields of the model that no file writes.
    """
    found = [_fault(each, shape, values, above, unwritten) for each in error.errors()]
    return sorted(found, key=lambda fault: fault.message != _UNKNOWN)


def suggestion(word: str, known: Sequence[str]) -> str:
    """Return ``Did you mean X? `` where a known word is near, else nothing."""
    folded, said = {each.casefold(): each for each in known}, word.casefold()
    # Who writes the beginning of a name means that one, however like another is.
    begun = [each for each in folded if each.startswith(f"{said}-")] if said else []
    near = begun[:1] or get_close_matches(said, folded, n=1, cutoff=0.6)
    return f"Did you mean {folded[near[0]]!r}? " if near else ""


def dotted(keys: Keys) -> str:
    """Return a way of keys as people write it: ``model-index[0].results[1]``."""
    text = ""
    for part in keys:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


_UNKNOWN, _MISSING = "unknown key", "a key is missing"
_NUMBER = "Write a number such as 0.5, without quotes"
_MAPPING = ("not a mapping", "Write `key: value` pairs below it")
_LIST = ("not a list", "Write a list: [a, b], or lines that begin with `- `")
_WORDS = {
    "float_type": ("not a number", _NUMBER),
    "int_type": ("not a whole number", "Write a whole number such as 64, without quotes"),
    "int_from_float": ("not a whole number", "Write a whole number such as 64"),
    "bool_type": ("neither true nor false", "Write true or false"),
    "string_type": ("not text", 'Put quotes around it: "..."'),
    "string_too_short": ("empty text", "Write something, or leave the key out"),
    "string_pattern_mismatch": ("not of the form {pattern}", "Write it in this form"),
    "greater_than": ("not above {gt:g}", "Take a larger number"),
    "greater_than_equal": ("below {ge:g}", "Take a larger number"),
    "less_than": ("not below {lt:g}", "Take a smaller number"),
    "less_than_equal": ("above {le:g}", "Take a smaller number"),
    "finite_number": ("not a finite number", _NUMBER),
    "list_type": _LIST,
    "tuple_type": _LIST,
    "too_long": ("too many entries", "Write {max_length}"),
    "too_short": ("too few entries", "Write at least {min_length}"),
    "dict_type": _MAPPING,
    "mapping_type": _MAPPING,
    "model_type": _MAPPING,
    "dataclass_type": _MAPPING,
    "model_attributes_type": _MAPPING,
}


def _fault(
    error: ErrorDetails, shape: Shape, values: object, above: Keys, unwritten: Collection[str]
) -> Fault:
    kind, where, found, context = error["type"], error["loc"], error["input"], error.get("ctx", {})
    keys = _keys(where, values)
    if kind == "missing":
        keys = (*_keys(where[:-1], values), where[-1])
        message, found, remedy = _MISSING, None, "Add it"
    elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
        message, found = _UNKNOWN, str(where[-1])
        known = [name for model in _models_at(shape, where[:-1]) for name in _fields(model)]
        here = [name for name in dict.fromkeys(known) if len(where) > 1 or name not in unwritten]
        elsewhere = [key for key in _all_keys(shape, values) if key.split(".")[-1] == found]
        meant = f"Did you mean {dotted((*above, elsewhere[0]))!r}? " if elsewhere else ""
        remedy = f"{suggestion(found, here) or meant}Known keys: {', '.join(here)}"
    elif kind in ("union_tag_not_found", "union_tag_invalid"):
        name = context["discriminator"].strip("'")
        models = _models_at(shape, where)
        keys, found = (*keys, name), context.get("tag")
        message = _MISSING if found is None else "unknown value"
        remedy = _one_of([tag for model in models for tag in get_args(_fields(model)[name])], found)
    elif kind == "literal_error":
        choices = context["expected"].replace(" or ", ", ").split(", ")
        message, remedy = "unknown value", _one_of([choice.strip("'") for choice in choices], found)
    elif kind == "value_error":
        message, _, remedy = str(context["error"]).partition(": ")
        remedy = remedy[:1].upper() + remedy[1:] or "Correct it"
        found = None if isinstance(found, Mapping | BaseModel) else found
    elif kind in _WORDS:
        message, remedy = (words.format(**context) for words in _WORDS[kind])
    else:
        message, remedy = error["msg"][:1].lower() + error["msg"][1:], "Correct it"
    return Fault(dotted((*above, *keys)), message, found, remedy)


def _one_of(choices: Sequence[str], found: object) -> str:
    return f"{suggestion(str(found), choices)}Take one of: {', '.join(choices)}"


def _keys(where: Keys, values: Any) -> Keys:
    """Return what of an error's place leads through the values: it also names members of unions."""
    if not where:
        return ()
    first, rest = where[0], where[1:]
    passed = _keys(rest, values)
    if isinstance(values, Mapping):
        inside = first in values
    else:
        inside = isinstance(values, list | tuple) and isinstance(first, int) and first < len(values)
    return max(passed, (first, *_keys(rest, values[first])), key=len) if inside else passed


def _models_at(shape: Shape, where: Keys) -> list[Shape]:
    """Return the models that may stand at an error's place."""
    models = [shape]
    for part in where:
        inner = [below for model in models for below in _models_in(_fields(model).get(str(part)))]
        models = inner or [model for model in models if part in _tags(model)] or models
    return models


def _all_keys(shape: Shape, values: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key; below a union only those of the member that the values name."""
    for name, annotation in _fields(shape).items():
        yield prefix + name
        value = values.get(name) if isinstance(values, Mapping) else None
        models = [] if get_origin(annotation) in (list, tuple, dict) else list(_models_in(annotation))
        if len(models) > 1:
            words = [word for word in (value or {}).values() if isinstance(word, str)]
            models = [model for model in models if any(word in _tags(model) for word in words)]
        for model in models:
            yield from _all_keys(model, value, f"{prefix}{name}.")


def _fields(model: Shape) -> dict[str, Any]:
    """Return the keys of a model as a file writes them, and their types; no file writes a tag's default."""
    if is_dataclass(model):
        hints = get_type_hints(model, include_extras=True)
        return {field.name: hints[field.name] for field in fields(model)}
    return {
        field.alias or name: field.annotation
        for name, field in model.model_fields.items()
        if field.is_required() or not _is_tag(field.annotation)
    }


def _models_in(annotation: Any) -> Iterator[Shape]:
    if isinstance(annotation, type) and (is_dataclass(annotation) or issubclass(annotation, BaseModel)):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _is_tag(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def _tags(model: Shape) -> list[Any]:
    """Return the words that tell a member of a union from the others."""
    annotations = (
        _fields(model).values()
        if is_dataclass(model)
        else [field.annotation for field in model.model_fields.values()]
    )
    return [get_args(annotation)[0] for annotation in annotations if _is_tag(annotation)]
