"""Weights a run starts from: the ``init`` section of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedlab.errors import ConfigError, ConfigErrors, InputError, did_you_mean
from fedlab.storage.checkpoint import NETWORK, latest_checkpoint, load_checkpoint


def load_weights(networks: nn.ModuleDict, init: Mapping[str, str]) -> None:
    """Give roles the weights of a file or of an earlier run.

    Args:
        networks: networks by role.
        init: role → a .safetensors file with the network's state, or a run folder, whose last complete checkpoint
            counts; ``FOLDER#ROLE`` takes another role's weights.

    Raises:
        ConfigError: no such role, file, folder or checkpoint, or weights of another network.
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
    """Check that every file and run of the ``init`` section can be read; whether they fit needs the networks.

    Raises:
        ConfigErrors: no such file, folder or checkpoint.
    """
    errors: list[InputError] = []
    for role, source in init.items():
        try:
            _read(role, source)
        except InputError as error:
            errors.append(error)
    if errors:
        raise ConfigErrors(errors)


def _read(role: str, source: str) -> dict[str, Tensor]:
    key, (place, mark, other) = f"init.{role}", source.rpartition("#")
    if not mark or Path(source).exists():  # a folder's name may hold the sign too
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
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(key, source, "a .safetensors file or a run folder", str(error)) from error
