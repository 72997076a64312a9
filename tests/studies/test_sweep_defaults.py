"""What a sweep and a comparison do where nothing is said: which metric they show, what they leave to the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab.config import parse
from fedlab.errors import InputError
from fedlab.report.record import main_metric
from fedlab.report.values import number
from fedlab.studies.compare import compare
from fedlab.studies.spec import SweepSpec
from fedlab.studies.sweep import sweep

BASE: dict[str, Any] = {
    "method": "supervised",
    "model": "logistic",
    "data": {"source": {"name": "shifted_digits", "train_per_class": 4, "test_size": 20}, "partition": ["domain"]},
    "federation": {"rounds": 1},
    "engine": {"name": "inline"},
    "tracking": {"console": "quiet", "tensorboard": False},
}


def spec(**raw: Any) -> SweepSpec:
    return parse(SweepSpec, {"base": BASE, **raw})


def test_what_the_base_says_of_tracking_is_left_alone(tmp_path: Path) -> None:
    tracking = {"console": "plain", "tensorboard": False, "cache": str(tmp_path / "mine")}
    done = sweep(spec(base={**BASE, "tracking": tracking}, grid={"training.lr": [0.1]}), tmp_path / "out", quiet=True)
    (run,) = done.batch.results["training.lr=0.1"].values()
    assert (run.config.tracking.cache, run.config.tracking.console) == (str(tmp_path / "mine"), "plain")
    own = sweep(
        spec(base={**BASE, "tracking": {"tensorboard": False}}, grid={"training.lr": [0.1]}),
        tmp_path / "own",
        quiet=True,
    )
    (run,) = own.batch.results["training.lr=0.1"].values()
    assert (run.config.tracking.cache, run.config.tracking.console) == (str(tmp_path / "own" / "cache"), "quiet")


def test_by_default_the_metric_is_the_one_that_the_report_shows_first(tmp_path: Path) -> None:
    scenes = {
        "method": {
            "name": "transkd", "csf": False, "pea": "none",
            "student": {"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "decoder": 8},
        },
        "data.source": {"name": "scenes", "train": 6, "test": 4, "teacher": 1, "server_test": 1, "size": 36},
        "data.partition": [{"name": "iid", "clients": 2}],
    }  # fmt: skip
    done = sweep(spec(list={"digits": {}, "scenes": scenes}), tmp_path)
    shown = [main_metric(run.history) for runs in done.batch.results.values() for run in runs.values()]
    assert done.metrics == tuple(shown)
    assert shown[0] == "accuracy"
    assert shown[1] in ("miou", "miou_present")
    assert (tmp_path / f"sweep-{shown[1]}.png").is_file()
    runs = [run.path for results in done.batch.results.values() for run in results.values()]
    assert compare(runs).metrics == tuple(shown)
    with pytest.raises(InputError, match=f"a metric of the runs: accuracy, .*{shown[1]}.*server.miou"):
        compare(runs, ["nonsense"])
    on_server = compare(runs, ["server.miou"])
    measured = fedlab.load(runs[1]).metrics["server"]["miou"]
    assert ["mIoU, server's data", "–", number(measured)] in on_server.results()
    assert on_server.picture("server.miou")
