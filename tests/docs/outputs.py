"""Compares printed outputs with those that the documentation shows, apart from what differs from run to run."""

from __future__ import annotations

import re

# What differs from run to run or from machine to machine in an output: pattern, and how far two values may differ;
# None: any two are alike. Everything else must be equal, bytes and numbers of samples among it.
VARYING: tuple[tuple[str, float | None], ...] = (
    (r"\d+ h \d+ min|\d+ min \d+ s|\d+(?:\.\d+)? (?:ms|s)\b", None),  # seconds
    (r"file://\S*?/runs/", None),  # where the folder of the runs is
    (r"\d+\.\d %", 3.0),  # accuracies: the last bits of sums differ between processors
    (r"\b\d+\.\d{3}\b", 0.05),  # other metrics
)
_TOKENS = re.compile("|".join(f"({pattern})" for pattern, _ in VARYING))


def renewed(shown: str, printed: str) -> str:
    """What is printed now; a line in which nothing but times and places is new stays as it is shown."""
    kept = {bare(line): line for line in shown.splitlines() if set(tolerances(line)) == {None}}
    return "".join(f"{kept.get(bare(line), line.rstrip())}\n" for line in printed.splitlines())


def tolerances(line: str) -> list[float | None]:
    return [VARYING[(found.lastindex or 1) - 1][1] for found in _TOKENS.finditer(line)]


def tail(printed: str, shown: str) -> str:
    """The end of an output, from the line with which the shown one starts."""
    lines, first = printed.splitlines(keepends=True), shown.splitlines()[0].strip()
    starts = [index for index, line in enumerate(lines) if line.strip() == first]
    return "".join(lines[starts[-1] :] if starts else lines)


def difference(shown: str, printed: str) -> list[str]:
    """Lines that differ in more than `VARYING` allows."""
    old, new = shown.splitlines(), printed.splitlines()
    if len(old) != len(new):
        return [f"{len(old)} lines shown, {len(new)} printed"]
    return [f"{mine}\n{theirs}" for mine, theirs in zip(old, new, strict=True) if not alike(mine, theirs)]


def alike(shown: str, printed: str) -> bool:
    mine, theirs = list(_TOKENS.finditer(shown)), list(_TOKENS.finditer(printed))
    if [found.lastindex for found in mine] != [found.lastindex for found in theirs] or bare(shown) != bare(printed):
        return False
    for left, right in zip(mine, theirs, strict=True):
        allowed = VARYING[(left.lastindex or 1) - 1][1]
        if allowed is not None and abs(float(left[0].split()[0]) - float(right[0].split()[0])) > allowed:
            return False
    return True


def bare(line: str) -> str:
    """A line without what varies; columns are as wide as what stands in them."""
    return " ".join(re.sub(r"[━─]+", "─", _TOKENS.sub("·", line)).split())
