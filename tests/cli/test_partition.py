from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab.data.partition.partition import PARTITIONERS

Cli = Callable[..., Any]
STEPS = {
    "iid": "{name: iid, clients: 4}",
    "dirichlet": "{name: dirichlet, clients: 4, alpha: 0.01}",
    "pathological": "{name: pathological, clients: 5}",
    "shard": "{name: shard, clients: 5}",
    "size": "{name: size, clients: 4}",
    "quantity": "{name: quantity, clients: 4, sigma: 2}",
    "natural": "{name: natural}",
    "domain": "{name: domain}",
    "corruption": "{name: corruption, corruptions: [fog, contrast]}",
    "site": "{name: site}",
}


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), np.arange(60) % 3
    owner, domain = np.array(["ann", "bob", "cid"])[np.arange(60) // 20], np.arange(60) % 2
    path = tmp_path / "grouped.npz"
    split = {"group_train": owner, "group_test": owner, "domain_train": domain, "domain_test": domain}
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, **split)
    return path


@pytest.mark.parametrize("name", PARTITIONERS.names())
def test_every_partitioner_is_drawn_and_tabulated(
    cli: Cli, tiny: Path, grouped: Path, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    if name == "domain":  # tests of charts draw the others
        request.getfixturevalue("drawn_charts")
    own = f"{{name: npz, path: {grouped}}}"
    sites = f"{{name: sites, sites: {{berlin: {own}, lyon: {own}}}}}"
    source = f"data.source={sites if name == 'site' else own}"
    done = cli(
        "partition", tiny, "--set", source, "--set", f"data.partition=[{STEPS[name]}]", "--out", tmp_path / "c.png"
    )
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "c.png") as picture:
        assert min(picture.size) > 200
    assert "Gini index" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_figures_are_those_of_the_partition(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    done = cli("partition", tiny, "--out", tmp_path / "new")
    lines = {
        line.rsplit(maxsplit=1)[0]: line.rsplit(maxsplit=1)[1]
        for line in done.stdout.splitlines()
        if line[:1].islower()
    }
    assert lines["samples of the smallest client"] == "20"
    assert lines["label entropy of all samples together (bits)"] == "3.322"
    assert (tmp_path / "new" / "partition.png").is_file()


def test_drift_is_drawn_and_told_by_round(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    drift = "data.drift=[{name: corruption, corruptions: [fog], rounds: 4, end: 4}, {name: labels, rounds: 4}]"
    done = cli("partition", tiny, "--set", drift, "--set", "federation.rounds=5", "--out", tmp_path / "mine.svg")
    assert done.exit_code == 0, done.output
    moments = [line for line in done.stdout.splitlines() if line.startswith("round ")]
    assert [line.split(", images ")[1] for line in moments] == ["clean", "fog 2", "fog 4"]
    assert [line.split(":")[0] for line in moments] == ["round 1", "round 3", "round 5"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine-drift.svg", "mine.svg", "tiny.yaml"]


def test_unseen_clients_are_marked(cli: Cli, tiny: Path) -> None:
    done = cli("partition", tiny, "--set", "data.unseen=[tinted]")
    assert "tinted (unseen)" in done.stdout


def test_by_default_the_chart_lies_in_the_present_folder(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    assert cli("partition", tiny).exit_code == 0
    assert (tmp_path / "partition.png").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "data.partition=[{name: iid, clients: 1000}]"], "at most 100"),
        (["--set", "data.partition=[{name: iidd}]"], "did you mean 'iid'?"),
        (["--set", "data.drift=[{name: label, rounds: 3}]"], "did you mean 'labels'?"),
        (["--set", "data.drift=[{name: corruption, rounds: 3}]"], "which gives every client a corruption"),
        (["--set", "data.unseen=[tintd]"], "did you mean 'tinted'?"),
        (["--set", "data.unseen=1"], "data.unseen = 1"),
        (["--out", "chart.bmp"], ".png, .svg, .pdf"),
    ],
)
def test_what_cannot_be_done_is_explained_and_draws_nothing(
    cli: Cli, tiny: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    done = cli("partition", tiny, *words)
    assert done.exit_code == 2
    assert told in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.yaml"]
