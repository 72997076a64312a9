"""What a run may tell of its surroundings, because its files are passed on and its report is shown to others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
"""What is written in the place of a secret."""

VARIABLES = frozenset({
    "CUBLAS_WORKSPACE_CONFIG", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "MKL_CBWR", "MKL_DYNAMIC",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC",
    "OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "OMP_SCHEDULE", "OMP_WAIT_POLICY", "OPENBLAS_CORETYPE",
    "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
})  # fmt: skip
"""Environment variables on which results or speed depend. All others may hold keys and are not recorded."""

_LOGIN = re.compile(r"(?<=://)[^/\s'\"]*@")
_KEYS = "|".join((
    r"(?:(?:auth|api|access|hf|hub|bearer|refresh)[_-])?token",  # a token alone may be one of a network
    r"(?:\w+[_-])?(?:password|passwd|secret|credentials?|(?:api|access|private|secret)[_-]?key)",
))  # fmt: skip
_KEY = re.compile(_KEYS, re.IGNORECASE)
_QUOTED = re.compile(rf"(?P<mark>['\"])((?:[\w-]+\.)*(?:{_KEYS})=)(?!['\"])(?:(?!(?P=mark)).)+", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"((?:^|[\s.?&;,{{'\"]|--)(?:{_KEYS})['\"]?\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^\s&,;}}'\"]+)", re.IGNORECASE
)


def known_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables among `VARIABLES`, in the order of their names."""
    return {name: environment[name] for name in sorted(VARIABLES & environment.keys())}


def without_login(text: str) -> str:
    """A text in which `HIDDEN` replaces name and password in addresses such as ``https://name:password@host``."""
    return _LOGIN.sub(f"{HIDDEN}@", text)


def redacted(text: str) -> str:
    """A command or message without passwords: those in addresses, and the values of keys that are called so.

    Such keys end in ``password``, ``token``, ``secret``, ``api_key`` or the like: ``--set method.api_key=…``.
    """
    whole = _QUOTED.sub(rf"\g<mark>\g<2>{HIDDEN}", without_login(text))  # 'key=value with spaces', as a shell needs it
    return _ASSIGNED.sub(rf"\g<1>{HIDDEN}", whole)


def is_secret(key: str) -> bool:
    """Whether the last part of a dotted key is called as those of passwords are, see `redacted`."""
    return _KEY.fullmatch(key.rpartition(".")[2]) is not None


def tree_redacted(tree: Any) -> Any:
    """As `tree_without_login`, and `HIDDEN` replaces every text and number under a key that `is_secret`."""
    if isinstance(tree, Mapping):
        return {key: _hidden(value) if is_secret(str(key)) else tree_redacted(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [tree_redacted(value) for value in tree]
    return without_login(tree) if isinstance(tree, str) else tree


def _hidden(value: Any) -> Any:
    return value if value is None or isinstance(value, bool) else HIDDEN


def tree_without_login(tree: Any) -> Any:
    """A copy of nested mappings and lists in which every text is as `without_login` returns it."""
    if isinstance(tree, Mapping):
        return {key: tree_without_login(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [tree_without_login(value) for value in tree]
    return without_login(tree) if isinstance(tree, str) else tree
