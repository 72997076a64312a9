"""Averages of the weights of several rounds."""

from __future__ import annotations

from fedlab.method import ServerContext

_LATE = "late/"


def average_late(ctx: ServerContext, role: str, rounds: int) -> None:
    """Make the final weights of a network the mean of those after each of the last rounds of the run.

    It is called in every round, from `Method.server_update`. The sum so far is kept in ``ctx.private``.

    Args:
        ctx: the server's context.
        role: role of the network.
        rounds: number of rounds that are averaged; with 0, nothing is.

    Source: averaging late checkpoints, as in Gong, Chung and Glass 2021, arXiv 2104.01778.
    """
    if not rounds or ctx.round <= ctx.rounds - rounds:
        return
    for name, value in ctx.networks[role].state_dict().items():
        held = ctx.private.get(_LATE + name)
        ctx.private[_LATE + name] = value.clone() if held is None else held + value
        if ctx.round == ctx.rounds:
            value.copy_(ctx.private[_LATE + name] / rounds)
