"""Turns pydantic's findings about a configuration into FedLab's errors."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from fedlab.config.base import UnfitValue
from fedlab.errors import UNSET, ConfigError, InputError, did_you_mean

_COMPONENT = "Component"  # `fedlab.config.base.Component`


def explain(section: type[BaseModel], details: Sequence[Any], prefix: str) -> list[InputError]:
    """One error for each key. Where a value may have several types, pydantic reports an error for each of them.

    Args:
        section: the class of the configuration that was to be read.
        details: pydantic's errors.
        prefix: put before every key.
    """
    errors: dict[str, InputError] = {}
    for detail in details:
        location = tuple(part for part in detail["loc"] if not (isinstance(part, str) and _UNION_TAG.match(part)))
        raised = detail.get("ctx", {}).get("error")
        unfit = raised if isinstance(raised, UnfitValue) else None
        parts = (*((prefix,) if prefix else ()), *location, *((unfit.key,) if unfit else ()))
        key = ".".join(map(str, parts)) or "configuration"
        if unfit:
            error: InputError = ConfigError(key, unfit.value, unfit.expected, unfit.fix)
        else:
            error = _explain_one(section, detail, key, location)
        if key in errors and errors[key].expected != error.expected:
            error = ConfigError(key, error.value, f"{errors[key].expected}, or {error.expected}", error.fix)
        errors[key] = error
    # of a value that may be a list or a mapping, what is wrong inside it says more than that it is not the other
    return [e for key, e in errors.items() if not any(k.startswith(f"{key}.") for k in errors if k != key)]


def _explain_one(
    section: type[BaseModel], detail: Mapping[str, Any], key: str, location: tuple[Any, ...]
) -> InputError:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        owner = _section_at(section, location[:-1])
        return ConfigError(
            key,
            value,
            "no such key",
            did_you_mean(str(location[-1]), [f.alias or n for n, f in owner.model_fields.items()] if owner else ()),
        )
    if kind == "invalid_key":
        return ConfigError(key, value, "keys that are text", "quote the key")
    if kind == "missing":
        return ConfigError(key, UNSET, "this key is required", "set it")
    if kind == "model_type":
        component = detail["ctx"]["class_name"] == _COMPONENT
        fix = "write {name: …}, or the name alone" if component else ""
        return ConfigError(key, value, "a name with settings" if component else "a mapping of keys to values", fix)
    if kind == "string_pattern_mismatch":
        return ConfigError(key, value, f"text that matches the pattern {detail['ctx']['pattern']}")
    expected = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return ConfigError(key, value, _PLAIN.get(kind, expected))


_PLAIN = {
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "string_type": "text",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}

# pydantic names the branch of a union inside an error's location; users wrote no such key
_UNION_TAG = re.compile(r"(tuple|dict|literal|function-before)\[|constrained-(float|int)$")


def _section_at(section: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel] | None:
    current: type[BaseModel] | None = section
    for part in location:
        field = current.model_fields.get(str(part)) if current else None
        current = _inner_section(field.annotation) if field else None
    return current


def _inner_section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((found for arg in typing.get_args(annotation) if (found := _inner_section(arg))), None)
    return None
