"""A federation of sites: what is agreed on, and that a node sees of its own data what a simulation shows its client."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlab import from_arrays
from fedlab.config import Component, DataConfig, parse
from fedlab.config.node import NodeConfig
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import SOURCES, build_source, load_source
from fedlab.data.sources.agreed import vocabulary_hash
from fedlab.data.sources.sites import OneSite, SitesSettings, check_sites
from fedlab.errors import ConfigError, ConfigErrors, DataError, FedLabError
from tests.data.in_memory import Held
from tests.data.site_folders import COUNTS

SITES = tuple(COUNTS)


@pytest.fixture
def unite(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads data sets in memory as sites, in a simulation."""
    find = SOURCES.find
    monkeypatch.setattr(SOURCES, "find", lambda name, key=None: Held if name == "held" else find(name, key))

    def make(sets: dict[str, Dataset], **settings: Any) -> Dataset:
        monkeypatch.setattr(Held, "sets", {**Held.sets, **sets})
        sites = {name: {"name": "held", "key": name} for name in sets}
        return load_source(Component(name="sites", sites=sites, **settings), 0)

    return make


@pytest.fixture
def at_node(monkeypatch: pytest.MonkeyPatch, unite: Any) -> Any:
    """Loads one data set in memory as the node of a site does."""

    def make(dataset: Dataset, **settings: Any) -> Dataset:
        monkeypatch.setattr(Held, "sets", {"a": dataset})
        agreed = parse(SitesSettings, {"sites": ["a", "b"], **settings})
        return OneSite(agreed, "a", Component(name="held", key="a")).load(0)

    return make


def made(labels: list[str], size: int = 4, kind: type = np.uint8, **more: Any) -> Dataset:
    y = np.array(labels)
    x = np.arange(len(y) * size * size).reshape(len(y), size, size) % (256 if kind is np.uint8 else 1)
    return from_arrays(x.astype(kind), y, x.astype(kind), y, **more)


def test_a_site_that_lacks_a_class_keeps_it(unite: Any) -> None:
    dataset = unite({"one": made(["dog", "cat", "dog"]), "two": made(["owl", "cat"])}, classes=["owl", "dog", "cat"])
    assert dataset.train.class_names == ("owl", "dog", "cat")
    assert dataset.train["label"].tolist() == [1, 2, 1, 0, 2]
    assert dataset.train["domain"].tolist() == [0, 0, 0, 1, 1]


def test_a_site_with_a_single_class_keeps_its_labels(unite: Any, at_node: Any) -> None:
    alone = made(["cat", "cat"])
    assert "label" not in alone.train.columns, "this is what the source of the site delivers"
    dataset = unite({"one": alone, "two": made(["dog", "cat"])})
    assert dataset.train["label"].tolist() == [0, 0, 1, 0]
    assert dataset.left_out == ()
    assert at_node(alone, classes=["ant", "cat"]).train["label"].tolist() == [1, 1]


def test_without_a_list_the_classes_are_those_of_all_sites(unite: Any) -> None:
    assert unite({"one": made(["dog", "ant"]), "two": made(["cat", "dog"])}).train.class_names == ("ant", "cat", "dog")
    ten = [str(number) for number in range(11)]
    numbers = from_arrays(np.zeros((11, 4, 4), np.uint8), np.arange(11), np.zeros((11, 4, 4), np.uint8), np.arange(11))
    assert unite({"one": numbers, "two": numbers}).train.class_names == tuple(ten), "an order that all share stays"


def test_a_class_that_is_not_agreed_is_refused_with_the_site(unite: Any) -> None:
    with pytest.raises(DataError, match=r"class 'owl'[\s\S]*cat, dog[\s\S]*data\.source\.classes") as caught:
        unite({"one": made(["dog", "cat"]), "two": made(["owl", "cat"])}, classes=["cat", "dog"])
    assert caught.value.key == "data.source.sites.two"


def test_a_class_without_samples_does_no_harm(unite: Any) -> None:
    listed = from_arrays(
        np.zeros((2, 4, 4), np.uint8), np.array([0, 2]), np.zeros((2, 4, 4), np.uint8), np.array([0, 2]),
        class_names=["cat", "owl", "dog"],
    )  # fmt: skip
    assert unite({"one": listed}, classes=["cat", "dog"]).train["label"].tolist() == [0, 1]


