"""What a run needs on the machines of a cluster."""

from __future__ import annotations

from pathlib import Path

from fedlab.config import Config, parse
from fedlab.experiment.job import _read_by_clients


def test_the_files_that_clients_read_are_those_of_the_method_and_the_networks(tmp_path: Path) -> None:
    (tmp_path / "with#mark.safetensors").touch()
    config = {
        "method": {"name": "degla", "pretrained": "/weights/clip"},
        "data": {"source": {"name": "folder", "path": "/data"}, "partition": [{"name": "iid", "clients": 2}]},
        "init": {"model": "/runs/first#teacher", "other": str(tmp_path / "with#mark.safetensors")},
        "modules": ["/modules"],
    }
    assert _read_by_clients(parse(Config, config)) == [
        Path("/weights/clip"),
        Path("/runs/first"),
        tmp_path / "with#mark.safetensors",
    ]
    on_a_hub = {**config, "method": {"name": "degla", "pretrained": "openai/clip"}, "init": {}}
    assert _read_by_clients(parse(Config, on_a_hub)) == []
