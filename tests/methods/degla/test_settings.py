"""DeGLA: data and settings that do not fit, and settings that miss the point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from fedlab.assembly import make_method, make_task
from fedlab.config import Component, Config, parse
from fedlab.data.files.captions import word_tokens
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.checks import resolve
from fedlab.experiment.start import configure
from fedlab.methods.degla.method import DeGLA
from fedlab.methods.degla.settings import DeGLASettings
from fedlab.studies.acceptance import load_acceptance

TOKENS = word_tokens(["a red blue green square circle left right of"])
KINDS = ("reshuffle", "swap_noun", "replace_noun")
COLUMNS = {"image": ("float32", (3, 16, 16)), "text": ("int64", (6,))} | {
    f"negative/{kind}": ("int64", (1, 6)) for kind in KINDS
}


def build(columns: dict[str, Any], vocabulary: tuple[str, ...] = TOKENS.vocabulary, **settings: Any) -> None:
    method = DeGLA(parse(DeGLASettings, settings, "method"))
    config = parse(Config, {"method": "degla", "data": {"source": "shapecap"}})
    method.build(make_task(config, columns, (), 2, vocabulary))


@pytest.mark.parametrize(
    ("columns", "settings", "match"),
    [
        ({"image": COLUMNS["image"]}, {}, "a column 'text'"),
        ({"text": COLUMNS["text"]}, {}, "a column 'image'"),
        ({k: COLUMNS[k] for k in ("image", "text")}, {}, "false captions to train on"),
        (COLUMNS, {"held_out": KINDS}, "false captions to train on"),
        (COLUMNS, {"held_out": ("swap_nouns",)}, "did you mean 'swap_noun'"),
        (COLUMNS, {"merge": (("reshuffle", "order"),)}, "method.merge"),
        (COLUMNS, {"network": {"patch": 5}}, "a divisor"),
        (COLUMNS, {"network": {"max_length": 3}}, "captions of 6 tokens"),
        ({**COLUMNS, "image": ("float32", (3, 16, 24))}, {}, "images of 3×16×24"),
    ],
)
def test_data_that_does_not_fit_is_refused(columns: dict[str, Any], settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        build(columns, **settings)


def test_a_model_that_would_not_be_used_is_a_warning() -> None:
    assert not any("model.name" in warning for warning in resolve(configure("degla")).warnings)
    assert any("CLIP" in warning for warning in resolve(configure("degla", ["model.name=simple_cnn"])).warnings)
    assert not any(
        "model.name" in warning for warning in resolve(configure("fedlgd", ["model={name: simple_cnn}"])).warnings
    )


def test_a_vocabulary_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="captions that end"):
        build(COLUMNS, ("a", "b"))


@pytest.mark.parametrize(
    "setting", [{"alpha": 1.1}, {"lambda_igc": -1}, {"crop": 0}, {"network": {"text": {"width": 30, "heads": 4}}}]
)
def test_impossible_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match=r"method\."):
        make_method(Component(name="degla", **setting))


def checked(**sections: Any) -> list[str]:
    config = parse(Config, {"data": {"source": "shapecap"}, **sections})
    return make_method(config.method).check(config)


def test_starts_that_exclude_each_other_are_refused() -> None:
    method = {"name": "degla", "pretrained": "x", "pretrain": {"steps": 3}}
    with pytest.raises(ConfigError, match="one start"):
        checked(method=method)
    with pytest.raises(ConfigError, match="one start"):
        checked(method={"name": "degla", "pretrained": "x"}, init={"student": "y"})
    with pytest.raises(ConfigError, match=r"init\.teacher"):
        checked(method="degla", init={"teacher": "y"})


def test_settings_that_miss_the_point_are_pointed_out() -> None:
    (text,) = checked(method="degla")
    assert "random weights" in text
    (text,) = checked(method={"name": "degla", "pretrained": "x"}, training={"local_steps": 10})
    assert "horizon of 2500 steps exceeds the run's 100" in text
    config = configure("degla")
    assert make_method(config.method).check(config) == []


def test_defaults_are_the_papers() -> None:
    s = DeGLASettings()
    assert (s.lambda_igc, s.lambda_tgc, s.lambda_distill, s.alpha) == (0.1, 0.1, 0.005 * 256, 0.9996)
    assert (s.contrast, s.tgc_layout, s.teacher, s.crop) == ("all", "paper", "server_ema", 0.9)


def test_the_papers_model_has_its_size(paper_networks: Callable[..., nn.ModuleDict]) -> None:
    """OpenAI's CLIP ViT-B/32: 151,277,313 parameters, the teacher as many."""
    columns = {"image": ("float32", (3, 224, 224)), "text": ("int64", (77,)), "negative/given": ("int64", (4, 77))}
    words = (*(str(n) for n in range(49407)), "<|endoftext|>")
    networks = paper_networks("degla", columns, vocabulary=words, pretrained=None)
    counts = {role: sum(p.numel() for p in network.parameters()) for role, network in networks.items()}
    assert counts == {"student": 151_277_313, "teacher": 151_277_313}


def test_arms_of_the_acceptance_experiment_differ_in_the_terms_of_the_loss_or_in_who_trains() -> None:
    spec = load_acceptance("degla").with_local_arms(range(4))
    configs = {arm: spec.config(arm, 0) for arm in spec.arms}
    assert [resolve(found).warnings for found in configs.values()] == [[]] * len(configs)
    own = {arm: parse(DeGLASettings, found.method.settings).model_dump() for arm, found in configs.items()}
    terms = {"contrast", "lambda_igc", "lambda_tgc", "lambda_distill"}
    for arm, found in configs.items():
        short = arm.startswith("short")
        like = "short" if short else "full"
        assert found.federation.rounds * (found.training.local_steps or 0) == (100 if short else 500), arm
        changed = {key for key, value in own[arm].items() if value != own[like][key]}
        assert changed <= ({"lambda_distill", "alpha"} if short else terms), arm
        training, expected = (c.training.model_dump(exclude={"local_steps"}) for c in (found, configs[like]))
        assert training == expected, arm
    alone = [configs[f"local_{client}"] for client in range(4)]
    assert [found.federation.sampler.settings["clients"] for found in alone] == [[0], [1], [2], [3]]
    assert all(found.data == configs["federated"].data for found in alone)
