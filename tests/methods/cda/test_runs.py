"""Whole runs of CDA: what travels and what stays in each stage, forms, engines, resume, other algorithms."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import fedlab
from fedlab.errors import ConfigError
from fedlab.storage.checkpoint import load_checkpoint

Start = Callable[..., fedlab.Run]
SMALL: dict[str, Any] = {
    "name": "cda",
    "squeeze": {"rounds": 2, "flip": False},
    "recover": {"ipc": 2, "iterations": 3, "chunk": 10, "flip": False},
    "post": {"epochs": 4, "batch_size": 10, "flip": False},
}
MODEL = {"name": "convnet", "width": 8, "depth": 2, "norm": "batch"}
IMAGE, LABEL = 3 * 16 * 16, 2  # bytes


@pytest.fixture(scope="module")
def cda(run: Start) -> Start:
    """``cda("method.recover.form=server")``: five clients; rounds 1 and 2 squeeze, 3 recovers, 4 and 5 train."""

    def start(*overrides: str, **arguments: Any) -> fedlab.Run:
        return run(f"method={SMALL}", f"model={MODEL}", "evaluation.every=1", *overrides, **arguments)

    return start


@pytest.fixture(scope="module")
def reference(cda: Start) -> fedlab.Run:
    return cda(whole=True)


def state(run: fedlab.Run, prefix: str = "") -> dict[str, Tensor]:
    tensors, _ = load_checkpoint(run.checkpoint)
    return {name: value for name, value in tensors.items() if name.startswith(prefix)}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def size(run: fedlab.Run, role: str, integers: bool = False) -> int:
    return sum(
        v.numel() * v.element_size()
        for v in state(run, f"network/{role}.").values()
        if integers or v.is_floating_point()
    )


def synthetic(run: fedlab.Run) -> dict[str, Tensor]:
    return safetensors.torch.load_file(run.folder.artifacts / "synthetic.safetensors")


# §6: what travels


def test_weights_travel_in_the_squeeze_images_once_and_nothing_comes_up_afterwards(reference: fedlab.Run) -> None:
    teacher, whole = size(reference, "model"), size(reference, "model", integers=True)
    students = size(reference, "student_0_0", integers=True)
    up = 5 * 20 * (IMAGE + LABEL)  # five clients, two images of ten classes
    assert [r["bytes"] for r in reference.history.rounds] == [
        {"teacher": {"down": 5 * teacher, "up": 5 * teacher}},
        {"teacher": {"down": 5 * teacher, "up": 5 * teacher}},
        {"teacher": {"down": 5 * whole, "up": 0}, "results": {"down": 0, "up": up}},
        {"students": {"down": 5 * students, "up": 0}},
        {"students": {"down": 5 * students, "up": 0}},
    ]


def test_a_cifar_sized_client_sends_307200_bytes_of_pixels(cda: Start) -> None:
    done = cda("data.source.size=32", "method.recover.ipc=10", "method.recover.iterations=0", "method.post.epochs=1")
    sent = done.history.rounds[2]["bytes"]["results"]["up"]
    assert sent == 5 * (307_200 + 100 * LABEL)


def test_the_server_form_sends_no_image_at_all(cda: Start) -> None:
    done = cda("method.recover.form=server")
    assert [r["bytes_up"] > 0 for r in done.history.rounds] == [True, True, False, False, False]
    found = synthetic(done)
    assert torch.bincount(found["labels"].int()).tolist() == [2] * 10
    assert "recover_ce" in done.history.rounds[2]["server"]


def test_the_ensemble_needs_the_clients_teachers_and_counts(cda: Start, reference: fedlab.Run) -> None:
    done = cda("method.post.labels=ensemble")
    images = reference.history.rounds[2]["bytes"]["results"]["up"]
    whole = size(done, "model", integers=True)
    assert done.history.rounds[2]["bytes"]["results"]["up"] == images + 5 * (whole + 10 * 4)
    assert same(synthetic(done), synthetic(reference))
    assert not same(state(done, "network/student"), state(reference, "network/student"))


def test_the_teacher_is_frozen_after_the_squeeze(cda: Start, reference: fedlab.Run) -> None:
    squeezed = cda(until=2)
    assert same(state(squeezed, "network/model."), state(reference, "network/model."))


def test_counters_are_not_averaged_and_statistics_are(reference: fedlab.Run) -> None:
    found = state(reference, "network/model.")
    counters = [value for name, value in found.items() if name.endswith("num_batches_tracked")]
    assert counters
    assert all(value.dtype == torch.int64 and value == 0 for value in counters)
    assert all((v > 0).all() and (v != 1).any() for n, v in found.items() if n.endswith("running_var"))


def test_plain_and_mixture_variances_differ_in_nothing_else(cda: Start) -> None:
    mixture, plain = (
        cda(f"method.squeeze.variance={kind}", "federation.rounds=4", until=1) for kind in ("mixture", "average")
    )
    first, second = (state(run, "network/model.") for run in (mixture, plain))
    differ = {name for name in first if not torch.equal(first[name], second[name])}
    assert differ == {name for name in first if name.endswith("running_var")}
    assert all((first[name] >= second[name] - 1e-6).all() for name in differ)


# stages, evaluation, pictures


def test_evaluation_tells_teacher_and_student(reference: fedlab.Run) -> None:
    means = [event["mean"] for event in reference.history.evaluations]
    assert [("teacher_accuracy" in m, "accuracy" in m) for m in means] == [(True, False)] * 3 + [(True, True)] * 2
    last = means[-1]
    assert last["student_minus_teacher"] == pytest.approx(last["accuracy"] - last["teacher_accuracy"])


def test_every_client_gives_the_classes_it_holds(cda: Start) -> None:
    done = cda("data.partition=[{name: dirichlet, clients: 4, alpha: 0.1, min_samples: 2}]")
    clients = json.loads(done.folder.partition.read_text())["clients"]
    held = torch.tensor([client["train"] for client in clients]) > 0
    assert not held.all()
    assert torch.equal(torch.bincount(synthetic(done)["labels"].int(), minlength=10), 2 * held.sum(0))


def test_the_run_leaves_images_sheet_and_pictures(reference: fedlab.Run) -> None:
    found = synthetic(reference)
    assert found["images"].shape == (100, 3, 16, 16)
    assert found["images"].dtype == torch.uint8
    assert (reference.folder.artifacts / "synthetic-sheet.png").is_file()
    names = {path.name for path in reference.folder.figures.glob("*.png")}
    assert names == {f"{name}-0005.png" for name in ("synthetic", "recovery", "curriculum")}


def test_stored_labels_are_kept_and_train_students(cda: Start) -> None:
    done = cda("method.post.relabel=stored", "method.post.mixing=mixup")
    stored = safetensors.torch.load_file(done.folder.artifacts / "soft-labels.safetensors")
    assert stored["logits"].shape == (4, 100, 10)
    assert stored["logits"].dtype == torch.float16
    assert (stored["cuts"] == -1).all()
    assert done.history.rounds[-1]["server"]["student_0_0_loss"] > 0


def test_several_architectures_and_repeats(cda: Start) -> None:
    students = "{small: {name: convnet, width: 4, depth: 2, norm: instance}, plain: {name: logistic}}"
    done = cda(f"method.post.students={students}", "method.post.repeats=2", "method.post.epochs=2")
    values = done.metrics["mean"]
    assert {"accuracy", "accuracy_std", "plain_accuracy", "plain_accuracy_std"} <= set(values)
    assert set(done.model) == {"model", "student_0_0", "student_0_1", "student_1_0", "student_1_1"}


# reproducibility


@pytest.mark.parametrize("form", ["client", pytest.param("server", marks=pytest.mark.slow)])
def test_a_run_goes_on_as_if_nothing_had_happened(cda: Start, reference: fedlab.Run, form: str) -> None:
    """Stopped with the images recovered, and again between two rounds of training on them."""
    whole = reference if form == "client" else cda(f"method.recover.form={form}")
    half = cda(f"method.recover.form={form}", "tracking.checkpoint_every=1", until=3)
    half = fedlab.resume(half.path, until=4)
    assert not same(state(half), state(whole))
    assert same(state(fedlab.resume(half.path)), state(whole))


@pytest.mark.parametrize(
    "strategy",
    [
        "flower.FedMedian",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("scaffold", "fedavgm", "fedadam", "fednova")),
    ],
)
def test_the_squeeze_composes_with_other_algorithms(cda: Start, reference: fedlab.Run, strategy: str) -> None:
    done = cda(f"federation.strategy={strategy}")
    found = state(done, "network/")
    assert all(torch.isfinite(value).all() for value in found.values())
    assert not same(found, state(reference, "network/"))
    squeezed = cda(f"federation.strategy={strategy}", until=2)
    assert same(state(squeezed, "network/model."), state(done, "network/model."))


def test_a_teacher_of_an_earlier_run_needs_no_squeeze(cda: Start, reference: fedlab.Run) -> None:
    done = cda(f"init={{model: {reference.path}}}", "method.squeeze.rounds=0", "federation.rounds=3")
    assert same(state(done, "network/model."), state(reference, "network/model."))
    assert all("teacher" not in r["bytes"] for r in done.history.rounds)  # nobody needs to be sent what all have


# pretrained teachers


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ResNet-18 for ten classes, written by transformers."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8, 16, 32], "depths": [2, 2, 2, 2], "layer_type": "basic"}
    folder = tmp_path_factory.mktemp("teacher")
    ResNetForImageClassification(ResNetConfig(num_channels=3, num_labels=10, **sizes)).save_pretrained(folder)
    return folder


def test_a_pretrained_teacher_is_loaded_and_students_start_anew(cda: Start, checkpoint: Path) -> None:
    done = cda(
        "model={name: resnet, width: 4}", f"method.pretrained={checkpoint}", "method.squeeze.rounds=0",
        "federation.rounds=2", "method.post.epochs=1", "method.recover.form=server",
    )  # fmt: skip
    saved = safetensors.torch.load_file(checkpoint / "model.safetensors")
    teacher: nn.Module = done.model["model"]
    assert torch.equal(teacher.state_dict()["head.weight"], saved["classifier.1.weight"])
    body = {n.removeprefix("resnet."): v for n, v in saved.items() if n.startswith("resnet.")}
    assert same(
        {f"body.{n}": v for n, v in body.items()}, {n: v for n, v in teacher.state_dict().items() if "body" in n}
    )
    assert not torch.equal(done.model["student_0_0"].state_dict()["head.weight"], saved["classifier.1.weight"])
    assert [r["bytes_up"] for r in done.history.rounds] == [0, 0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model={name: resnet, width: 4}", "method.pretrained=/no/such/folder"), "on the hub, in its cache"),
        (("model={name: resnet, width: 8}",), "weights of the configured model"),
        (("model={name: convnet, norm: batch, depth: 2}",), "published weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    cda: Start, checkpoint: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        cda(f"method.pretrained={checkpoint}", "method.squeeze.rounds=0", *overrides)


def test_the_papers_networks_have_their_parameter_counts(paper_networks: Callable[..., nn.ModuleDict]) -> None:
    def counts(file: str, side: int, classes: int) -> dict[str, int]:
        columns = {"image": ("float32", (3, side, side)), "label": ("int64", ())}
        names = [str(c) for c in range(classes)]
        found = paper_networks("cda", columns, names, file=file, pretrained=None)
        return {role: sum(p.numel() for p in network.parameters()) for role, network in found.items()}

    assert counts("paper.yaml", 224, 1000) == {
        "model": 11_689_512, "student_0_0": 11_689_512, "student_1_0": 25_557_032, "student_2_0": 44_549_160,
    }  # fmt: skip
    small = 11_689_512 - 9_408 + 1_728  # a 3×3 stem instead of 7×7
    tiny, cifar = small - 513_000 + 102_600, small - 513_000 + 51_300
    assert counts("paper_tinyimagenet.yaml", 64, 200)["model"] == tiny == 11_271_432
    assert counts("paper_cifar100.yaml", 32, 100)["model"] == cifar == 11_220_132
