"""PAT's losses against known answers."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.memory import MemoryBank
from fedlab.errors import ConfigError
from fedlab.method import Step, Task
from fedlab.methods.pat.losses import (
    cross_id_similarity,
    identity_loss,
    neighbor_distribution,
    neighbor_probability,
    soft_targets,
)
from fedlab.methods.pat.method import PAT


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# CSL (checks 3 and 4)


def csl(
    features: Tensor, bank: Tensor, own: Tensor, neighbors: int = 3, scale: float = 0.5, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    known = torch.ones(len(bank), dtype=torch.bool) if known is None else known
    return cross_id_similarity(features, bank, own, known, neighbors, scale)


def test_equal_distances_give_log_of_rows_over_neighbors() -> None:
    bank = torch.ones(101, 3, 16)
    loss, rows = csl(torch.zeros(4, 3, 16), bank, torch.arange(4), neighbors=10, scale=0.02)
    assert float(loss) == pytest.approx(math.log(10), abs=1e-6)
    assert rows.shape == (4, 3, 10)


def test_csl_is_what_its_formula_says() -> None:
    f, bank = torch.randn(5, 3, 8, generator=generator()), torch.randn(12, 3, 8, generator=generator(1))
    total, scale = 0.0, 0.3
    for i in range(5):
        for k in range(3):
            d = {j: float((f[i, k] - bank[j, k]).square().sum()) for j in range(12) if j != i}
            nearest = sorted(d, key=lambda j: d[j])[:4]
            total += math.log(sum(math.exp(-scale * v) for v in d.values()))
            total -= math.log(sum(math.exp(-scale * d[j]) for j in nearest))
    loss, rows = csl(f, bank, torch.arange(5), 4, scale)
    assert float(loss) == pytest.approx(total / 15, abs=1e-5)
    assert (
        rows[0, 0].tolist()
        == sorted((j for j in range(12) if j != 0), key=lambda j: float((f[0, 0] - bank[j, 0]).square().sum()))[:4]
    )


@pytest.mark.parametrize(("neighbors", "zero"), [(3, False), (11, True), (50, True)])
def test_csl_is_never_negative_and_0_when_all_rows_are_neighbors(neighbors: int, zero: bool) -> None:
    f, bank = torch.randn(6, 3, 8, generator=generator()), torch.randn(12, 3, 8, generator=generator(1))
    loss, _ = csl(f, bank, torch.arange(6), neighbors)
    assert (float(loss) < 1e-6) is zero
    # both sums are of the same terms where all rows are neighbors, and rounding alone decides which is the larger
    f, bank = torch.randn(200, 1, 8, generator=generator()), torch.randn(200, 1, 8, generator=generator(1))
    least = min(float(csl(one[None], bank, torch.tensor([i]), 199)[0]) for i, one in enumerate(f))
    assert least == 0


def test_no_gradient_reaches_the_memory() -> None:
    f = torch.randn(4, 3, 8, generator=generator(), requires_grad=True)
    bank = torch.randn(9, 3, 8, generator=generator(1), requires_grad=True)
    csl(f, bank, torch.arange(4))[0].backward()
    assert bank.grad is None
    assert f.grad is not None
    assert float(f.grad.abs().sum()) > 0


def test_a_samples_own_row_does_not_count_even_where_it_is_identical() -> None:
    f, bank = torch.randn(1, 3, 8, generator=generator()), torch.randn(9, 3, 8, generator=generator(1))
    bank[4] = f[0]
    loss, rows = csl(f, bank, torch.tensor([4]))
    assert not (rows == 4).any()
    bank[4] = 100.0
    altered, others = csl(f, bank, torch.tensor([4]))
    assert torch.equal(loss, altered)
    assert torch.equal(rows, others)


def test_neighbors_are_rows_of_the_whole_memory_before_and_behind_the_own_row() -> None:
    """The release takes positions among the rows without the own one for rows: those behind it are then one too low."""
    bank = torch.arange(6.0)[:, None, None].expand(6, 3, 8)
    _, rows = csl(bank[2:3] + 0.1, bank, torch.tensor([2]), neighbors=3)
    assert rows[0].tolist() == [[3, 1, 4]] * 3


def test_rows_not_seen_yet_do_not_count() -> None:
    f, bank = torch.randn(2, 3, 8, generator=generator()), torch.randn(9, 3, 8, generator=generator(1))
    known = torch.arange(9) < 6
    loss, rows = csl(f, bank, torch.arange(2), known=known)
    assert int(rows.max()) < 6
    assert torch.allclose(loss, csl(f, bank[:6], torch.arange(2))[0])


def test_large_distances_neither_vanish_nor_overflow_under_autocast() -> None:
    f, bank = 100 * torch.randn(4, 3, 8, generator=generator()), 100 * torch.randn(9, 3, 8, generator=generator(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = csl(f, bank, torch.arange(4), 1, 1.0)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.equal(loss, csl(f, bank, torch.arange(4), 1, 1.0)[0])


# PSD (check 5)


def test_the_papers_soft_target() -> None:
    q = neighbor_distribution(torch.tensor([[[0], [0], [1]]]), 4)
    assert q[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0, 0])
    soft = soft_targets(torch.tensor([0]), q, 0.5)
    assert soft[0].tolist() == pytest.approx([0.83333, 0.16667, 0, 0], abs=1e-5)
    for weight in (0.0, 0.5, 1.0):
        loss = identity_loss(torch.zeros(1, 4), torch.tensor([0]), 0.1, soft, weight)
        assert float(loss) == pytest.approx(1.386294, abs=1e-6)


def test_smoothing_spreads_over_all_classes() -> None:
    logits, labels = torch.randn(5, 4, generator=generator()), torch.tensor([0, 1, 2, 3, 0])
    target = 0.9 * F.one_hot(labels, 4) + 0.1 / 4
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert float(identity_loss(logits, labels, 0.1)) == pytest.approx(float(expected), abs=1e-6)


def test_probability_of_neighbors_leaves_out_the_own_identity() -> None:
    probability = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    q = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    assert neighbor_probability(probability.log(), torch.tensor([0]), q) == pytest.approx(0.45)


# the method's loss on one batch


class Neck(nn.Module):
    """BN(g) of running means −1/3 and variances 1/9, which is g no more."""

    def forward(self, g: Tensor) -> Tensor:
        return 3 * g + 1


class Fixed(nn.Module):
    """A backbone that answers with given features."""

    def __init__(self, g: Tensor, parts: Tensor) -> None:
        super().__init__()
        self.g, self.parts = g, parts

    def forward(self, images: Tensor, rectangles: Any = None) -> tuple[Tensor, Tensor]:
        return self.g, self.parts


def one_batch(**settings: Any) -> tuple[dict[str, Tensor], dict[str, float], MemoryBank]:
    """Loss terms, logged values and memory of two images of identities 2 and 5 of a client that holds 2, 5 and 7."""
    method = PAT(PAT.Settings(width=4, heads=1, neighbors=1, **settings))
    networks = nn.ModuleDict({"neck": Neck(), "classifier": nn.Linear(4, 9, bias=False)})
    with torch.no_grad():
        networks["classifier"].weight.copy_(torch.randn(9, 4, generator=generator(2)))
    f = torch.randn(2, 3, 4, generator=generator())
    networks["backbone"] = Fixed(torch.randn(2, 4, generator=generator(1)), f)
    bank = MemoryBank.empty(torch.tensor([2, 5, 7, 7]), 3, 4)
    bank.update(torch.tensor([2, 3]), torch.stack([f[0] + 0.01, f[1] + 0.01]), 1.0)
    logged: dict[str, float] = {}
    step = Step(
        round=1, epoch=0, index=0, per_round=1, global_step=0, total_steps=1, plan={}, shared={},
        scratch={"identities": torch.tensor([2, 5, 7]), "bank": bank}, log=logged.__setitem__,
    )  # fmt: skip
    batch = {"image": torch.zeros(2, 3, 8, 8), "label": torch.tensor([2, 5]), "row": torch.tensor([0, 1])}
    return method.loss(networks, batch, step), logged, bank


def test_psd_is_on_by_default_and_changes_the_loss() -> None:
    on, logged, _ = one_batch()
    off, _, _ = one_batch(psd=False)
    assert on.keys() == off.keys() == {"identity", "triplet", "csl"}
    assert abs(float(on["identity"].detach() - off["identity"].detach())) > 1e-3
    assert float(on["csl"].detach()) == float(off["csl"].detach())
    assert 0 < logged["neighbor_probability"] < 1


def test_soft_targets_come_from_the_parts_neighbors_not_from_the_classifier() -> None:
    """Both samples' nearest row is one of identity 7: q is all there, whatever the classifier says."""
    terms, _, _ = one_batch(psd_share=1.0, psd_weight=1.0)
    g = torch.randn(2, 4, generator=generator(1))
    logits = ((3 * g + 1) @ torch.randn(9, 4, generator=generator(2)).T)[:, [2, 5, 7]]
    assert float(terms["identity"].detach()) == pytest.approx(float(-logits.log_softmax(1)[:, 2].mean()), abs=1e-5)


