"""Whole runs of TransKD: the teacher's phase, what travels and what stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fedlab
from fedlab.clients.state import StateStore
from fedlab.errors import ConfigError, FedLabError
from fedlab.methods.transkd.method import TransKD
from fedlab.models.segformer import SegFormer
from tests.methods.states import same, weights

Start = Callable[..., fedlab.Run]
CLIENTS = 2
ALONE = ("method.csf=false", "method.pea=none", "method.teacher_steps=0")
SMALL: dict[str, Any] = {
    "method": {
        "name": "transkd",
        "student": {"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "decoder": 8},
        "teacher": {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "decoder": 8},
        "csf_width": 8,
        "csf_squeeze": 4,
        "teacher_steps": 3,
        "teacher_batch": 4,
    },
    "data": {
        "source": {"name": "scenes", "train": 13, "test": 6, "teacher": 8, "server_test": 4, "size": 36,
                   "conditions": ("fog", "night")},
        "partition": ["domain"],
    },
    "training": {"optimizer": "adamw", "lr": 0.002, "weight_decay": 0.01, "batch_size": 3},
    "federation": {"rounds": 3},
    "evaluation": {"every": 3},
    "engine": {"name": "inline", "device": "cpu"},
}  # fmt: skip


@pytest.fixture(scope="module")
def start(runner: Callable[..., Start]) -> Start:
    return runner("transkd", SMALL)


@pytest.fixture(scope="module")
def reference(start: Start) -> fedlab.Run:
    return start()


def size(run: fedlab.Run, role: str) -> int:
    """Bytes of what a role exchanges: everything but integer counters."""
    state = weights(run, role).values()
    return sum(v.numel() * v.element_size() for v in state if v.is_floating_point())


# what travels


def test_the_teacher_is_sent_once_and_never_comes_back(reference: fedlab.Run) -> None:
    student, distiller = (CLIENTS * size(reference, role) for role in ("student", "distiller"))
    rounds = reference.history.rounds
    for r in rounds:
        assert r["bytes"]["student"] == {"down": student, "up": student}
        assert r["bytes"]["distiller"] == {"down": distiller, "up": distiller}
        assert r["bytes_up"] == student + distiller
    teacher = sum(v.numel() * v.element_size() for v in weights(reference, "teacher").values())
    sent = [r["bytes_down"] - student - distiller for r in rounds]
    assert sent == [CLIENTS * teacher, 0, 0]


def test_only_floating_points_are_averaged(reference: fedlab.Run) -> None:
    counters = {n: v for n, v in weights(reference).items() if n.endswith("num_batches_tracked")}
    assert counters
    assert all(v.dtype == torch.int64 for v in counters.values())
    assert all(int(v) == 0 for n, v in counters.items() if not n.startswith("network/teacher"))
    assert {int(v) for n, v in counters.items() if n.startswith("network/teacher")} == {3}


def test_a_local_distiller_stays_and_lasts(start: Start, reference: fedlab.Run) -> None:
    done = start("method.distiller=local")
    assert all("distiller" not in r["bytes"] for r in done.history.rounds)
    assert all(r["bytes_up"] == CLIENTS * size(done, "student") for r in done.history.rounds)
    held = [StateStore(done.folder.clients).latest(client) for client in range(CLIENTS)]
    layer = "network/distiller.alignment.0.weight"
    assert not torch.equal(held[0][layer], held[1][layer])
    assert not same(weights(done, "student"), weights(reference, "student"))


def test_local_running_statistics_stay_and_their_weights_do_not(start: Start) -> None:
    done = start("method.buffers=local")
    statistics = 2 * 4 * 8  # mean and variance of the decoder's one norm
    r = done.history.rounds[-1]
    assert r["bytes"]["student"]["up"] == CLIENTS * (size(done, "student") - statistics)
    running = weights(done, "student.model.decode_head.batch_norm.running")
    assert {name.split("_")[-1]: v.unique().tolist() for name, v in running.items()} == {"mean": [0.0], "var": [1.0]}


def test_the_student_alone_has_no_teacher_and_starts_alike(start: Start, reference: fedlab.Run) -> None:
    done = start(*ALONE)
    assert set(done.history.rounds[0]["bytes"]) == {"student"}
    assert done.history.rounds[0]["bytes_down"] == CLIENTS * size(done, "student")
    assert not weights(done, "teacher")
    assert set(done.history.rounds[0]["train"]) >= {"ce"}
    assert not {"csf", "pea"} & set(done.history.rounds[0]["train"])
    assert {"ce", "csf", "pea"} <= set(reference.history.rounds[0]["train"])


# the teacher


def test_arms_share_one_trained_teacher(start: Start, reference: fedlab.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[bool] = []
    step = SegFormer.forward

    def counted(self: SegFormer, images: Tensor) -> Tensor:
        trained.append(torch.is_grad_enabled())
        return step(self, images)

    monkeypatch.setattr(SegFormer, "forward", counted)
    for overrides in (("method.pea=none",), ("method.variant=ea", "training.schedule=linear")):
        done = start(*overrides)
        assert not any(trained)  # a student takes encode and decode, so only a teacher that learns would show
        assert same(weights(done, "teacher"), weights(reference, "teacher"))
    other = start("method.teacher_steps=2", "federation.rounds=1")
    assert any(trained)
    assert not same(weights(other, "teacher"), weights(reference, "teacher"))


def test_the_server_tests_both_networks(reference: fedlab.Run, start: Start) -> None:
    server = reference.history.evaluations[-1]["server"]
    names = {"miou", "miou_present", "pixel_accuracy"}
    assert set(server) == names | {f"teacher_{name}" for name in names}
    alone = start(*ALONE, "federation.rounds=1").history.evaluations[-1]["server"]
    assert set(alone) == names


def test_a_teacher_from_an_earlier_run_or_a_checkpoint(start: Start, reference: fedlab.Run, tmp_path: Path) -> None:
    init = start("method.teacher_steps=0", f"init.teacher={reference.path}", "federation.rounds=1")
    assert same(weights(init, "teacher"), weights(reference, "teacher"))
    teacher: Any = reference.model["teacher"]
    teacher.model.save_pretrained(tmp_path)
    loaded = start("method.teacher_steps=0", f"method.pretrained={tmp_path}", "federation.rounds=1")
    assert same(weights(loaded, "teacher"), weights(reference, "teacher"))
    assert same(weights(loaded, "student"), weights(init, "student"))


def test_a_teacher_without_samples_or_without_a_decoder_is_refused(
    start: Start, reference: fedlab.Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"a server sample set 'teacher'\n.*holds test"):
        start("data.source.teacher=0")
    teacher: Any = reference.model["teacher"]
    teacher.model.segformer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"method\.pretrained.*\n.*a whole segmentation network"):
        start("method.teacher_steps=0", f"method.pretrained={tmp_path}")


# metrics


def test_pooled_values_come_from_added_counts(reference: fedlab.Run) -> None:
    evaluation = reference.history.evaluations[-1]
    assert set(evaluation["clients"]) == {"fog", "night"}
    task: Any = type("Task", (), {"num_classes": 2})()
    method = TransKD()
    counts = [np.array([[3, 1, 0], [0, 0, 0]]), np.array([[0, 0, 0], [2, 2, 0]])]
    pooled = method.evaluation_values({"confusion": counts[0] + counts[1]}, task)
    mean = np.mean([method.evaluation_values({"confusion": c}, task)["miou"] for c in counts])
    assert pooled["miou"] == pytest.approx((3 / 6 + 2 / 5) / 2)
    assert mean == pytest.approx((3 / 4 / 2 + 2 / 4 / 2) / 2)


# schedules and forms


def test_the_rate_goes_on_falling_over_rounds(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, float]] = []
    schedule = TransKD.schedule

    def noted(self: TransKD, step: Any, group: Any) -> Mapping[str, float]:
        values = schedule(self, step, group)
        seen.append((step.round, values["lr"]))
        return values

    monkeypatch.setattr(TransKD, "schedule", noted)
    start("method.horizon=4")
    assert sorted({(r, round(lr, 6)) for r, lr in seen}) == [(1, 0.002), (2, 0.0015), (3, 0.001)]


def test_more_forms_run_to_the_end(start: Start) -> None:
    """Mixed precision, label skew, a trailing batch of one, no server data, every variant's figures."""
    done = start(
        "training.precision=bfloat16", "method.variant=ea", "data.source.conditions=[clear]",
        "data.partition=[{name: dirichlet, clients: 3, alpha: 0.5, min_samples: 4}]", "federation.rounds=1",
        "method.translate=0", "method.class_weights=[0.4, 1, 1, 1, 1]", "method.void_logit=true", whole=True,
    )  # fmt: skip
    assert all(torch.isfinite(v).all() for v in weights(done).values())
    assert (done.folder.figures / "segmentation-0001.png").is_file()


# the user's own data


def test_own_images_and_masks(start: Start, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2), ("server/teacher", 4), ("server/test", 2)):
        for number in range(count):
            for kind in ("images", "masks"):
                path = tmp_path / split / kind / ("day" if number % 2 else "night") / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                shape = (40, 52, 3) if kind == "images" else (40, 52)
                Image.fromarray(rng.integers(0, 255 if kind == "images" else 3, shape).astype(np.uint8)).save(path)
    (tmp_path / "classes.txt").write_text("road\nsky\ntree\n")
    done = start(f"data.source={json.dumps({'name': 'masks', 'path': str(tmp_path)})}", "federation.rounds=1")
    assert set(done.metrics["clients"]) == {"day", "night"}
    assert set(done.history.evaluations[-1]["server"]) >= {"miou", "teacher_miou"}
    with pytest.raises(FedLabError, match=r"masks 20×26.*\n.*1/4"):
        start(f"data.source={json.dumps({'name': 'masks', 'path': str(tmp_path), 'stride': 2})}")
