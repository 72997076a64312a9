"""The weights that a run starts from, as the section ``init`` of its configuration names them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedlab.errors import ConfigError, Mistakes, did_you_mean
from fedlab.storage.checkpoint import NETWORK, latest_checkpoint, load_checkpoint
from fedlab.storage.plain import check_plain


def load_weights(networks: nn.ModuleDict, init: Mapping[str, str]) -> None:
    """Load weights of a file or of an earlier run into networks.

    Args:
        networks: networks by role.
        init: by role, a .safetensors file with the network's state, or a run folder, whose last complete checkpoint is
            used. ``FOLDER#ROLE`` takes the weights of another role.

    Raises:
        ConfigError: the role, file, folder or checkpoint does not exist, or the weights are those of another network.
    """
    for role, source in init.items():
        if role not in networks:
            raise ConfigError(f"init.{role}", source, "a network of the method", did_you_mean(role, list(networks)))
        network, found = networks[role], _read(role, source)
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in found.items()}
        if wanted != given:
            name = sorted(wanted.items() ^ given.items())[0][0]
            raise ConfigError(
                f"init.{role}",
                f"{source}: {name} {given.get(name, 'missing')}",
                f"the state of this network: {wanted.get(name, 'no such tensor')}",
                "build the network with the settings it was trained with",
            )
        network.load_state_dict(found)


def check_weights(init: Mapping[str, str]) -> None:
    """Check that every file and run of the section ``init`` can be read.

    Whether the weights fit can be checked only by `load_weights`, which has the networks.

    Raises:
        ConfigErrors: a file, folder or checkpoint does not exist.
    """
    mistakes = Mistakes()
    for role, source in init.items():
        with mistakes.collected():
            _read(role, source)
    mistakes.settle()


def _read(role: str, source: str) -> dict[str, Tensor]:
    key, (place, mark, other) = f"init.{role}", source.rpartition("#")
    if not mark or Path(source).exists():  # the name of a folder may contain the sign as well
        place, other = source, ""
    path = Path(place)
    if path.is_dir():
        checkpoint = latest_checkpoint(path / "checkpoints")
        if checkpoint is None:
            raise ConfigError(
                key, source, "a run folder with a complete checkpoint", "let that run reach its first checkpoint"
            )
        prefix = f"{NETWORK}{other or role}."
        tensors, _ = load_checkpoint(checkpoint)
        found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if not found:
            roles = sorted({name.removeprefix(NETWORK).split(".")[0] for name in tensors if name.startswith(NETWORK)})
            raise ConfigError(key, source, f"a network of that run: {', '.join(roles)}", f"write {place}#{roles[0]}")
        return found
    try:
        check_plain(path)
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(key, source, "a .safetensors file or a run folder", str(error)) from error
