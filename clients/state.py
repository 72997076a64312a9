"""Client states on disk, with one small file for each client and version.

A version is the number of the round under which the state was saved. A new version takes effect when the client's reply
is accepted. In a simulation the engine keeps the versions in Flower's ``Context.state``; in a deployment that would be
lost with the SuperNode's process, so the server keeps them and names one in its instructions. If a client's work is
repeated after a crash, it therefore starts from the previous version, whatever the crashed attempt has written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from fedlab.errors import CheckpointError
from fedlab.method import ClientState
from fedlab.storage import renamed
from fedlab.storage.plain import read_plain
from fedlab.storage.runfolder import set_aside, write_atomic


class StateStore:
    """The client states of a run on this machine.

    Args:
        root: folder of the files, inside the run folder if there is one; it is created when the first file is written.
        device: device of the tensors of the states.
    """

    def __init__(self, root: Path, device: torch.device | str = "cpu") -> None:
        self.root, self.device = root, device

    def load(self, client: int, version: int | None) -> ClientState:
        """The state of a client in a version; an empty state if `version` is None.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        if version is None:
            return ClientState(device=self.device)
        path = self._path(client, version)
        try:
            found = safetensors.torch.load(_verified(read_plain(path)))
        except (OSError, ValueError, SafetensorError) as error:
            raise _unusable(client, path, error) from error
        return ClientState(renamed.tensors(found, self.root.parent), self.device)

    def save(
        self, client: int, version: int, state: ClientState, loaded: int | None, keep_for: Sequence[int] = ()
    ) -> None:
        """Write a version of a client's state and delete the versions that can no longer be needed.

        Args:
            client: id of the client.
            version: the version to write.
            state: the state.
            loaded: the version that `state` was loaded from. It is kept, because the reply of this attempt may be lost.
                Versions between it and the new one, and later ones, are of attempts that did not count.
            keep_for: rounds of checkpoints. For each, the newest version up to that round is kept, so that the run can
                be resumed from there.
        """
        raw = safetensors.torch.save({name: value.cpu() for name, value in sorted(state.items())})
        content = hashlib.blake2b(raw, digest_size=16).digest() + raw
        write_atomic(self._path(client, version), content, durable=False, private=True)
        found = self._versions(client)
        versions = [v for v in found if v == version or (loaded is not None and v <= loaded)]
        kept = {version, loaded, *(max((v for v in versions if v <= kept_for), default=None) for kept_for in keep_for)}
        for old in set(found) - kept:
            self._path(client, old).unlink(missing_ok=True)

    def check(self, versions: Mapping[int, int]) -> None:
        """Check that these versions of clients' states are there and as they were written.

        Args:
            versions: by client id.

        Raises:
            CheckpointError: one of them is missing or damaged.
        """
        for client, version in versions.items():
            path = self._path(client, version)
            try:
                _verified(read_plain(path))
            except (OSError, ValueError) as error:
                raise _unusable(client, path, error) from error

    def rewind(self, round: int) -> None:
        """Delete all versions that were written after a round, and set aside what is no file in their place."""
        for path in self.root.glob("*/*/*.state"):
            if path.stem.isdigit() and int(path.stem) > round:
                if path.is_dir():
                    set_aside(path)
                else:
                    path.unlink()

    def latest(self, client: int) -> ClientState | None:
        """The newest saved state of a client, for reading only; None if the client has none."""
        versions = self._versions(client)
        return self.load(client, max(versions)) if versions else None

    def _versions(self, client: int) -> list[int]:
        return [int(path.stem) for path in self._folder(client).glob("*.state") if path.stem.isdigit()]

    def _folder(self, client: int) -> Path:
        return self.root / f"{client // 1000:04d}" / f"{client:07d}"

    def _path(self, client: int, version: int) -> Path:
        return self._folder(client) / f"{version:06d}.state"


def _unusable(client: int, path: Path, error: Exception) -> CheckpointError:
    fix = f"stop the run and go on from an earlier checkpoint by `fedlab resume` ({error})"
    return CheckpointError(f"state of client {client}", str(path), "the file written in that round", fix)


def _verified(raw: bytes) -> bytes:
    if hashlib.blake2b(raw[16:], digest_size=16).digest() != raw[:16]:
        raise ValueError("its hash does not match its content: the file is incomplete or was changed")
    return raw[16:]
