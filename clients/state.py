"""Lasting tensors of clients, one small file per client and version.

Flower's ``Context.state`` carries only a version number; it moves on when the engine accepts a reply. A client that
is repeated after a crash therefore starts from the version before, whatever the crashed attempt had written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from fedlab.errors import CheckpointError
from fedlab.method import ClientState
from fedlab.storage import renamed
from fedlab.storage.runfolder import write_atomic


class StateStore:
    """Client states below one folder.

    Args:
        root: folder of this run's states on this machine, inside the run folder if there is one; created when first
            written to.
        device: where states hand out their tensors.
    """

    def __init__(self, root: Path, device: torch.device | str = "cpu") -> None:
        self.root, self.device = root, device

    def load(self, client: int, version: int | None) -> ClientState:
        """The state a client had at `version`; None is a client that has none yet.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        if version is None:
            return ClientState(device=self.device)
        path = self._path(client, version)
        try:
            found = safetensors.torch.load(_verified(path.read_bytes()))
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"state of client {client}", str(path), "the file written in that round", str(error)
            ) from error
        return ClientState(renamed.tensors(found, self.root.parent), self.device)

    def save(
        self, client: int, version: int, state: ClientState, loaded: int | None, keep_for: Sequence[int] = ()
    ) -> None:
        """Write a version and drop those nobody can ask for again.

        Args:
            loaded: the version `state` was loaded from, which stays: this attempt's reply may yet be lost.
            keep_for: rounds of checkpoints; the newest version up to each stays, for resuming there.
        """
        raw = safetensors.torch.save({name: value.cpu() for name, value in sorted(state.items())})
        write_atomic(self._path(client, version), hashlib.blake2b(raw, digest_size=16).digest() + raw, durable=False)
        versions = self._versions(client)
        kept = {version, loaded, *(max((v for v in versions if v <= kept_for), default=None) for kept_for in keep_for)}
        for old in set(versions) - kept:
            self._path(client, old).unlink(missing_ok=True)

    def rewind(self, round: int) -> None:
        """Forget everything written after a round."""
        for path in self.root.glob("*/*/*.state"):
            if path.stem.isdigit() and int(path.stem) > round:
                path.unlink()

    def latest(self, client: int) -> ClientState | None:
        """The newest state of a client, for looking at it; None where it has none."""
        versions = self._versions(client)
        return self.load(client, max(versions)) if versions else None

    def _versions(self, client: int) -> list[int]:
        return [int(path.stem) for path in self._folder(client).glob("*.state") if path.stem.isdigit()]

    def _folder(self, client: int) -> Path:
        return self.root / f"{client // 1000:04d}" / f"{client:07d}"

    def _path(self, client: int, version: int) -> Path:
        return self._folder(client) / f"{version:06d}.state"


def _verified(raw: bytes) -> bytes:
    if hashlib.blake2b(raw[16:], digest_size=16).digest() != raw[:16]:
        raise ValueError("its hash does not match its content: the file is incomplete or was changed")
    return raw[16:]
