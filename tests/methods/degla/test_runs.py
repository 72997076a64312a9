"""Whole runs of DeGLA: what travels and what stays, equal results everywhere, the user's own data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fedlab
from fedlab.clients.runtime import ClientRuntime
from fedlab.data.generated.negatives import KINDS
from fedlab.method import EvaluationContext
from fedlab.methods.degla import pictures
from fedlab.methods.degla.method import DeGLA
from tests.methods.states import same, weights

Start = Callable[..., fedlab.Run]
TOWER = {"width": 16, "layers": 1, "heads": 2}
SMALL: dict[str, Any] = {
    "method": {
        "name": "degla",
        "alpha": 0.9,
        "held_out": ["replace_relation", "order"],
        "merge": [["reshuffle", "swap_noun"]],
        "network": {"vision": TOWER, "text": TOWER, "projection": 8},
        "pretrain": {"steps": 3, "batch_size": 16},
    },
    "data": {
        "source": {
            "name": "shapecap", "train": 64, "test": 24, "composition": 12, "pretrain": 40, "zeroshot": 16,
        },
        "partition": ["natural"],
    },
    "training": {"optimizer": "adamw", "lr": 0.003, "batch_size": 8, "local_steps": 2, "schedule": "cosine"},
    "federation": {"rounds": 3},
    "evaluation": {"every": 3},
    "engine": {"name": "inline", "device": "cpu"},
}  # fmt: skip
TRAINED_WITH_TEXT = ("text_model.", "text_projection.", "logit_scale")


FIGURES = DeGLA.figures


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Drawing takes more time than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeGLA, "figures", lambda self, ctx: {})
        yield


@pytest.fixture(scope="module")
def run(runner: Callable[..., Start]) -> Start:
    return runner("degla", SMALL)


@pytest.fixture(scope="module")
def reference(run: Start) -> fedlab.Run:
    return run()


def size(run: fedlab.Run, role: str, prefixes: tuple[str, ...] = ("",)) -> int:
    found = weights(run, role)
    return 4 * sum(v.numel() for n, v in found.items() if n.removeprefix(f"network/{role}.").startswith(prefixes))


# §6: what travels


def test_the_servers_teacher_doubles_the_downlink(reference: fedlab.Run) -> None:
    model = size(reference, "student")
    for round in reference.history.rounds:
        assert round["bytes"] == {
            "student": {"down": 4 * model, "up": 4 * model},
            "teacher": {"down": 4 * model, "up": 0},
            "results": {"down": 0, "up": 4 * 4},  # each client's number of steps
        }


@pytest.mark.parametrize("teacher", ["client_state", "frozen"])
def test_other_teachers_are_sent_once(run: Start, teacher: str) -> None:
    done = run(f"method.teacher={teacher}")
    model = size(done, "student")
    first, *later = [round["bytes"] for round in done.history.rounds]
    assert first["student"] == {"down": 4 * model, "up": 4 * model}
    assert sum(group["down"] for group in first.values()) == 8 * model
    assert later == [{"student": {"down": 4 * model, "up": 4 * model}}] * 2
    start = run(f"method.teacher={teacher}", until=1)
    assert same(weights(done, "teacher"), weights(start, "teacher"))


def test_without_a_teacher_nothing_but_the_student_travels(run: Start) -> None:
    done = run("method.lambda_tgc=0", "method.lambda_distill=0")
    model = size(done, "student")
    assert [r["bytes"] for r in done.history.rounds] == [{"student": {"down": 4 * model, "up": 4 * model}}] * 3


def test_an_untrained_part_is_sent_once(run: Start) -> None:
    done = run("method.train=text")
    text, whole = size(done, "student", TRAINED_WITH_TEXT), size(done, "student")
    first, *later = [round["bytes"] for round in done.history.rounds]
    assert sum(group["down"] for group in first.values()) == 4 * (2 * text + 2 * (whole - text))
    assert all(sum(group["down"] for group in groups.values()) == 4 * 2 * text for groups in later)
    assert all(groups["student"] == {"down": 4 * text, "up": 4 * text} for groups in (first, *later))
    start = weights(run("method.train=text", until=1), "student")
    for name, value in weights(done, "student").items():
        if not name.removeprefix("network/student.").startswith(TRAINED_WITH_TEXT):
            assert torch.equal(value, start[name])


def test_teacher_captions_and_negatives_never_go_up(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[tuple[set[str], dict[str, Tensor]]] = []
    train = ClientRuntime.train

    def watched(self: ClientRuntime, client: int, *arguments: Any) -> Any:
        answer = train(self, client, *arguments)
        answers.append((set(answer.arrays), dict(answer.results)))
        return answer

    monkeypatch.setattr(ClientRuntime, "train", watched)
    done = run()
    student = {name.removeprefix("network/") for name in weights(done, "student")}
    assert answers
    for arrays, results in answers:
        assert arrays == student
        assert set(results) == {"steps"}
        assert results["steps"].numel() == 1


def test_the_teacher_goes_on_across_rounds(reference: fedlab.Run, run: Start) -> None:
    """θ* is neither the start nor the student of the last round, and the server alone moves it."""
    started, ended = (weights(done, "teacher") for done in (run(until=1), reference))
    student = weights(reference, "student")
    assert not same(started, ended)
    assert not same(ended, {name.replace("student", "teacher"): value for name, value in student.items()})


# equal results


def test_runs_repeat_and_go_on_where_they_stopped(run: Start, reference: fedlab.Run) -> None:
    stopped = run(until=1)
    assert not same(weights(stopped), weights(reference))
    done = fedlab.resume(stopped.folder.path)
    assert same(weights(done), weights(reference))
    assert done.metrics["clients"] == reference.metrics["clients"]


def test_clients_teachers_survive_a_stop(run: Start) -> None:
    whole = run("method.teacher=client_state")
    stopped = run("method.teacher=client_state", until=2)
    assert same(weights(fedlab.resume(stopped.folder.path)), weights(whole))


# evaluation and pictures


def test_every_kind_is_counted(reference: fedlab.Run) -> None:
    last = reference.metrics
    assert set(last["clients"]) == {"left of", "right of", "above", "below"}
    wanted = {"accuracy", "text_only", "mean_swap", "mean_replace", *(f"accuracy_{kind}" for kind in KINDS)}
    assert wanted <= set(last["pooled"])
    assert wanted | {"retention", "retention_per_class"} <= set(last["server"])
    shares = [last["clients"][name]["accuracy"] for name in last["clients"]]
    assert min(shares) <= last["pooled"]["accuracy"] <= max(shares)


def test_constant_embeddings_score_nothing(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties are wrong: neither 50 nor 100 %."""
    evaluate = DeGLA.evaluate

    def constant(self: DeGLA, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        with torch.no_grad():
            for p in ctx.networks["student"].parameters():
                p.zero_()
        return evaluate(self, ctx)

    monkeypatch.setattr(DeGLA, "evaluate", constant)
    done = run("federation.rounds=1")
    assert all(value == 0 for name, value in done.metrics["pooled"].items())


def test_pictures_show_captions_and_kinds(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeGLA, "figures", FIGURES)
    monkeypatch.setattr(pictures, "_COUNTED", 3)
    done = run("federation.rounds=1", whole=True)
    names = {path.name for path in done.folder.figures.glob("*.png")}
    for figure in done.history.of("figure"):
        shown = {"captions": 3, "kinds": 3}[figure["name"]]
        assert f" About the first {shown} of " in figure["caption"], figure
    assert names == {f"{what}-000{round}.png" for what in ("captions", "kinds") for round in (0, 1)}


# the user's own data


def own_pairs(folder: Path, negatives: bool) -> Path:
    lines = []
    for number in range(24):
        color, shape = ("red", "blue")[number % 2], ("dog", "cat")[number // 2 % 2]
        Image.new("RGB", (16, 16), color).save(folder / f"{number}.png")
        line = {
            "image": f"{number}.png",
            "caption": f"A {color} {shape}.",
            "client": "home" if number < 12 else "work",
        }
        if negatives:
            line["negatives"] = [f"a green {shape}."]
        lines.append(json.dumps(line))
    path = folder / "own.jsonl"
    path.write_text("\n".join(lines))
    return path


def own(path: Path, more: str = "") -> tuple[str, ...]:
    source = f"data.source={{name: captions, path: {path}, size: 16{more}}}"
    return (
        source, "method.held_out=[]", "method.merge=[]", "method.pretrain.steps=0", "method.crop=0.9",
        "federation.rounds=1",
    )  # fmt: skip


def test_own_captions_with_negatives_by_rule_run_without_code(
    run: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeGLA, "figures", FIGURES)
    rules = (
        ", rules: {kinds: [replace_adjective, replace_noun, order], adjectives: [red, blue, green], nouns: [dog, cat]}"
    )
    done = run(*own(own_pairs(tmp_path, negatives=False), rules), "method.unpooled=[order]", whole=True)
    assert set(done.metrics["clients"]) == {"home", "work"}
    assert {"accuracy_replace_adjective", "accuracy_replace_noun", "accuracy_order"} <= set(done.metrics["pooled"])
    assert {path.name for path in done.folder.figures.glob("*.png")} == {
        f"{what}-000{round}.png" for what in ("captions", "kinds") for round in (0, 1)
    }


def test_own_negatives_and_a_checkpoint_of_ones_own(run: Start, tmp_path: Path, reference: fedlab.Run) -> None:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 40, "max_position_embeddings": 12, "eos_token_id": 1}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path / "clip")
    done = run(
        *own(own_pairs(tmp_path, negatives=True)), f"method.pretrained={tmp_path / 'clip'}", "method.network=null"
    )
    assert "accuracy_given" in done.metrics["pooled"]


def test_own_captions_without_negatives_say_what_is_needed(run: Start, tmp_path: Path) -> None:
    with pytest.raises(fedlab.FedLabError, match="rules"):
        run(*own(own_pairs(tmp_path, negatives=False)))
