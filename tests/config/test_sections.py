from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedlab.config import Component, Config, apply_overrides, load_config, parse
from fedlab.config.yamltree import dump_yaml, load_yaml, unshared
from fedlab.data.partition.partition import make_steps
from fedlab.data.sources import build_source
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.checks import resolve

MINIMAL: dict[str, Any] = {"method": "fedlgd", "data": {"source": "digits"}}


def errors_of(raw: object) -> dict[str, str]:
    """Key → message of every error."""
    with pytest.raises(ConfigErrors) as caught:
        parse(Config, raw)
    return {error.key: str(error) for error in caught.value.errors}


def changed(*overrides: str) -> Config:
    return parse(Config, apply_overrides(MINIMAL, overrides))


class TestStrictKeys:
    @pytest.mark.parametrize(
        ("raw", "key", "hint"),
        [
            ({"trainig": {}}, "trainig", "'training'"),
            ({"training": {"learn_rate": 1}}, "training.learn_rate", "known: batch_size"),
            ({"training": {"momentun": 1}}, "training.momentun", "'momentum'"),
            ({"federation": {"round": 3}}, "federation.round", "'rounds'"),
            ({"data": {"source": "digits", "partitions": []}}, "data.partitions", "'partition'"),
            ({"engine": {"worker": 2}}, "engine.worker", "'workers'"),
            ({"tracking": {"tensorbord": True}}, "tracking.tensorbord", "'tensorboard'"),
            ({"exchange": {"locl": []}}, "exchange.locl", "'local'"),
            ({"evaluation": {"evry": 1}}, "evaluation.evry", "'every'"),
        ],
    )
    def test_an_unknown_key_is_refused_with_a_suggestion(self, raw: dict[str, Any], key: str, hint: str) -> None:
        errors = errors_of({**MINIMAL, **raw})
        assert list(errors) == [key]
        assert "no such key" in errors[key]
        assert hint in errors[key]

    def test_all_errors_come_at_once(self) -> None:
        raw = {"seed": -1, "training": {"lr": 0, "batch_size": 2.5}, "data": {"source": {}}}
        assert set(errors_of(raw)) == {"seed", "training.lr", "training.batch_size", "data.source.name", "method"}

    def test_a_value_of_several_kinds_has_one_error(self) -> None:
        errors = errors_of({**MINIMAL, "data": {"source": "digits", "mean": "grey", "std": {"mnist": ["x"]}}})
        assert set(errors) == {"data.mean", "data.std.mnist.0"}
        assert "a list, or a mapping" in errors["data.mean"]

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), "nan", "inf"])
    def test_not_a_number_and_infinity_are_refused(self, number: object) -> None:
        raw = {**MINIMAL, "training": {"lr": number}, "data": {"source": "digits", "mean": [number]}}
        assert set(errors_of(raw)) == {"training.lr", "data.mean.0"}

    @pytest.mark.parametrize("seed", [10**30, 2**63, 16**9000, -1], ids=["large", "limit", "huge", "negative"])
    def test_a_seed_out_of_range_is_refused(self, seed: int) -> None:
        assert set(errors_of({**MINIMAL, "seed": seed})) == {"seed"}

    @pytest.mark.parametrize("raw", [None, [], "text", 3, [("seed", 1)]])
    def test_what_is_no_mapping_is_refused(self, raw: object) -> None:
        assert set(errors_of(raw)) == {"configuration"}

    def test_keys_that_are_no_text_are_refused(self) -> None:
        assert set(errors_of({**MINIMAL, 1: 2, "training": {None: 1}, "method": {"name": "x", 3: 4}})) == {
            "1",
            "training.None",
            "method.3",
        }

    def test_a_value_inside_itself_is_refused(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        assert all(key.startswith("data") for key in errors_of({**MINIMAL, "data": {"source": "digits", "mean": loop}}))
        with pytest.raises(ConfigErrors, match="an alias contains itself"):
            apply_overrides({"method": {"name": "x", "y": loop}}, [])

    def test_a_configuration_cannot_be_changed(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            parse(Config, MINIMAL).seed = 3


class TestComponents:
    @pytest.mark.parametrize(
        ("step", "key", "hint"),
        [
            ({"name": "dirichlet", "clients": 3, "alfa": 1}, "data.partition.1.alfa", "'alpha'"),
            ({"name": "dirichlet"}, "data.partition.1.clients", "required"),
            ({"name": "dirichlet", "clients": 3, "alpha": 0}, "data.partition.1.alpha", "greater"),
            ({"name": "pathological", "clients": 0}, "data.partition.1.clients", "greater"),
            ({"name": "corruption", "corruptions": ["fogg"]}, "data.partition.1.corruptions", "'fog'"),
            ({"name": "corruption", "corruptions": []}, "data.partition.1.corruptions", "at least one"),
            ({"name": "corruption", "corruptions": ["fog", "fog"]}, "data.partition.1.corruptions", "at most once"),
            ({"name": "corruption", "severity": 6}, "data.partition.1.severity", "less than or equal to 5"),
            ({"name": "natural", "clients": 3}, "data.partition.1.clients", "no such key"),
        ],
    )
    def test_wrong_settings_of_a_step_are_named(self, step: dict[str, Any], key: str, hint: str) -> None:
        config = parse(Config, {**MINIMAL, "data": {"source": "digits", "partition": ["domain", step]}})
        with pytest.raises(ConfigErrors) as caught:
            make_steps(config.data.partition)
        (error,) = caught.value.errors
        assert error.key == key
        assert hint in str(error)

    @pytest.mark.parametrize(("name", "hint"), [("dirichlett", "'dirichlet'"), ("os:path", "nested class Settings")])
    def test_an_unknown_step_is_refused(self, name: str, hint: str) -> None:
        with pytest.raises(ConfigError, match=hint):
            make_steps([Component(name=name)])

    def test_corruptions_cannot_be_stacked(self) -> None:
        with pytest.raises(ConfigError, match="one corruption step"):
            make_steps([Component(name="corruption"), Component(name="corruption")])

    def test_a_source_inside_a_union_is_checked(self) -> None:
        union = Component(name="union", sources={"mnist": {"name": "folder", "root": "x"}})
        with pytest.raises(ConfigErrors) as caught:
            build_source(union)
        assert {error.key for error in caught.value.errors} == {
            "data.source.sources.mnist.path",
            "data.source.sources.mnist.root",
        }

    def test_all_wrong_components_are_reported_together(self) -> None:
        raw = {"method": "fedlgdd", "model": "convet", "data": {"source": "digit", "partition": ["idd"]}}
        with pytest.raises(ConfigErrors) as caught:
            resolve(parse(Config, raw))
        assert {"method.name", "model.name", "data.source.name", "data.partition.0.name"} <= {
            error.key for error in caught.value.errors
        }


class TestOverrides:
    def test_values_are_read_as_yaml(self) -> None:
        config = changed(
            "training.lr=1e-3", "training.clip_norm=null", "engine.workers=2", "tracking.tensorboard=false",
            "data.mean=[0.1, 2e-1, 3.E-1]", "tracking.name=2024-01-31", "method.note='5'", "method.many=5",
        )  # fmt: skip
        assert config.training.lr == 0.001
        assert config.training.clip_norm is None
        assert config.engine.workers == 2
        assert config.tracking.tensorboard is False
        assert config.data.mean == (0.1, 0.2, 0.3)
        assert config.tracking.name == "2024-01-31"
        assert config.method.settings == {"note": "5", "many": 5}

    def test_a_component_written_by_its_bare_name_takes_settings(self) -> None:
        config = changed("data.partition=[domain, dirichlet]", "data.partition.1.clients=3", "method.ipc_local=7")
        assert config.data.partition[0] == Component(name="domain")
        assert config.data.partition[1] == Component(name="dirichlet", clients=3)
        assert config.method == Component(name="fedlgd", ipc_local=7)

    def test_everything_after_the_first_equals_sign_is_the_value(self) -> None:
        assert changed("tracking.mlflow=http://host/?a=b").tracking.mlflow == "http://host/?a=b"

    def test_text_that_is_no_yaml_stays_text(self) -> None:
        assert changed("tracking.folder=[oops", r"method.path=C:\x: y").tracking.folder == "[oops"

    def test_the_given_mapping_is_left_alone(self) -> None:
        raw = {"method": "fedlgd", "data": {"source": {"name": "digits"}, "partition": ["iid"]}}
        apply_overrides(raw, ["data.source.size=8", "data.partition.0.clients=2"])
        assert raw == {"method": "fedlgd", "data": {"source": {"name": "digits"}, "partition": ["iid"]}}

    def test_parts_that_yaml_shares_change_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "shared.yaml"
        path.write_text("method: &m {name: fedlgd}\nmodel: *m\ndata: {source: digits}\n")
        config = load_config(path, ["model.name=convnet", "method.ipc_local=3"])
        assert (config.method.settings, config.model.settings) == ({"ipc_local": 3}, {})

    @pytest.mark.parametrize(
        "override",
        [
            "", "=", "training.lr", "=3", "data.partition.7.name=iid", "data.partition.x=1", "data.partition.-1=1",
            "data.partition.²=1", "data.partition." + "9" * 5000 + "=1", "seed.x=1", "training.lr.a=1", "a..b=1",
            ".=1", "...=2", "data.mean.0.x=1",
        ],
    )  # fmt: skip
    def test_a_key_that_leads_nowhere_is_refused(self, override: str) -> None:
        raw = {**MINIMAL, "seed": 1, "training": {"lr": 1}, "data": {"source": "digits", "partition": [], "mean": [1]}}
        with pytest.raises(ConfigErrors):
            parse(Config, apply_overrides(raw, [override]))

    def test_with_overrides_gives_a_changed_copy(self) -> None:
        config = parse(Config, MINIMAL)
        assert config.with_overrides({"training.lr": 0.5, "seed": 3}).training.lr == 0.5
        assert config.seed == 0


class TestYaml:
    def write(self, folder: Path, text: str | bytes) -> Path:
        path = folder / "config.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    @pytest.mark.parametrize(
        "text",
        [
            "", "- a", "3", "a: [", "a: b: c", "\tx: 1", "? [a]\n: 1", "? {a: 1}\n: 1", b"\xff\xfe\x00", b"\x00",
            "a: !!python/object/apply:os.system [ls]", "a: !!int ''", "a: !!float ''", "a: !!bool maybe",
            "a: !!timestamp x", "a: !!binary '='", "a: !!set {b}", "a: !mine 3", "seed: 1\nseed: 2",
            "training: {lr: 1, lr: 1}", "a: " + "[" * 5000, "a: " + "9" * 5000, "a: 0x" + "f" * 5000,
            "a: &a [*a]", "a: &a {b: *a}", "a: *nothing",
            "1:2:3:4:5:" + "6:" * 400 + "7.5: 1", "a: 1" + ":1" * 300 + ".5",
        ],
    )  # fmt: skip
    def test_a_bad_document_is_refused(self, text: str | bytes, tmp_path: Path) -> None:
        with pytest.raises(ConfigErrors) as caught:
            load_config(self.write(tmp_path, text))
        assert len(str(caught.value)) < 3000

    def test_a_billion_laughs_are_refused_at_once(self, tmp_path: Path) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
        with pytest.raises(ConfigErrors, match="aliases are written out"):
            load_config(self.write(tmp_path, "\n".join(lines)))

    @pytest.mark.parametrize("name", ["missing.yaml", "."])
    def test_an_unreadable_file_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigErrors, match="readable YAML file"):
            load_config(tmp_path / name)

    def test_anchors_and_merges_work(self) -> None:
        assert load_yaml("base: &b {lr: 1, k: 2}\nmine: {<<: *b, lr: 1e-3}")["mine"] == {"lr": 0.001, "k": 2}

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
            max_leaves=12,
        )
    )
    @example(
        [
            "1e-3",
            "1e3",
            "1.5e+7",
            "2024-01-01",
            "yes",
            "null",
            "0x1",
            "1:30",
            "~",
            "",
            "!a",
            "&a",
            "*a",
            "\x85",
            "a\u2028b",
            "\ufeff",
        ]
    )
    @example({"\x85": None, "\u2029": "\x85"})
    @settings(max_examples=80)
    def test_what_is_written_is_read_back_equal(self, tree: Any) -> None:
        read = load_yaml(dump_yaml(tree))
        assert read == unshared(tree)
        assert repr(read) == repr(tree)


