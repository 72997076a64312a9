"""YAML as configurations use it: mappings, lists, text, numbers, truth values and null, nothing else.

Differences to PyYAML's safe loader: ``1e-3`` is a number (YAML 1.2) and a date is text; a key given twice is an error;
so are tags of other types and aliases that would make the document endless or huge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

_MOST_DEEP = 50
_MOST_VALUES = 100_000
_MOST_BITS = 256  # of an integer: Python itself refuses to print those of thousands of digits
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))


class _Loader(yaml.SafeLoader):
    yaml_constructors = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (*_TAGS, None)}  # noqa: RUF012  a registry that PyYAML looks for on the class

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        written: set[tuple[str, str]] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = (key.tag, key.value)
            if name in written and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            written.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Unicode's own line breaks: written plainly PyYAML folds them to blanks on reading
        style = '"' if any(sign in data for sign in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


def _as_written(loader: _Loader, node: yaml.ScalarNode) -> object:
    return loader.construct_scalar(node)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _as_written)
_Dumper.add_representer(str, _Dumper.represent_str)
for _kind in (_Loader, _Dumper):  # the dumper quotes what the loader would read as a number
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def load_yaml(text: str) -> Any:
    """The document in `text`, no two parts of it the same object.

    Raises:
        ValueError: not YAML, or more than a configuration may hold; the message says where and why.
    """
    try:
        return unshared(yaml.load(text, _Loader))
    except RecursionError:
        raise ValueError("the document is nested too deeply") from None
    except (yaml.YAMLError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # PyYAML's constructors let all of these out on scalars that do not fit their tag (``!!int ''``)
        raise ValueError(" ".join(str(error).split())) from error


def dump_yaml(tree: object) -> str:
    """Plain values as YAML that `load_yaml` reads back equal."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def unshared(tree: Any) -> Any:
    """A copy of nested mappings and lists in which nothing is shared, so that one part can be changed alone.

    Raises:
        ValueError: endless, deeper than 50 levels or larger than 100,000 values once its aliases are written out;
            an integer beyond 256 bits.
    """
    return _copy(tree, 0)[0]


def _copy(value: Any, depth: int) -> tuple[Any, int]:
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError(f"it holds an integer of {value.bit_length()} bits; at most {_MOST_BITS} are allowed")
    if not isinstance(value, (Mapping, list, tuple)):
        return value, 1
    if depth > _MOST_DEEP:
        raise ValueError(f"it is nested more than {_MOST_DEEP} levels deep, or an alias contains itself")
    size = 1
    children = []
    for child in value.values() if isinstance(value, Mapping) else value:
        copied, more = _copy(child, depth + 1)
        children.append(copied)
        size += more
        if size > _MOST_VALUES:
            raise ValueError(f"it has more than {_MOST_VALUES:,} values when its aliases are written out")
    if isinstance(value, Mapping):
        return dict(zip(value, children, strict=True)), size
    return children, size
