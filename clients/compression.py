"""The client's part of compression: which tensors are compressed, and how error feedback keeps what is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, MutableMapping

import numpy as np
import torch
from torch import Tensor

from fedlab.errors import FedLabError
from fedlab.method.exchange import Exchange
from fedlab.protocol.compression import Chain, Side
from fedlab.protocol.encoding import Encoded, as_vector, size_of
from fedlab.protocol.messages import ALGORITHM
from fedlab.seeding import numpy_generator

RESIDUAL = "compression/"
"""Prefix of the names under which the client state holds what error feedback keeps."""


def compress(
    chain: Chain,
    arrays: dict[str, Tensor],
    parameters: Collection[str],
    updates: Collection[str],
    received: Mapping[str, np.ndarray],
    state: MutableMapping[str, Tensor],
    exchange: Exchange,
    purpose: tuple[int, int, int],
) -> Encoded:
    """Take the floating-point parameters out of `arrays`, and compress their differences from the received values.

    Buffers are sent uncompressed, because a compressed variance could become negative. Arrays that an algorithm sends
    under names of its own, such as SCAFFOLD's control variates, are sent uncompressed too.

    Args:
        chain: the steps of the compression.
        arrays: what the client would send without compression; the tensors that are compressed are removed from it.
        parameters: names of the network state that are parameters, not buffers.
        updates: names of arrays whose values are updates already, so that the received values are not subtracted.
        received: values of the network state as the client received it.
        state: the client state, which holds what error feedback keeps from round to round.
        exchange: the exchange group of every tensor, by which the ledger counts bytes.
        purpose: the run's seed, the client and the round, on which the random draws depend.

    Returns:
        The compressed updates, and the bytes of all arrays of the reply by exchange group.

    Raises:
        FedLabError: an update is not finite.
    """
    parts: dict[str, Side] = {}
    seed, client, round = purpose
    for name in [n for n in arrays if n in parameters and arrays[n].is_floating_point() and arrays[n].numel()]:
        values = arrays.pop(name).detach().cpu().numpy()
        update = as_vector(values if name in updates else values - received[name])
        key = f"{RESIDUAL}{name}"
        if chain.feedback and key in state:
            update = update + state[key].cpu().numpy()
        if not np.isfinite(update).all():
            raise FedLabError(
                f"tensor {name!r} holds values that are not finite; the client's training has most likely diverged: "
                "lower training.lr or set training.clip_norm"
            )
        parts[name] = chain.encode(update, numpy_generator(seed, "client", client, round, "compression", name))
        if chain.feedback:
            state[key] = torch.from_numpy(update - chain.decode(parts[name], update.size))
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in arrays.items()}
    sizes |= {name: size_of(side) for name, side in parts.items()}
    sent = Counter[str]()
    for name, size in sizes.items():
        sent[exchange.group_of[name].name if name in exchange.group_of else ALGORITHM] += size
    return Encoded(chain.text, parts, frozenset(updates) & set(parts), dict(sent))
