"""DeGLA's hooks: batches, the teacher's average, what is trained and exchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.assembly import build_networks, make_method, make_task
from fedlab.clients.trainer import LocalTrainer
from fedlab.config import Config, parse
from fedlab.data.files.captions import word_tokens
from fedlab.errors import ConfigError
from fedlab.method import ClientState, ServerContext
from fedlab.method.exchange import Exchanges
from fedlab.methods.degla.batches import with_negatives
from fedlab.methods.degla.settings import DeGLASettings
from fedlab.models.clip import embed_texts
from fedlab.storage.cache import ResultCache

CPU = torch.device("cpu")
TOKENS = word_tokens(["a red blue green square circle left right of"])
KINDS = ("reshuffle", "swap_noun", "replace_noun")
COLUMNS = {"image": ("float32", (3, 16, 16)), "text": ("int64", (6,))} | {
    f"negative/{kind}": ("int64", (m, 6)) for kind, m in zip(KINDS, (1, 1, 2), strict=True)
}
SMALL = {"vision": {"width": 16, "layers": 1, "heads": 2}, "text": {"width": 16, "layers": 1, "heads": 2}}


class Lab:
    """A method with tiny networks and contexts to call its hooks with."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        method = {"name": "degla", "network": {**SMALL, "projection": 8}, "crop": 1.0, **settings}
        training = {"optimizer": "adamw", "lr": 0.01, "batch_size": 4, "weight_decay": 0.1, "local_steps": 3}
        self.config = parse(Config, {"method": method, "data": {"source": "shapecap"}, "training": training})
        self.method = make_method(self.config.method)
        self.task = make_task(self.config, COLUMNS, (), 2, TOKENS.vocabulary)
        self.networks = build_networks(self.method, self.task, 0, CPU)
        self.exchange = Exchanges(self.networks, self.method).enter({})
        self.folder = folder

    def work(self, round: int) -> dict[str, Any]:
        return {
            "task": self.task, "networks": self.networks, "training": self.config.training, "device": CPU, "seed": 0,
            "round": round, "rounds": 4, "plan": {}, "cache": ResultCache(self.folder, lambda: "data", 0, CPU),
        }  # fmt: skip

    def client(self, state: ClientState | None = None, round: int = 1) -> LocalTrainer:
        return LocalTrainer(
            method=self.method, data=samples(8), state=ClientState() if state is None else state, shared={}, client=0,
            client_name="0", examples=8, fingerprint="data", evaluating=self.exchange.fixed_roles, **self.work(round),
        )  # fmt: skip

    def server(self, *steps: float, round: int = 1, data: Any = None) -> ServerContext:
        results = {client: {"steps": torch.tensor(count)} for client, count in enumerate(steps)}
        return ServerContext(
            before={},
            after={},
            shared={},
            private={},
            data=data or {},
            results=results,
            batch_size=256,
            **self.work(round),
        )

    def weights(self, role: str) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.networks[role].state_dict().items()}


@pytest.fixture
def lab(tmp_path: Path) -> Callable[..., Lab]:
    return lambda **settings: Lab(tmp_path, **settings)


def samples(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: (count, *shape) for name, (_, shape) in COLUMNS.items()}
    columns = {n: torch.randint(2, 9, shape, generator=generator) for n, shape in shapes.items() if n != "image"}
    for values in columns.values():
        values[..., -1] = 1
    return {"image": torch.randn(shapes["image"], generator=generator), **columns}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# batches


def test_negatives_are_laid_out_kind_by_kind() -> None:
    batch = samples(5)
    found = with_negatives(batch, DeGLASettings(), torch.Generator().manual_seed(0))
    assert set(found) == {"image", "text", "negatives", "present"}
    expected = torch.cat([batch[f"negative/{kind}"] for kind in KINDS], dim=1)
    assert torch.equal(found["negatives"], expected)
    assert found["present"].all()


def test_held_out_kinds_are_not_trained_on() -> None:
    batch = samples(5)
    found = with_negatives(batch, DeGLASettings(held_out=("swap_noun",)), torch.Generator().manual_seed(0))
    assert torch.equal(found["negatives"][:, 0], batch["negative/reshuffle"][:, 0])
    assert torch.equal(found["negatives"][:, 1:], batch["negative/replace_noun"])