class TestRoundTrip:
    def test_a_frozen_configuration_is_read_back_equal(self, tmp_path: Path) -> None:
        config = changed(
            "data.partition=[domain, {name: dirichlet, clients: 3, alpha: 1e-3}]",
            "data.mean={mnist: [0.1], svhn: [0.1, 0.2, 0.3]}",
            "exchange.local=[norm, 'model.head.*']",
            "method.note='1e-3'",
            "method.nested={a: [1, {b: null}], 'true': 'no'}",
            "training.clip_norm=1e-7",
            f"seed={2**63 - 1}",
        )
        path = tmp_path / "config.yaml"
        path.write_text(config.to_yaml())
        assert load_config(path) == config
        assert load_config(path).to_yaml() == config.to_yaml()


def packaged() -> list[Any]:
    methods = importlib.resources.files("fedlab.methods")
    files = [file for folder in methods.iterdir() if folder.is_dir() for file in folder.iterdir()]
    return sorted(
        (f for f in files if f.name.endswith(".yaml") and not f.name.startswith(("acceptance", "card"))),
        key=lambda f: str(f),
    )


@pytest.mark.parametrize("file", packaged(), ids=lambda file: f"{Path(str(file)).parent.name}-{file.name}")
def test_every_packaged_configuration_is_accepted(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with importlib.resources.as_file(file) as path:
        config = load_config(path)
    resolve(config)
    assert parse(Config, config.model_dump(mode="json")) == config


def test_the_papers_configurations_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name, words in {
        "paper_digits": ["mnist: hub data set 'ylecun/mnist'", "synthdigits: no folder", "mnistm: no folder"],
        "paper_retina": ["drishti: no folder", "refuge: no folder"],
        "paper_cifar10c": ["hub data set 'uoft-cs/cifar10'"],
    }.items():
        with importlib.resources.as_file(importlib.resources.files("fedlab.methods.fedlgd") / f"{name}.yaml") as path:
            missing = build_source(load_config(path).data.source).missing()
        assert missing is not None
        assert all(word in missing for word in words)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
    | st.sampled_from(["iid", "fedlgd", "digits", "norm", "auto", 10**40, -(2**70), 10**300, 1e308, float("nan")])
)  # fmt: skip
KEYS = (
    st.sampled_from(
        [
            "seed", "method", "model", "data", "training", "federation", "engine", "tracking", "exchange", "name",
            "source", "partition", "mean", "std", "strategy", "sampler", "lr", "batch_size", "local", "rounds", "0",
            "1",
        ]
    )
    | st.text(max_size=5) | st.integers(0, 3) | st.none() | st.tuples(st.integers(0, 1))
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6) | st.tuples(inner, inner),
    max_leaves=25,
)


