"""Inference that stops: rules on scripted logits, what is computed and what is not, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.config import parse
from fedlab.errors import ConfigErrors
from fedlab.methods.lgvit.networks import run_all
from fedlab.methods.lgvit.settings import THRESHOLDS, LGViTSettings
from fedlab.methods.lgvit.stopping import costs, decides, entropy, first_exit, leave
from fedlab.metrics.exits import ExitHistogram
from tests.methods.lgvit.conftest import Lab

Make = Callable[..., Lab]
LAYERS = (2, 3, 4, 5)


def predicted(*classes: int, sure: float = 5.0) -> Tensor:
    """Logits (1, e, 3) of exits that predict these classes."""
    return sure * F.one_hot(torch.tensor([classes]), 3).float()


# §8, check 8


def test_at_threshold_1_nothing_leaves_early_and_at_0_all_leave_at_the_first_exit() -> None:
    seen = 100 * torch.randn(50, 8, 10, generator=torch.Generator().manual_seed(0))  # many probabilities are 1.0
    for threshold, place, speedup in ((1.0, 8, 1.0), (0.0, 0, 3.0)):
        places = first_exit(seen, "confidence", threshold)
        assert places.tolist() == [place] * 50
        histogram = ExitHistogram(range(4, 12), 12)
        histogram.update(places, torch.ones(50, dtype=torch.bool))
        assert histogram.compute()["speedup"] == speedup


def test_confidence_is_the_largest_probability() -> None:
    p = torch.tensor([[[0.7, 0.2, 0.1]], [[0.5, 0.3, 0.2]]]).log()
    assert decides(p, "confidence", 0.65).tolist() == [True, False]
    assert decides(p, "confidence", 0.71).tolist() == [False, False]


# §8, check 9


def test_the_entropy_of_ten_equal_classes_is_ln_10() -> None:
    uniform = torch.zeros(1, 1, 10)
    assert float(entropy(uniform)) == pytest.approx(2.302585, abs=1e-5)
    assert not decides(uniform, "entropy", THRESHOLDS["entropy"])
    assert decides(uniform, "entropy", math.log(10) + 1e-3)
    assert decides(predicted(0), "entropy", THRESHOLDS["entropy"])


def test_patience_waits_until_successive_exits_agree() -> None:
    assert first_exit(predicted(0, 1, 1), "patience", 2).tolist() == [2]
    assert first_exit(predicted(0, 1, 0, 1), "patience", 2).tolist() == [4]
    assert first_exit(predicted(2, 2, 2), "patience", 3).tolist() == [2]
    assert first_exit(predicted(2, 2, 2), "patience", 1).tolist() == [0]
    assert first_exit(predicted(1, 2, 2), "patience", 3).tolist() == [3]


def test_patient_and_confident_wants_two_sure_exits_in_succession_and_asks_for_no_class() -> None:
    unsure = torch.zeros(1, 1, 3)
    sure, other = predicted(0), predicted(1)
    for parts, place in (([sure, unsure, sure, other], 3), ([sure, sure], 1), ([unsure, sure], 2)):
        assert first_exit(torch.cat(parts, dim=1), "patient_and_confident", 0.5).tolist() == [place]


def test_the_rule_looks_at_every_sample_by_itself() -> None:
    seen = torch.cat([predicted(0, 0), predicted(0, 0, sure=0.0), predicted(1, 1)])
    assert first_exit(seen, "confidence", 0.8).tolist() == [0, 2, 0]


@pytest.mark.parametrize("wrong", [
    {"threshold": 1.5}, {"rule": "patience", "threshold": 2.5, "curve": []}, {"rule": "patience"},
    {"curve": [0.5, 2.0]}, {"rule": "patience", "threshold": 0, "curve": []},
])  # fmt: skip
def test_thresholds_that_a_rule_cannot_have_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match=r"method\.(threshold|curve) = "):
        parse(LGViTSettings, wrong, "method")


# the loop


def shaken(networks: nn.ModuleDict) -> nn.ModuleDict:
    """The same with weights so large that samples differ in their predictions."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in networks.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.3)
    return networks