def test_merged_kinds_share_a_place_at_random_among_what_there_is() -> None:
    batch = samples(400)
    batch["negative/swap_noun"][:100] = 0
    batch["negative/reshuffle"][100:200] = 0
    settings = DeGLASettings(merge=(("reshuffle", "swap_noun"),))
    found = with_negatives(batch, settings, torch.Generator().manual_seed(0))
    assert found["negatives"].shape == (400, 3, 6)
    place = found["negatives"][:, 0]
    reshuffled = (place == batch["negative/reshuffle"][:, 0]).all(1)
    swapped = (place == batch["negative/swap_noun"][:, 0]).all(1)
    assert reshuffled[:100].all()
    assert swapped[100:200].all()
    assert (reshuffled | swapped).all()
    assert 0.35 < reshuffled[200:].float().mean() < 0.65
    again = with_negatives(batch, settings, torch.Generator().manual_seed(1))["negatives"]
    assert not torch.equal(again, found["negatives"])


def test_a_missing_caption_is_marked() -> None:
    batch = samples(3)
    batch["negative/replace_noun"][1, 1] = 0
    found = with_negatives(batch, DeGLASettings(), torch.Generator())
    assert found["present"].tolist() == [[True] * 4, [True] * 3 + [False], [True] * 4]


# captions are read at their end


def test_captions_of_different_words_differ(lab: Callable[..., Lab]) -> None:
    """With a wrong end token the text encoder is read at one place whatever the caption says."""
    ids = torch.from_numpy(TOKENS.encode(["a red square", "a blue square", "a red circle", "a red"]))[:, :6]
    embedded = embed_texts(lab().networks["student"], ids)
    similarity = embedded @ embedded.T
    assert (similarity[~torch.eye(4, dtype=torch.bool)] < 0.999).all()
    later = ids[:, :6].clone()
    later[3, 3:] = 7  # after the end nothing is read
    assert torch.allclose(embed_texts(lab().networks["student"], later[3:]), embedded[3:], atol=1e-6)


# the teacher


@pytest.mark.parametrize("width", [16, 64])
def test_positions_of_a_new_model_start_as_large_as_its_width_asks(lab: Callable[..., Lab], width: int) -> None:
    student: Any = lab(network={"vision": {"width": width}}).networks["student"]
    positions = student.vision_model.embeddings.position_embedding.weight
    assert float(positions.detach().std()) == pytest.approx(width**-0.5, rel=0.15)


def test_the_teacher_starts_as_the_student_and_needs_no_gradient(lab: Callable[..., Lab]) -> None:
    found = lab()
    assert same(found.weights("student"), found.weights("teacher"))
    ctx = found.client()
    found.method.fit(ctx)
    teacher = ctx.scratch["teacher"]
    assert not teacher.training
    assert all(
        p.grad is None and not p.requires_grad for p in (*teacher.parameters(), *found.networks["teacher"].parameters())
    )


@pytest.mark.parametrize(("alpha", "expected"), [(0.9996, 0.9996), (1.0, 1.0), (0.0, 0.0)])
def test_one_step_of_the_average(lab: Callable[..., Lab], alpha: float, expected: float) -> None:
    found = lab(alpha=alpha)
    ctx = found.client()
    with torch.no_grad():
        for p in found.networks["student"].parameters():
            p.zero_()
    teacher = found.networks["teacher"]
    with torch.no_grad():
        for p in teacher.parameters():
            p.fill_(1)
    ctx.scratch["teacher"] = teacher
    found.method.after_step(found.networks, ctx._step(0, 0, 1))
    assert all(torch.allclose(p, torch.full_like(p, expected), atol=1e-7) for p in teacher.parameters())


def test_alpha_of_one_and_of_zero(lab: Callable[..., Lab]) -> None:
    constant, follower = lab(alpha=1.0), lab(alpha=0.0)
    before, works = constant.weights("teacher"), {}
    for found in (constant, follower):
        works[found] = found.client()
        found.method.fit(works[found])
    assert same(works[constant].scratch["teacher"].state_dict(), before)
    assert same(works[follower].scratch["teacher"].state_dict(), follower.weights("student"))
    assert not same(follower.weights("student"), before)


