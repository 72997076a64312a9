"""Every key of a configuration explained: value, type, default, meaning."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from rich.text import Text

from fedlab.config import Component, Config, parse
from fedlab.errors import ConfigError, ConfigErrors, InputError
from fedlab.experiment.components import REGISTRIES

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_UNSET = object()
_BELOW = ".NAME"  # stands for the names in a mapping
Row = tuple[str, str, str, str, str]


def description(config: Config) -> Text:
    """Two lines for each key, including the settings of the chosen components."""
    text = Text()
    for key, value, kind, default, meaning in describe(config):
        text.append(key, style="bold").append(f" = {value}\n")
        facts = (kind, f"default {default}" if default else "", meaning)
        text.append("    " + " · ".join(fact for fact in facts if fact) + "\n", style="dim")
    return text


def describe(config: Config) -> Iterator[Row]:
    """(key, value, type, default, meaning) of every key in the order of the file.

    Where a value is wrong, the meaning begins with what is wrong about it.
    """
    yield from _section(type(config), config, "")


def reference(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of every key of a section, and of those sections in it that need not be given.

    Args:
        kind: the class of the section, or the settings of a component.
        prefix: what stands before its keys, such as ``engine.``.
    """
    schema = kind.model_json_schema()
    for name, field in kind.model_fields.items():
        key, inner = f"{prefix}{field.alias or name}", _section_in(field.annotation)
        default = _UNSET if field.is_required() else field.get_default(call_default_factory=True)
        if inner is not None and isinstance(field.annotation, type):
            yield from reference(inner, f"{key}.")
            continue
        type_text = _type(schema["properties"][field.alias or name], schema.get("$defs", {}))
        yield key, type_text, _text(default), field.description or ""
        if inner is not None:
            yield from reference(inner, f"{key}{_BELOW if _is_mapping(field.annotation) else ''}.")


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a key may hold, directly or in a mapping; components are none, because they have their own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return None if issubclass(annotation, Component) else annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _section(
    kind: type[BaseModel], values: BaseModel, prefix: str, wrong: Mapping[str, str] | None = None
) -> Iterator[Row]:
    schema = kind.model_json_schema()
    for name, field in kind.model_fields.items():
        key, value = f"{prefix}{name}", getattr(values, name, _UNSET)
        default = _UNSET if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(value, Component):
            yield from _component(key, key, value, default, field.description or "")
        elif isinstance(value, tuple) and value and isinstance(value[0], Component):
            for index, step in enumerate(value):
                yield from _component(key, f"{key}.{index}", step, _UNSET, field.description or "")
        elif isinstance(value, BaseModel):
            yield from _section(type(value), value, f"{key}.")
        else:
            kind_text = _type(schema["properties"][name], schema.get("$defs", {}))
            meaning = " · ".join(filter(None, [(wrong or {}).get(key), field.description]))
            yield key, "(not set)" if value is _UNSET else _text(value), kind_text, _text(default), meaning


def _component(registry: str, key: str, component: Component, default: object, meaning: str) -> Iterator[Row]:
    named = default.name if isinstance(default, Component) else default
    try:
        found = REGISTRIES[registry].find(component.name, f"{key}.name") if registry in REGISTRIES else None
    except ConfigError as error:
        yield f"{key}.name", component.name, "component", _text(named), f"{_problem(error)} · {meaning}"
        yield from ((f"{key}.{name}", _text(value), "", "", "") for name, value in component.settings.items())
        return
    about = (inspect.getdoc(found) or "").partition("\n")[0] if found is not None else ""
    yield f"{key}.name", component.name, "component", _text(named), " — ".join(t for t in (meaning, about) if t)
    settings = getattr(found, "Settings", None)
    if isinstance(settings, type) and issubclass(settings, BaseModel):
        yield from _settings(settings, component.settings, key)
        return
    parameters = inspect.signature(found).parameters if found is not None else {}
    for name, parameter in parameters.items():  # a Flower strategy: constructor arguments
        empty = parameter.default is parameter.empty
        value = component.settings.get(name, _UNSET if empty else parameter.default)
        annotation = "" if parameter.annotation is parameter.empty else str(parameter.annotation)
        yield f"{key}.{name}", _text(value), annotation, _text(_UNSET if empty else parameter.default), ""


def _settings(kind: type[BaseModel], given: Mapping[str, Any], key: str) -> Iterator[Row]:
    """A component's settings. Missing or wrong ones are listed too, because users look up here what they should be."""
    try:
        yield from _section(kind, parse(kind, given, key), f"{key}.")
    except ConfigErrors as errors:
        wrong = {error.key: _problem(error) for error in errors.errors}
        known = {name: value for name, value in given.items() if name in kind.model_fields}
        yield from _section(kind, kind.model_construct(**known), f"{key}.", wrong)
        for name in given.keys() - known.keys():
            yield f"{key}.{name}", _text(given[name]), "", "", wrong.get(f"{key}.{name}", "")


def _problem(error: InputError) -> str:
    return "wrong: " + "; ".join(filter(None, [error.expected, error.fix]))


def _type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The type that a JSON schema describes, in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2].lower()
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(choice, definitions) for choice in schema["anyOf"]))
    if "const" in schema:
        return _text(schema["const"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}), definitions)}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"mapping to {_type(inner, definitions)}" if isinstance(inner, dict) else "mapping"
    bounds = [f"{sign} {schema[name]:g}" for name, sign in _BOUNDS.items() if name in schema]
    return " ".join([kind, ", ".join(bounds)]).strip()


def _text(value: object) -> str:
    if value is _UNSET:
        return ""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else getattr(value, "__name__", repr(value))