@pytest.mark.parametrize("rule", ["confidence", "entropy", "patience", "patient_and_confident"])
def test_samples_leave_where_the_rule_says_with_the_logits_of_that_exit(lab: Make, rule: Any) -> None:
    small = lab()
    networks, x = shaken(small.networks.eval()), small.batch(64)["image"]
    with torch.no_grad():
        whole = run_all(networks, x, LAYERS)
    logits = torch.stack([*(one.logits for one in whole.exits), whole.final], dim=1)
    # between the values of two samples, because a batch of another size has other last bits
    threshold = {
        "confidence": float(logits[:, :2].softmax(2).amax(2).quantile(0.5)),
        "entropy": float(entropy(logits[:, 0]).quantile(0.5)),
        "patience": 2,
        "patient_and_confident": float(entropy(logits[:, 1]).quantile(0.5)),
    }[rule]
    places = first_exit(logits[:, :-1], rule, threshold)
    assert len(places.unique()) > 1
    left = leave(networks, x, LAYERS, rule, threshold)
    assert torch.equal(left.places, places)
    torch.testing.assert_close(left.logits, logits[torch.arange(64), places])
    alone = [leave(networks, one[None], LAYERS, rule, threshold) for one in x[:8]]
    assert [int(one.places) for one in alone] == places[:8].tolist()
    torch.testing.assert_close(torch.cat([one.logits for one in alone]), left.logits[:8])


def test_layers_after_its_exit_are_not_computed_for_a_sample(lab: Make) -> None:
    small = lab()
    networks, x, computed = small.networks.eval(), small.batch(40)["image"], list[int]()
    for block in networks["backbone"].blocks:
        block.register_forward_pre_hook(lambda module, args: computed.append(len(args[0])))
    first = run_all(networks, x, LAYERS[:1]).exits[0].logits.detach()
    threshold = float(first.softmax(1).amax(1).quantile(0.5))
    computed.clear()
    places = leave(networks, x, LAYERS, "confidence", threshold).places
    expected = [40, 40, *(int((places > place).sum()) for place in range(4))]
    assert computed == [count for count in expected if count]
    assert 0 < expected[2] < 40
    computed.clear()
    leave(networks, x, LAYERS, "confidence", 0.0)
    assert computed == [40, 40]
    computed.clear()
    leave(networks, x, LAYERS, "confidence", 1.0)
    assert computed == [40] * 6


def test_without_exits_all_samples_take_the_last_classifier(lab: Make) -> None:
    small = lab()
    x = small.batch()["image"]
    left = leave(small.networks.eval(), x, (), "confidence", 0.0)
    assert left.places.tolist() == [0] * 6
    torch.testing.assert_close(left.logits, run_all(small.networks, x, ()).final)


# costs


def test_costs_are_those_of_the_papers_backbone_and_heads() -> None:
    """By hand, for ViT-B/16 at 224: 196 patches and a class token of width 768."""
    found = costs(LGViTSettings(), (3, 224, 224), 100)
    c, n = 768, 196
    layer = 12 * (n + 1) * c * c + 2 * (n + 1) ** 2 * c
    assert found.layers == tuple(n * 3 * 16 * 16 * c + layer * done for done in range(13))
    assert found.final == 100 * c
    aggregation = {stride: 4 * m * c * c + 2 * m * m * c for stride, m in ((2, 49), (3, 25))}
    pointwise = 2 * n * c * c
    heads = [pointwise + 9 * n * c] * 2 + [pointwise] * 2 + [aggregation[2]] * 2 + [aggregation[3]] * 2
    assert list(found.exits.values()) == [one + 100 * c for one in heads]
    assert found.whole == found.layers[-1] + found.final


def test_a_sample_pays_for_all_heads_that_it_has_asked() -> None:
    found = costs(LGViTSettings(width=16, heads=2, depth=6, exits=LAYERS, aggregation_heads=4, patch=2), (1, 14, 14), 5)
    first, last = found.of((2, 5))[0], found.of((2, 5))[2]
    assert first == found.layers[2] + found.exits[2]
    assert last == found.whole + found.exits[2] + found.exits[5]
    assert found.of(()) == [found.whole]
