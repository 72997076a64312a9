"""When a method's pictures are drawn, of which samples, and what they can cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer.testing
from safetensors.torch import load_file
from torch import Tensor, nn

import fedlab
from fedlab.cli.main import app
from fedlab.config import Config
from fedlab.errors import CheckpointError
from fedlab.experiment.redraw import redraw
from fedlab.method import (
    FigureContext,
    FitContext,
    ImageGrid,
    Method,
    NotFiniteError,
    Picture,
    ServerContext,
    Task,
)

Settings = Callable[..., Config]
ROUNDS = 2
FEDLGD = {"name": "fedlgd", "ipc_local": 1, "ipc_global": 1, "warmup_steps": 1, "dm_steps": 1, "gm_steps": 1}


class Drawing(Method):
    """Draws one pixel."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": nn.Linear(1, 1)}

    def fit(self, ctx: FitContext) -> None:
        """Nothing is trained."""

    def evaluate(self, ctx: Any) -> Mapping[str, Any]:
        return {"n": torch.ones(1).numpy()}

    def evaluation_values(self, sums: Mapping[str, Any], task: Task) -> dict[str, float]:
        return {"n": 1.0}

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return {"pixel": ImageGrid(torch.zeros(1, 1, 1, 1), columns=1)}


@pytest.mark.parametrize(("every", "drawn"), [(0, [0, 1, 5]), (2, [0, 1, 2, 4, 5]), (1, [0, 1, 2, 3, 4, 5])])
def test_pictures_are_drawn_as_often_as_asked(
    settings: Settings, samples: fedlab.Dataset, every: int, drawn: list[int]
) -> None:
    config = settings(federation__rounds=5, tracking__figures_every=every)
    run = fedlab.run(config, method=Drawing, data=samples)
    assert [event["round"] for event in run.history.of("figure")] == drawn


def test_the_samples_to_draw_are_a_set_of_the_server_or_else_a_clients() -> None:
    def look(data: Mapping[str, Mapping[str, Tensor]], test: Mapping[str, Tensor] | None) -> Any:
        return SimpleNamespace(data=data, client_test=lambda client: test)

    a, b, mine, none = ({"x": torch.full((n,), float(n))} for n in (1, 2, 3, 0))
    assert FigureContext.samples(look({"a": a, "b": b}, mine), "b", "a") is b
    assert FigureContext.samples(look({"a": a}, mine), "b", "a") is a
    assert FigureContext.samples(look({"a": a}, mine), "b") is mine
    assert FigureContext.samples(look({}, None), "b") == {}
    assert FigureContext.samples(look({}, none)) == {}


class Failing(Drawing):
    """Draws and keeps things that fail, or have names that a folder cannot have."""

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        if ctx.round == 2:
            raise KeyboardInterrupt  # as if the process were ended while it draws
        pixel = ImageGrid(torch.zeros(1, 1, 1, 1), columns=1)
        return {"../../../out": pixel, "x" * 400: pixel, "nul\0": pixel, "none": None}  # type: ignore[dict-item]  # a bug

    def artifacts(self, ctx: FigureContext) -> Mapping[str, Any]:
        return {"site/A": {"x": torch.ones(1)}, "site-A": {"x": torch.zeros(1)}, "y" * 400: {}, "bad": {"x": 3}}


class Broken(Drawing):
    """Has a bug where artifacts are made."""

    def artifacts(self, ctx: FigureContext) -> Mapping[str, Any]:
        raise ZeroDivisionError("nothing to keep")


