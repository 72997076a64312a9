from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fedlab
from fedlab.errors import CheckpointError, InputError
from fedlab.report.spread import Quantity, Spread, quantities
from fedlab.storage.checkpoint import load_checkpoint, save_checkpoint
from fedlab.studies.compare import Comparison, compare

BASE: dict[str, Any] = {
    "method": "supervised",
    "model": "logistic",
    "data": {"source": {"name": "shifted_digits", "train_per_class": 4, "test_size": 20}, "partition": ["domain"]},
    "federation": {"rounds": 2},
    "engine": {"name": "inline"},
    "tracking": {"console": "quiet", "tensorboard": False, "checkpoint_every": 1},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A finished run, each made once."""
    folder, known = tmp_path_factory.mktemp("runs"), dict[str, Path]()

    def make(name: str, *overrides: str) -> Path:
        if name not in known:
            places = [f"tracking.folder={folder}", f"tracking.name={name}"]
            known[name] = fedlab.run(BASE, overrides=[*overrides, *places]).path
        return known[name]

    return make


def told(rows: list[list[str]]) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in rows}


def test_only_keys_that_differ_are_told_and_seeds_are_put_together(made: Callable[..., Path]) -> None:
    runs = [made("a0"), made("b0", "training.lr=0.5"), made("a1", "seed=1")]
    found = compare(runs)
    assert found.settings() == [["key", "A", "B"], ["training.lr", "0.01", "0.5"]]
    assert [[*group.records] for group in found.groups] == [[0, 1], [0]]
    a0, b0, a1 = (fedlab.load(path).metrics["mean"]["accuracy"] for path in runs)
    results = told(found.results())
    std = abs(a0 - a1) / math.sqrt(2)
    assert results["accuracy, mean over clients (%)"] == [
        f"{100 * (a0 + a1) / 2:.1f} ± {100 * std:.1f}",
        f"{100 * b0:.1f} ({100 * (b0 - (a0 + a1) / 2):+.1f})",
    ]
    assert results["runs"] == ["2", "1"]
    samples = sum(fedlab.load(runs[0]).metrics["samples"].values())
    assert {cell.split(" of ")[0] for cell in results["measured on"]} == {f"{samples:,} test samples"}
    assert results["traffic"][1].endswith("(×1.00)")


def test_settings_that_one_run_lacks_and_parts_of_lists_are_told(made: Callable[..., Path]) -> None:
    found = compare([made("a0"), made("two", "data.partition=[{name: iid, clients: 2}]", "model.name=convnet")])
    assert told(found.settings()) == {
        "key": ["A", "B"],
        "model.name": ["logistic", "convnet"],
        "data.partition.0.name": ["domain", "iid"],
        "data.partition.0.clients": ["not set", "2"],
    }


def test_equal_runs_are_told_to_be_bitwise_equal_and_not_averaged(made: Callable[..., Path]) -> None:
    found = compare([made("a0"), made("again"), made("a1", "seed=1")])
    assert found.differing == []
    assert [[*group.records] for group in found.groups] == [[0, 1], [0]]
    assert found.equal_weights() == "weights of the last checkpoints: bitwise equal are A seed 0 = B seed 0"
    other = compare([made("a0"), made("b0", "training.lr=0.5")])
    assert other.equal_weights().endswith("no two runs are bitwise equal")


@pytest.mark.parametrize(("name", "equal"), [("strategy/momentum", True), ("network/model.new", False)])
def test_only_weights_count_as_weights(made: Callable[..., Path], tmp_path: Path, name: str, equal: bool) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made("a0"), copy)
    last = fedlab.load(copy).checkpoint
    tensors, meta = load_checkpoint(last)
    save_checkpoint(last, {**tensors, name: torch.ones(2)}, {k: v for k, v in meta.items() if k != "sha256"})
    assert ("A seed 0 = B seed 0" in compare([made("a0"), copy]).equal_weights()) is equal


def test_where_the_work_ran_is_told_apart_but_not_where_it_was_written(made: Callable[..., Path]) -> None:
    found = compare([made("a0"), made("threads", "engine.retries=3", "tracking.tensorboard=false")])
    assert found.differing == ["engine.retries"]
    assert "A seed 0 = B seed 0" in found.equal_weights()


def test_unfinished_runs_are_compared_as_far_as_they_are(made: Callable[..., Path], tmp_path: Path) -> None:
    whole = fedlab.load(made("a0"))
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "config.yaml").write_bytes(whole.folder.config.read_bytes())
    lines = whole.folder.events.read_text().splitlines()
    cut = next(i for i, line in enumerate(lines) if '"event": "evaluation"' in line)
    (torn / "events.jsonl").write_text("\n".join(lines[: cut + 1]) + '\n{"event": "rou')
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_bytes(whole.folder.config.read_bytes())
    found = compare([whole.path, torn, empty])
    statuses = [row[3:] for row in found.runs()[1:]]
    assert [row[:2] for row in statuses] == [
        ["completed", "2 of 2"],
        ["no end recorded", "1 of 2"],
        ["no end recorded", "0 of 2"],
    ]
    assert [row[2] for row in statuses[1:]] == ["–", "–"]
    assert told(found.results())["last evaluation"] == ["round 2", "round 1", "round 0"]
    assert told(found.results())["accuracy, mean over clients (%)"][2] == "–"
    found.write(tmp_path / "out")
    assert (tmp_path / "out" / "compare-accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_many_groups_are_rows(made: Callable[..., Path]) -> None:
    runs = [made(f"lr{i}", f"training.lr=0.{i}", "federation.rounds=1") for i in range(1, 7)]
    results = compare(runs).results()
    assert results[0][0] == ""
    assert [row[0] for row in results[1:]] == list("ABCDEF")


def test_what_is_written_holds_every_run_in_plain_numbers(made: Callable[..., Path], tmp_path: Path) -> None:
    found = compare([made("a0"), made("b0", "training.lr=0.5")], metrics=["accuracy", "loss"])
    written = found.write(tmp_path)
    assert sorted(path.name for path in written) == [
        "compare-accuracy.png",
        "compare-loss.png",
        "compare.csv",
        "compare.md",
    ]
    with (tmp_path / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["loss_clients"]) == fedlab.load(made("b0")).metrics["mean"]["loss"]
    assert len(rows[0]["weights"]) == 32
    assert "| training.lr | 0.01 | 0.5 |" in (tmp_path / "compare.md").read_text()


def test_what_cannot_be_compared_is_refused(made: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two or more different runs"):
        compare([made("a0"), made("a0")])
    with pytest.raises(CheckpointError, match="a run folder"):
        compare([made("a0"), tmp_path])
    with pytest.raises(InputError, match="did you mean 'accuracy'"):
        compare([made("a0"), made("again")], metrics=["accuracyy"])
    (tmp_path / "config.yaml").write_text("seed: [")
    with pytest.raises(CheckpointError, match="can be read"):
        compare([made("a0"), tmp_path])


def test_curves_are_named_by_what_sets_them_apart(made: Callable[..., Path]) -> None:
    apart: Comparison = compare([made("a0"), made("b0", "training.lr=0.5")])
    assert [apart.describe(group) for group in apart.groups] == ["A: lr=0.01", "B: lr=0.5"]
    same = compare([made("a0"), made("again")])
    assert [same.describe(group) for group in same.groups] == ["A: a0", "B: again"]


# figures


def test_a_spread_is_mean_and_sample_standard_deviation_of_what_there_is() -> None:
    assert Spread.of([1.0, None, 3.0]) == Spread(2.0, pytest.approx(math.sqrt(2)), 2)
    assert Spread.of([4.0]) == Spread(4.0, None, 1)
    assert Spread.of([None]) == Spread(None, None, 0)


def quantity(key: str) -> Quantity:
    (found,) = (q for q in quantities(["accuracy", "loss"]) if q.key == key)
    return found


@pytest.mark.parametrize(
    ("key", "spread", "other", "text"),
    [
        ("accuracy_clients", Spread(0.5, None, 1), Spread(0.25, None, 1), "50.0 (+25.0)"),
        ("accuracy_pooled", Spread(0.5, 0.01, 3), Spread(0.75, 0.1, 3), "50.0 ± 1.0 (-25.0)"),
        ("loss_worst", Spread(1.5, 0.5, 2), Spread(1.0, None, 1), "1.500 ± 0.500 (+0.5)"),
        ("bytes", Spread(3e6, 0.0, 2), Spread(2e6, None, 1), "3.00 MB (×1.50)"),
        ("accuracy_pooled", Spread(0.5, 0.0, 3), Spread(None, None, 0), "50.0 ± 0.0"),
        ("seconds", Spread(3.0, None, 1), Spread(0.0, None, 1), "3.00 s (×–)"),
        ("seconds", Spread(3.0, None, 1), Spread(None, None, 0), "3.00 s"),
        ("seconds", Spread(None, None, 0), Spread(3.0, None, 1), "–"),
    ],
)
def test_figures_in_words(key: str, spread: Spread, other: Spread, text: str) -> None:
    assert quantity(key).compared(spread, other) == text


def test_the_worst_client_is_the_one_with_the_largest_loss(made: Callable[..., Path]) -> None:
    found = compare([made("a0"), made("b0", "training.lr=0.5")], metrics=["loss"])
    record = found.groups[0].records[0]
    clients = fedlab.load(made("a0")).metrics["clients"].values()
    assert quantity("loss_worst").of(record) == max(client["loss"] for client in clients)
    assert quantity("accuracy_worst").of(record) == min(client["accuracy"] for client in clients)


def test_where_much_differs_one_key_that_tells_all_apart_names_the_curves(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    much = ["federation.strategy={name: fedprox, mu: 0.25}", "training.batch_size=16", "training.local_epochs=2"]
    found = compare([made("a0"), made("much", "training.lr=0.5", *much), made("more", "training.lr=0.25", *much)])
    assert len(found.words(found.groups[0])) > 24
    assert [found._telling(group) for group in found.groups] == ["lr=0.01", "lr=0.5", "lr=0.25"]
    page = found.write_page(tmp_path / "page.html").read_text()
    assert "3 runs compared" in page
    assert "federation.strategy.settings.mu" in page or "federation.strategy.mu" in page
    same = compare([made("much"), made("twin", "training.lr=0.5", *much), made("a0")])
    assert [same._telling(group) for group in same.groups] == ["", "", ""], "two of them do not differ in any key"


def test_keys_are_named_by_as_few_parts_as_tell_them_apart(made: Callable[..., Path]) -> None:
    found = compare([made("a0"), made("two", "data.partition=[{name: iid, clients: 2}]", "model.name=convnet")])
    assert found._short_keys == {
        "model.name": "model",
        "data.partition.0.name": "partition.0",
        "data.partition.0.clients": "clients",
    }