def test_the_client_never_changes_the_servers_teacher(lab: Callable[..., Lab]) -> None:
    found = lab(alpha=0.5)
    before = found.weights("teacher")
    ctx = found.client()
    found.method.fit(ctx)
    assert same(found.weights("teacher"), before)
    assert not same(dict(ctx.scratch["teacher"].state_dict()), before)
    assert found.method.client_result(ctx)["steps"].item() == 3


def test_the_server_averages_over_the_rounds_steps(lab: Callable[..., Lab]) -> None:
    found = lab(alpha=0.9)
    with torch.no_grad():
        for p in found.networks["student"].parameters():
            p.add_(1)
    start, followed = found.weights("teacher"), found.weights("student")
    found.method.server_update(found.server(0.0, 0.0))
    assert same(found.weights("teacher"), start)
    found.method.server_update(found.server(2.0, 4.0))
    for name, value in found.weights("teacher").items():
        assert torch.allclose(value, 0.9**3 * start[name] + (1 - 0.9**3) * followed[name], atol=1e-5)
    found.networks["teacher"].load_state_dict(found.networks["student"].state_dict())
    found.method.server_update(found.server(100.0))
    for name, value in found.weights("teacher").items():
        assert torch.allclose(value, followed[name], atol=1e-6)


def test_a_client_keeps_its_own_teacher(lab: Callable[..., Lab]) -> None:
    found, state = lab(teacher="client_state", alpha=0.5), ClientState()
    ctx = found.client(state)
    found.method.fit(ctx)
    kept = state["teacher"].clone()
    assert torch.equal(kept, nn.utils.parameters_to_vector(ctx.scratch["teacher"].parameters()))
    later = found.client(state, round=3)
    seen: list[Tensor] = []
    later.train = lambda columns=None: seen.append(  # type: ignore[method-assign]  # a spy
        nn.utils.parameters_to_vector(later.scratch["teacher"].parameters()).clone()
    )
    found.method.fit(later)
    assert torch.equal(seen[0], kept)
    assert found.method.client_result(later) == {}


def test_the_scale_stays_below_100(lab: Callable[..., Lab]) -> None:
    found = lab()
    with torch.no_grad():
        found.networks["student"].logit_scale.fill_(9.0)
    found.method.after_step(found.networks, found.client()._step(0, 0, 1))
    assert found.networks["student"].logit_scale.item() == pytest.approx(4.6052, abs=1e-4)
    with torch.no_grad():
        found.networks["student"].logit_scale.fill_(9.0)
    found.method.server_update(found.server(1.0))
    assert found.networks["student"].logit_scale.item() == pytest.approx(4.6052, abs=1e-4)


# the loss


