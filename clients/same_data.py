"""Makes sure that a run which goes on after an interruption finds the data on a node that it began with."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fedlab.data.federated import ClientData
from fedlab.errors import DataError
from fedlab.storage.runfolder import write_atomic

_FILE = "data"


def check_same_data(folder: Path, data: ClientData) -> None:
    """Compare a client's data with what it was when the run began on this node.

    A hash of the samples is kept in a file on the node. It is never sent, and errors do not show it, because it would
    tell whoever has a copy of the data that the node has the same.

    Args:
        folder: folder of the run's files on this node.
        data: the client's data before the first round.

    Raises:
        DataError: the data has changed.
        DiskFullError: the hash cannot be written.
    """
    fingerprint = hashlib.blake2b(f"{data.fingerprint}{data.test.fingerprint}".encode(), digest_size=16).hexdigest()
    path = folder / _FILE
    try:
        begun = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        write_atomic(path, fingerprint, private=True)
        return
    if begun != fingerprint:
        raise DataError(
            "data of the node",
            f"other samples of {data.name!r}",
            "the samples with which this run began on the node",
            "bring the data back as it was, or start a new run",
        )