def test_the_classifier_sees_only_the_clients_own_identities() -> None:
    terms, _, _ = one_batch(psd=False, smoothing=0.1)
    g = torch.randn(2, 4, generator=generator(1))
    logits = ((3 * g + 1) @ torch.randn(9, 4, generator=generator(2)).T)[:, [2, 5, 7]]
    expected = F.cross_entropy(logits, torch.tensor([0, 1]), label_smoothing=0.1)
    assert float(terms["identity"].detach()) == pytest.approx(float(expected), abs=1e-6)


def test_the_triplet_term_compares_features_from_before_the_neck() -> None:
    """One image each of two identities: d_ap = 0 and d_an = ‖g₁ − g₂‖, log(1 + exp(d_ap − d_an))."""
    terms, _, _ = one_batch()
    first, second = torch.randn(2, 4, generator=generator(1)).tolist()
    expected = math.log1p(math.exp(-math.dist(first, second)))
    assert float(terms["triplet"].detach()) == pytest.approx(expected, abs=1e-5)


class Seen(nn.Module):
    """Part features that tell whether they were made in training mode."""

    def forward(self, images: Tensor, rectangles: Any = None) -> tuple[Tensor, Tensor]:
        return images[:, 0, 0, :4], torch.full((len(images), 3, 4), 2.0 if self.training else 5.0)


