"""A client's side of compression: what is compressed, and what a round loses."""

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
"""Prefix of what compression has kept back, among a client's lasting tensors."""


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
    """Take the averaged parameters out of `arrays` and compress how they differ from what was received.

    Buffers (a variance must not become negative) and an algorithm's own arrays travel as they are.

    Args:
        chain: how.
        arrays: what the client would send; compressed tensors are removed.
        parameters: network state that is a parameter, not a buffer.
        updates: tensors whose values are updates already.
        received: values of the network state as it was sent.
        state: the client's lasting tensors, which get what error feedback keeps back.
        exchange: what travels, for the ledger.
        purpose: the run's seed, client and round, for the draws.

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