def test_masks_and_tags_are_recoded_too(unite: Any) -> None:
    def segmented(names: tuple[str, ...], mask: list[int]) -> Dataset:
        values = np.array(mask, np.int32).reshape(1, 2, 2)
        columns = {"image": np.zeros((1, 3, 4, 4), np.uint8), "mask": values, "label": np.array([mask[-1]])}
        return Dataset("m", Samples(columns, names), Samples(columns, names))

    one, two = segmented(("sky", "road"), [0, 1, -1, 1]), segmented(("road", "tree"), [0, 1, 0, 1])
    dataset = unite({"one": one, "two": two}, classes=["road", "sky", "tree"])
    assert dataset.train["mask"].reshape(2, 4).tolist() == [[1, 0, -1, 0], [0, 2, 0, 2]]
    assert dataset.train["label"].tolist() == [0, 2]
    assert dataset.train["mask"].dtype == np.int32

    def tagged(names: tuple[str, ...], tags: list[list[int]]) -> Dataset:
        samples = Samples({"x": np.zeros((2, 3), np.float32), "tags": np.array(tags, np.uint8)}, names)
        return Dataset("t", samples, samples)

    dataset = unite({"one": tagged(("b", "a"), [[1, 0], [1, 1]]), "two": tagged(("c",), [[1], [0]])})
    assert dataset.train.class_names == ("a", "b", "c")
    assert dataset.train["tags"].tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_labels_without_agreed_classes_are_refused_on_a_node(at_node: Any) -> None:
    with pytest.raises(DataError, match=r"data\.source\.classes = None[\s\S]*list them: cat, dog"):
        at_node(made(["dog", "cat"]))
    unlabeled = Samples({"image": np.zeros((2, 3, 4, 4), np.uint8)})
    with pytest.raises(DataError, match=r"expected: labeled samples"):
        at_node(Dataset("u", unlabeled, unlabeled), classes=["cat", "dog"])


# columns and vocabulary


@pytest.mark.parametrize(
    ("other", "hint"),
    [
        (made(["dog", "cat"], size=5), r"images of shape \(1, 5, 5\)"),
        (made(["dog", "cat"], kind=np.float32), "images of type float32"),
        (Dataset("t", Samples({"x": np.zeros((2, 3))}), Samples({"x": np.zeros((2, 3))})), "columns"),
    ],
)
def test_sites_that_contradict_each_other_are_refused_by_name(unite: Any, other: Dataset, hint: str) -> None:
    with pytest.raises(DataError, match=hint) as caught:
        unite({"one": made(["dog", "cat"]), "two": other})
    assert caught.value.key == "data.source.sites.two"


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        ({"image": [1, 5, 5]}, r"image of shape \[1, 4, 4\]'\n  expected: \[1, 5, 5\]"),
        ({"image": [1, 4, 4], "text": [7]}, "a column 'text'"),
        ({"text": [7]}, "column 'image' of shape"),
        ({"image": [1, 4, 4], "label": [2]}, r"label of shape \[\]"),
    ],
)
def test_a_site_that_contradicts_the_agreed_columns_is_refused(
    unite: Any, at_node: Any, columns: dict[str, list[int]], hint: str
) -> None:
    with pytest.raises(DataError, match=hint) as caught:
        unite({"one": made(["dog", "cat"])}, columns=columns)
    assert caught.value.key == "data.source.sites.one"
    with pytest.raises(DataError, match=hint) as caught:
        at_node(made(["dog", "cat"]), columns=columns, classes=["cat", "dog"])
    assert caught.value.key == "data"
    assert unite({"one": made(["dog", "cat"])}, columns={"image": [1, 4, 4]}).train["image"].shape == (2, 1, 4, 4)


def test_a_vocabulary_can_be_agreed_on_by_its_words_or_their_hash(unite: Any, at_node: Any) -> None:
    words = ("<pad>", "a", "dog")
    text = replace(made(["dog", "cat"]), vocabulary=words)
    other = replace(text, vocabulary=("<pad>", "dog", "a"))
    for vocabulary in (words, vocabulary_hash(words)):
        assert unite({"one": text}, vocabulary=vocabulary).vocabulary == words
        with pytest.raises(DataError, match=r"a vocabulary of 3 words, hash [0-9a-f]{16}[\s\S]*same tokenizer"):
            at_node(other, vocabulary=vocabulary, classes=["cat", "dog"])
    with pytest.raises(DataError, match="give both the same tokenizer"):
        unite({"one": text, "two": other})