def test_a_checkpoint_is_written_before_the_pictures_of_its_round(settings: Settings, samples: fedlab.Dataset) -> None:
    config = settings(tracking__figures_every=2, tracking__checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        fedlab.run(config, method=Failing, data=samples)
    (path,) = Path(config.tracking.folder).iterdir()
    assert fedlab.load(path).checkpoint.name == "round_000002"
    resumed = fedlab.resume(path, method=Failing, data=samples)  # it does not meet the same pictures again
    assert resumed.history.end["status"] == "completed"


def test_names_of_pictures_and_artifacts_stay_in_their_folders(settings: Settings, samples: fedlab.Dataset) -> None:
    run = fedlab.run(settings(federation__rounds=1), method=Failing, data=samples)
    assert run.history.end["status"] == "completed"
    drawn = {event["name"]: run.path / event["path"] for event in run.history.of("figure") if event["round"]}
    assert set(drawn) == {"../../../out", "x" * 400, "nul\0"}
    assert {path.parent for path in drawn.values()} == {run.folder.figures}
    kept = {event["name"]: run.path / event["path"] for event in run.history.of("artifact")}
    assert set(kept) == {"site/A", "site-A", "y" * 400}
    assert {path.parent for path in kept.values()} == {run.folder.artifacts}
    assert [load_file(kept[name])["x"].item() for name in ("site/A", "site-A")] == [1, 0]
    told = [text for text in run.history.warnings if "could not be written" in text]
    assert [text.partition(" could not")[0] for text in told] == [
        "the picture 'none' after round 0",
        "the picture 'none' after round 1",
        "the artifact 'bad'",
    ]


def test_artifacts_that_fail_cost_a_warning(settings: Settings, samples: fedlab.Dataset) -> None:
    run = fedlab.run(settings(federation__rounds=1), method=Broken, data=samples)
    assert run.history.end["status"] == "completed"
    assert run.history.warnings == [
        "no artifacts after round 1: Broken.artifacts() failed: ZeroDivisionError: nothing to keep"
    ]


def test_client_names_that_are_no_file_names_are_drawn_and_kept(settings: Settings) -> None:
    rng = np.random.default_rng(0)
    names = np.array(["site/A", "y" * 400, "nul\0B", ".."])
    images, labels, sites = rng.random((16, 1, 8, 8)).astype(np.float32), np.arange(16) % 2, names[np.arange(16) // 4]
    data = fedlab.from_arrays(images, labels, images, labels, domains=(sites, sites))
    method = {**FEDLGD, "spacing": 1, "updates": 1}
    run = fedlab.run(settings(method=method, federation__rounds=1), data=data)
    assert run.history.warnings == []
    kept = {event["name"]: run.path / event["path"] for event in run.history.of("artifact")}
    assert {f"virtual-local-{name}" for name in names} < set(kept)
    assert len(set(kept.values())) == len(kept)
    assert all(path.parent == run.folder.artifacts and path.is_file() for path in kept.values())


def test_pictures_and_artifacts_of_a_finished_run_are_made_again(settings: Settings) -> None:
    source = {"name": "shifted_digits", "train_per_class": 1, "test_size": 12}
    run = fedlab.run(settings(method=FEDLGD, federation__rounds=2, data__source=source))
    made = {path: path.read_bytes() for path in run.path.glob("*/*") if path.parent.name in ("figures", "artifacts")}
    last = {path: raw for path, raw in made.items() if path.parent.name == "artifacts" or "-0002" in path.name}
    assert len(last) > 3
    for path in last:
        path.unlink()
    done = typer.testing.CliRunner().invoke(app, ["report", "--redraw", str(run.path)])
    assert done.exit_code == 0, done.output
    assert "warning" not in done.output
    assert {path: path.read_bytes() for path in last} == last
    assert (run.path / "report.html").is_file()
    assert fedlab.load(run.path).history.end["status"] == "completed"
    text = run.folder.config.read_text().replace("train_per_class: 1", "train_per_class: 2")
    run.folder.config.write_text(text)
    with pytest.raises(CheckpointError, match="the same data; it is"):
        redraw(run.path)


class Killed(Drawing):
    """Its process ends while it draws after the last round; what it draws needs an asset that the server holds."""

    ends = True

    def assets(self, task: Task) -> Mapping[str, Callable[[], nn.Module]]:
        return {"expert": lambda: nn.Linear(1, 1)}

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        if ctx.round == ROUNDS and self.ends:
            raise KeyboardInterrupt
        return super().figures(ctx)

    def artifacts(self, ctx: FigureContext) -> Mapping[str, Any]:
        return {"expert": ctx.asset("expert").state_dict()}


def test_a_run_that_was_killed_after_its_last_round_draws_it_when_it_goes_on(
    settings: Settings, samples: fedlab.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(federation__rounds=ROUNDS, data__server_holds=["expert"])
    with pytest.raises(KeyboardInterrupt):
        fedlab.run(config, method=Killed, data=samples)
    (path,) = Path(config.tracking.folder).iterdir()
    assert fedlab.load(path).history.of("artifact") == []
    monkeypatch.setattr(Killed, "ends", False)
    resumed = fedlab.resume(path, method=Killed, data=samples)
    assert resumed.history.end["status"] == "completed"
    assert resumed.history.warnings == []
    assert [event["round"] for event in resumed.history.of("figure")] == [0, 1, ROUNDS]
    (kept,) = resumed.history.of("artifact")
    content = (path / kept["path"]).read_bytes()
    (path / kept["path"]).unlink()
    assert redraw(path, Killed(Killed.Settings()), samples) == []
    assert (path / kept["path"]).read_bytes() == content
    with pytest.raises(CheckpointError, match=f"all 2 are done.*\n*.*fedlab report --redraw {path}"):
        fedlab.resume(path, method=Killed, data=samples)


class Diverging(Drawing):
    """Its server makes numbers that are none in round 2."""

    def server_update(self, ctx: ServerContext) -> None:
        if ctx.round == 2:
            ctx.private["memory"] = torch.tensor([1.0, float("nan")])


def test_nan_reaches_no_checkpoint(settings: Settings, samples: fedlab.Dataset) -> None:
    config = settings(tracking__checkpoint_every=1)
    with pytest.raises(NotFiniteError, match=r"after round 2, in server/memory, .* last checkpoint is of round 1"):
        fedlab.run(config, method=Diverging, data=samples)
    (path,) = Path(config.tracking.folder).iterdir()
    assert [place.name for place in (path / "checkpoints").glob("round_*")] == ["round_000001"]
    assert fedlab.load(path).history.end["status"] == "failed"
