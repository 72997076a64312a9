"""Whether the server's memory holds the payloads of a round, found out before any is sent."""

from __future__ import annotations

from fedlab.errors import MachineError

_MB = 1e6


def check_room(down: int, up: int, clients: int, free: int | None) -> None:
    """Refuse a deployed run whose rounds cannot fit into the memory of the server's process.

    Flower itself sets no limit to the size of a model, because it sends arrays in chunks of 5 MB. But the server holds
    what it sends as bytes, and the replies of all clients of a round until they are summed. What is counted here is
    the least that a round takes; a run that passes may still take more, such as for float64 sums.

    Args:
        down: bytes that a client is sent.
        up: bytes that a client sends.
        clients: clients of a round.
        free: bytes of memory that the process may still take; None if that is not known.

    Raises:
        MachineError: they do not fit.
    """
    needed = down + clients * up
    if free is not None and needed > free:
        raise MachineError(
            "memory of the server",
            f"{free / _MB:.0f} MB free",
            f"at least {needed / _MB:.0f} MB: a round sends {down / _MB:.0f} MB and keeps the replies of {clients} "
            f"clients, {up / _MB:.0f} MB each, until they are summed",
            "give the server's machine or container more memory, let fewer clients take part in a round "
            "(federation.sampler), or make the uploads smaller (exchange.compression, or a smaller model)",
        )