def test_the_memory_is_filled_in_training_mode() -> None:
    """As in the release, whose features of the first pass went through stochastic depth like those of every step."""
    method = PAT(PAT.Settings(width=4, heads=1, patch=4))
    columns = {"image": torch.zeros(5, 3, 12, 8), "label": torch.arange(5), "row": torch.arange(5)}
    context: Any = SimpleNamespace(
        state={}, networks=nn.ModuleDict({"backbone": Seen()}).eval(), generator=lambda purpose: generator(),
        iterate=lambda data, shuffle: [data], autocast=nullcontext, log=lambda name, value: None,
    )  # fmt: skip
    bank = method._bank(context, columns)
    assert bank.known.all()
    assert bank.features.unique().tolist() == [2.0]


def test_the_memory_is_updated_before_the_loss() -> None:
    _, _, bank = one_batch()
    assert bank.known.all()
    assert torch.equal(bank.features[:2], torch.randn(2, 3, 4, generator=generator()))


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({"csl": False}, {"identity", "triplet"}),
        ({"csl": False, "psd": False}, {"identity", "triplet"}),
        ({"triplet": False}, {"identity", "csl"}),
    ],
)
def test_terms_can_be_switched_off(settings: dict[str, bool], terms: set[str]) -> None:
    assert one_batch(**settings)[0].keys() == terms


def test_the_scale_follows_the_width_on_request() -> None:
    assert PAT.Settings(width=48).effective_scale == 0.02
    assert PAT.Settings(width=48, rescale=True).effective_scale == pytest.approx(0.32)


def test_the_task_is_what_the_method_needs() -> None:
    def task(shape: tuple[int, ...]) -> Task:
        columns = {"image": ("float32", shape), "label": ("int64", ())}
        return Task(3, shape, ("a", "b", "c"), 2, "convnet", columns, nn.Identity)

    with pytest.raises(ConfigError, match=r"method\.patch"):
        PAT(PAT.Settings(width=12, heads=3, patch=5)).build(task((3, 48, 24)))
    with pytest.raises(ConfigError, match=r"method\.heads"):
        PAT(PAT.Settings(width=16, heads=3, patch=6)).build(task((3, 48, 24)))
    with pytest.raises(ConfigError, match=r"data\.source"):
        PAT(PAT.Settings(patch=6)).build(task((8000,)))