def terms(found: Lab, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    step = found.client()._step(0, 0, 1)
    return found.method.loss(found.networks, found.method._collate(batch, torch.Generator().manual_seed(0)), step)


def test_terms_are_those_with_a_weight(lab: Callable[..., Lab]) -> None:
    batch = samples(6)
    assert set(terms(lab(), batch)) == {"base", "igc", "tgc", "distill"}
    assert terms(lab(), batch)["distill"].item() == 0
    assert set(terms(lab(lambda_distill=0), batch)) == {"base", "igc", "tgc"}
    plain = lab(contrast="none", lambda_igc=0, lambda_tgc=0, lambda_distill=0)
    assert set(terms(plain, batch)) == {"base"}
    assert set(plain.networks) == {"student"}


def test_distillation_does_not_depend_on_the_batch_size(lab: Callable[..., Lab]) -> None:
    found, batch = lab(), samples(6)
    with torch.no_grad():
        for p in found.networks["student"].parameters():
            p.mul_(1.1)
    twice = {name: torch.cat([values, values]) for name, values in batch.items()}
    once, double = (terms(found, columns)["distill"].item() for columns in (batch, twice))
    assert once > 0
    assert double == pytest.approx(once, rel=1e-5)
    whole = lab(lambda_distill=2.56)
    whole.networks.load_state_dict(found.networks.state_dict())
    assert terms(whole, batch)["distill"].item() == pytest.approx(2 * once, rel=1e-5)


def test_without_negatives_there_is_still_clip_and_the_distillation(lab: Callable[..., Lab]) -> None:
    bare = {name: values for name, values in samples(6).items() if not name.startswith("negative/")}
    found = lab(contrast="none", lambda_igc=0, lambda_tgc=0)
    assert set(terms(found, bare)) == {"base", "distill"}


def test_matrices_decay_and_nothing_else(lab: Callable[..., Lab]) -> None:
    found = lab()
    matrices, others = found.method.param_groups(found.networks, {})
    assert others["weight_decay"] == 0
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert all(p.ndim < 2 for p in others["params"])
    student = found.networks["student"]
    assert len(matrices["params"]) + len(others["params"]) == len(list(student.parameters()))
    assert any(p is student.logit_scale for p in others["params"])


# exchange


@pytest.mark.parametrize("train", ["all", "text", "projections"])
@pytest.mark.parametrize("teacher", ["server_ema", "client_state", "frozen"])
def test_what_travels(lab: Callable[..., Lab], train: str, teacher: str) -> None:
    exchange = lab(train=train, teacher=teacher).exchange
    names = {
        "all": lambda name: True,
        "text": lambda name: name.startswith(("text_", "logit_scale")),
        "projections": lambda name: "projection" in name or name == "logit_scale",
    }[train]
    up = {name for name in exchange.sizes if name.startswith("student.") and names(name.removeprefix("student."))}
    assert set(exchange.up) == up
    assert "student.logit_scale" in up
    moved = {f"teacher.{name.removeprefix('student.')}" for name in up}
    assert set(exchange.down) == (up | moved if teacher == "server_ema" else up)
    assert set(exchange.once) == set(exchange.sizes) - set(exchange.down)
    assert not exchange.frozen
    assert not exchange.local


@pytest.mark.parametrize("train", ["text", "projections"])
def test_a_subset_is_trained_alone(lab: Callable[..., Lab], train: str) -> None:
    found = lab(train=train, teacher="client_state", alpha=0.5)
    before, state = found.weights("student"), ClientState()
    found.method.fit(found.client(state))
    changed = {name for name, value in found.weights("student").items() if not torch.equal(value, before[name])}
    assert {f"student.{name}" for name in changed} <= set(found.exchange.up)
    assert "logit_scale" in changed
    assert state["teacher"].numel() == sum(before[name.removeprefix("student.")].numel() for name in found.exchange.up)


# the start


def test_pretraining_happens_once_on_the_servers_pairs(
    lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"pretrain": {"steps": 4, "batch_size": 4}, "train": "projections"}
    data = {"pretrain": {name: values for name, values in samples(10).items() if name in ("image", "text")}}
    first, second = lab(**settings), lab(**settings)
    before = first.weights("student")
    first.method.server_prepare(first.server(round=0, data=data))
    assert not same(first.weights("student"), before)
    assert not torch.equal(first.weights("student")["vision_model.embeddings.class_embedding"],
                           before["vision_model.embeddings.class_embedding"])  # fmt: skip
    assert same(first.weights("student"), first.weights("teacher"))
    monkeypatch.setattr("fedlab.methods.degla.method.base_contrast", None)  # the cache answers
    second.method.server_prepare(second.server(round=0, data=data))
    assert same(second.weights("student"), first.weights("student"))


def test_pretraining_needs_pairs(lab: Callable[..., Lab]) -> None:
    found = lab(pretrain={"steps": 4})
    with pytest.raises(ConfigError, match="pretrain"):
        found.method.server_prepare(found.server(round=0))


def test_a_checkpoint_of_ones_own(lab: Callable[..., Lab], tmp_path: Path) -> None:
    found = lab()
    found.networks["student"].save_pretrained(tmp_path / "clip")
    loaded = lab(pretrained=str(tmp_path / "clip"), network=None)
    assert same(loaded.weights("student"), found.weights("student"))
    assert same(loaded.weights("teacher"), found.weights("student"))
    with pytest.raises(ConfigError, match="the checkpoint's: width 16"):
        lab(pretrained=str(tmp_path / "clip"), network={**SMALL, "text": {"width": 32, "heads": 2}, "projection": 8})
    with pytest.raises(ConfigError, match=r"method\.network"):
        lab(pretrained=str(tmp_path / "clip"), network={**SMALL, "projection": 16})
    with pytest.raises(ConfigError, match=r"method\.pretrained"):
        lab(pretrained=str(tmp_path / "none"))
