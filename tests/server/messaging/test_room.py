"""A round that the server's memory cannot hold is refused before it begins."""

from __future__ import annotations

import pytest

from fedlab.errors import MachineError
from fedlab.server.messaging.room import check_room

MB = 10**6


def test_what_is_sent_and_all_replies_must_fit() -> None:
    check_room(down=100 * MB, up=50 * MB, clients=4, free=300 * MB)
    check_room(down=100 * MB, up=50 * MB, clients=4, free=None)
    with pytest.raises(MachineError) as caught:
        check_room(down=100 * MB, up=50 * MB, clients=4, free=300 * MB - 1)
    told = str(caught.value)
    assert "memory of the server = '300 MB free'" in told
    assert "at least 300 MB: a round sends 100 MB and keeps the replies of 4 clients, 50 MB each" in told
    assert "federation.sampler" in told