def test_a_site_needs_samples_of_both_splits(at_node: Any) -> None:
    data = made(["dog", "cat"])
    empty = data.test.select(np.empty(0, np.int64))
    with pytest.raises(DataError, match="at least one test sample"):
        at_node(replace(data, test=empty), classes=["cat", "dog"])


# the server's sets


def test_a_sites_own_server_sets_stay_away_and_are_counted(unite: Any) -> None:
    data = made(["dog", "cat"])
    dataset = unite({"one": replace(data, server={"public": data.train})})
    assert dataset.server == {}
    (left,) = dataset.left_out
    assert (left.what, left.count) == ("samples of 'one'", 2)
    assert "public" in left.why


def test_the_server_holds_all_samples_of_its_sources(unite: Any) -> None:
    Held.sets = {"own": made(["cat", "dog", "cat"])}
    sites = {"one": made(["dog", "ant"]), "two": made(["cat", "dog"])}
    dataset = unite(sites, server={"public": {"name": "held", "key": "own"}})
    public = dataset.server["public"]
    assert len(public) == 6
    assert public.class_names == ("ant", "cat", "dog")
    assert public["label"].tolist() == [1, 2, 1] * 2
    assert public.domain_names == ("public",)


def test_a_server_set_of_other_classes_keeps_them_and_a_mixture_is_refused(unite: Any) -> None:
    sites = {"one": made(["dog", "cat"])}
    server = {"public": {"name": "held", "key": "own"}}
    Held.sets = {"own": made(["oak", "elm"])}
    assert unite(sites, server=server).server["public"].class_names == ("elm", "oak")
    Held.sets = {"own": made(["oak", "dog"])}
    with pytest.raises(DataError, match="classes oak") as caught:
        unite(sites, server=server)
    assert caught.value.key == "data.source.server.public"


# settings


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"sites": {}}, "at least 1 item"),
        ({"sites": []}, "at least 1 item"),
        ({"sites": ["a", "a"]}, "different names"),
        ({"sites": ["../a"]}, "pattern"),
        ({"sites": {"a b": "digits"}}, "pattern"),
        ({"sites": ["a"], "classes": ["x", "x"]}, "different names"),
        ({"sites": ["a"], "clases": ["x"]}, "did you mean 'classes'"),
        ({"sites": {"a": {"name": "folder", "pth": "x"}}}, r"data\.source\.sites\.a\.pth[\s\S]*did you mean 'path'"),
        ({"sites": {"a": "foldr"}}, r"data\.source\.sites\.a\.name"),
        ({"sites": ["a"], "server": {"b": {"name": "npz"}}}, r"data\.source\.server\.b\.path"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(FedLabError, match=hint):
        build_source(Component(name="sites", **settings))


def test_names_alone_are_enough_to_deploy_and_not_to_simulate(tmp_path: Path) -> None:
    listed = build_source(Component(name="sites", sites=["a", "b"]))
    assert "write the source of each" in str(listed.missing())
    with pytest.raises(DataError, match=r"data\.source\.sites = \['a', 'b'\][\s\S]*or deploy the run"):
        listed.load(0)
    held = build_source(Component(name="sites", sites={"a": "digits"}, server=["public"]))
    with pytest.raises(DataError, match=r"data\.source\.server = \['public'\]"):
        held.load(0)
    gone = Component(name="sites", sites={"a": {"name": "folder", "path": str(tmp_path / "gone")}})
    assert "set data.source.sites.a.path" in str(build_source(gone).missing())
    with pytest.raises(DataError) as caught:
        load_source(gone, 0)
    assert caught.value.key == "data.source.sites.a.path"


def test_a_site_that_is_not_listed_is_refused() -> None:
    node = NodeConfig(site="berlim", data=Component(name="digits"))
    with pytest.raises(ConfigError, match=r"one of the sites of this run: berlin, lyon[\s\S]*did you mean 'berlin'"):
        OneSite(parse(SitesSettings, {"sites": ["berlin", "lyon"]}), node.site, node.data)


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ({"source": "digits", "partition": ["site"]}, ["data.source.name"]),
        (
            {"source": {"name": "sites", "sites": ["a"]}, "partition": ["site"], "held": {"probe": {"share": 0.1}}},
            ["data.held"],
        ),
    ],
)
def test_what_a_node_cannot_do_alone_is_refused(section: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(ConfigErrors) as caught:
        check_sites(parse(DataConfig, section))
    assert [error.key for error in caught.value.errors] == keys
    check_sites(parse(DataConfig, {**section, "partition": ["domain"]}))
