"""Durations in words."""

from __future__ import annotations


def human_seconds(seconds: float, *, rough: bool = False) -> str:
    """A duration in a unit that suits it: ``12 ms``, ``3.20 s``, ``45.1 s``, ``4 min 05 s``, ``2 h 05 min``.

    Args:
        seconds: how long.
        rough: one decimal fewer and no milliseconds (``3.2 s``, ``45 s``), for what changes as one looks at it.
    """
    if seconds < 0.0995 and not rough:
        return f"{1000 * seconds:.0f} ms"
    if seconds < (59.5 if rough else 59.95):
        return f"{seconds:.{(1 if seconds >= 9.95 else 2) - rough}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