class TestFuzz:
    """Whatever comes in, either a configuration or a configuration error comes out."""

    @staticmethod
    def accepted(work: Any) -> None:
        try:
            config = work()
        except (ConfigError, ConfigErrors):
            return
        assert parse(Config, load_yaml(config.to_yaml())).to_yaml() == config.to_yaml()

    @given(TREES)
    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    def test_any_nested_value(self, tree: Any) -> None:
        self.accepted(lambda: parse(Config, apply_overrides(tree if isinstance(tree, dict) else {"data": tree}, [])))

    @given(st.sampled_from(sorted(Config.model_fields)), TREES)
    @settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    def test_any_section(self, section: str, tree: Any) -> None:
        self.accepted(lambda: parse(Config, apply_overrides({**MINIMAL, section: tree}, [])))

    @given(
        st.text(alphabet="abmethodsouc:.[]{}&*!|>-?#'\"%@`,\n\t 0123456789e~<=_", max_size=60) | st.binary(max_size=60)
    )
    @settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    def test_any_file(self, tmp_path: Path, text: str | bytes) -> None:
        path = tmp_path / "fuzz.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        self.accepted(lambda: load_config(path))

    @given(
        st.lists(
            st.text(alphabet="x.=0123[]{}:&*!' e-²\n", max_size=15)
            | st.builds(
                lambda key, value: f"{key}={value}",
                st.lists(st.sampled_from(["data", "partition", "0", "1", "mean", "training", "lr", "method", "²", ""]),
                         max_size=4).map(".".join),
                st.text(max_size=10),
            ),
            max_size=4,
        )
    )  # fmt: skip
    @settings(max_examples=300)
    def test_any_override(self, overrides: list[str]) -> None:
        raw = {"method": "x", "data": {"source": "digits", "partition": ["iid", {"name": "a"}], "mean": [0.5]}}
        self.accepted(lambda: parse(Config, apply_overrides(raw, overrides)))
