"""Queries of composed retrieval in the layouts of FashionIQ, CIRR and CIRCO, and in one of FedLab's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab.config import Component
from fedlab.data.files.captions import decode
from fedlab.data.samples import Dataset
from fedlab.data.sources import build_source, load_source
from fedlab.errors import DataError
from tests.data.bert import save_bert_tokenizer

WORDS = "a red blue square left and has more two of the dogs"


def picture(path: Path, shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)
    return path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    save_bert_tokenizer(folder, WORDS)
    return str(folder)


def load(path: Path, **settings: Any) -> Dataset:
    return load_source(Component(name="composed", path=str(path), size=8, **{"length": 12, **settings}), 0)


def texts(data: Dataset) -> list[list[str]]:
    return [[decode(ids, data.vocabulary) for ids in row.tolist()] for row in data.server["queries"]["text"]]


def shades(data: Dataset) -> list[int]:
    return [int(value) for value in data.server["gallery"]["image"][:, 0, 0, 0]]


@pytest.fixture
def fashioniq(tmp_path: Path) -> Path:
    root = tmp_path / "fiq"
    for kind, first in (("dress", 0), ("shirt", 100)):
        names = [f"{kind[0].upper()}{number}" for number in range(4)]
        for number, name in enumerate(names):
            picture(root / "images" / f"{name}.png", first + 10 * number)
        write(root / "image_splits" / f"split.{kind}.val.json", names)
        train = [f"{name}t" for name in names]
        for number, name in enumerate(train):
            picture(root / "images" / f"{name}.png", first + number)
        write(root / "image_splits" / f"split.{kind}.train.json", train)
        query = {"candidate": names[0], "target": names[2], "captions": ["has a red square.", "more blue, "]}
        write(root / "captions" / f"cap.{kind}.val.json", [query, {**query, "candidate": names[1]}])
    return root


def test_fashioniq_has_two_wordings_and_ranks_within_a_category(fashioniq: Path, bert: str) -> None:
    data = load(fashioniq, layout="fashioniq", test_fraction=0.25, tokenizer=bert)
    queries, gallery = data.server["queries"], data.server["gallery"]
    assert texts(data) == [["has a red square and more blue", "more blue and has a red square"]] * 4
    assert shades(data) == [0, 10, 20, 30, 100, 110, 120, 130]
    assert gallery["label"].tolist() == [0] * 4 + [1] * 4
    assert queries["label"].tolist() == [0, 0, 1, 1]
    assert queries["reference"].tolist() == [0, 1, 4, 5]
    assert queries["targets"].tolist() == [[2], [2], [6], [6]]
    assert "removed" not in queries.columns
    assert data.train.class_names == data.train.group_names == ("dress", "shirt")
    assert (len(data.train), len(data.test)) == (6, 2)
    assert data.left_out == ()


def test_images_of_fashioniq_that_are_gone_are_counted_with_their_queries(fashioniq: Path, bert: str) -> None:
    for name in ("D0", "S3", "D1t"):
        (fashioniq / "images" / f"{name}.png").unlink()
    data = load(fashioniq, layout="fashioniq", test_fraction=0.25, tokenizer=bert)
    assert {left.what: left.count for left in data.left_out} == {"gallery images": 2, "queries": 1, "photos": 1}
    assert data.server["queries"]["reference"].tolist() == [0, 3, 4]
    for name in ("D2", "S2"):
        (fashioniq / "images" / f"{name}.png").unlink()
    with pytest.raises(DataError, match="at least one query"):
        load(fashioniq, layout="fashioniq", tokenizer=bert)


def test_one_category_has_no_kinds(fashioniq: Path, bert: str) -> None:
    (fashioniq / "captions" / "cap.shirt.val.json").unlink()
    data = load(fashioniq, layout="fashioniq", test_fraction=0.25, tokenizer=bert)
    assert "label" not in data.server["queries"].columns
    assert "label" not in data.train.columns


def test_cirr_removes_the_reference_and_has_groups(tmp_path: Path, bert: str) -> None:
    root, names = tmp_path / "cirr-root", [f"dev-{number}" for number in range(6)]
    places = {name: f"./dev/{name}.png" for name in names}
    trained = {f"train-{number}": f"./train/3/{number}.png" for number in range(4)}
    for number, place in enumerate((*places.values(), *trained.values())):
        picture(root / place, 10 * number)
    write(root / "cirr" / "image_splits" / "split.rc2.val.json", places)
    write(root / "cirr" / "image_splits" / "split.rc2.train.json", trained)
    query = {
        "pairid": 12, "reference": names[4], "target_hard": names[1], "target_soft": {names[1]: 1.0},
        "caption": "two of the dogs", "img_set": {"id": 1, "members": names[:5], "reference_rank": 4},
    }  # fmt: skip
    write(root / "cirr" / "captions" / "cap.rc2.val.json", [query])
    data = load(root, layout="cirr", test_fraction=0.25, tokenizer=bert)
    queries = data.server["queries"]
    assert texts(data) == [["two of the dogs"]]
    assert queries["reference"].tolist() == [4]
    assert queries["targets"].tolist() == [[1]]
    assert queries["removed"].tolist() == [[4]]
    assert queries["members"].tolist() == [[0, 1, 2, 3, 4]]
    assert (len(data.train), len(data.test)) == (3, 1)
    assert "domain" not in data.train.columns


@pytest.fixture
def circo(tmp_path: Path) -> Path:
    root = tmp_path / "circo"
    coco = root / "COCO2017_unlabeled"
    images = [{"id": 100 + number, "file_name": f"{100 + number:012d}.png"} for number in range(12)]
    for number, image in enumerate(images):
        picture(coco / "unlabeled2017" / str(image["file_name"]), 10 * number)
    write(coco / "annotations" / "image_info_unlabeled2017.json", {"images": images, "info": {}})
    query = {
        "id": 0, "reference_img_id": 102, "target_img_id": 107, "relative_caption": "has more dogs",
        "shared_concept": "dogs", "gt_img_ids": [107, 103, 110], "semantic_aspects": [],
    }  # fmt: skip
    write(root / "annotations" / "val.json", [query, {**query, "id": 1, "gt_img_ids": [107]}])
    for client in ("ann", "bob"):
        for number in range(4):
            picture(tmp_path / "photos" / client / f"{number}.png", number)
    return root


def test_circo_has_several_targets_and_photos_come_from_elsewhere(circo: Path, bert: str) -> None:
    data = load(circo, layout="circo", photos=str(circo.parent / "photos"), test_fraction=0.25, tokenizer=bert)
    queries = data.server["queries"]
    assert queries["targets"].tolist() == [[7, 3, 10], [7, -1, -1]]
    assert "removed" not in queries.columns
    assert len(data.server["gallery"]) == 12
    assert data.train.group_names == ("ann", "bob")
    assert (len(data.train), len(data.test)) == (6, 2)
    with pytest.raises(DataError, match=r"(?s)data\.source\.photos.*one folder of photos for each client"):
        load(circo, layout="circo", tokenizer=bert)


def test_a_part_of_the_gallery_is_drawn_and_what_is_left_out_is_said(circo: Path, bert: str) -> None:
    settings = {"layout": "circo", "photos": str(circo.parent / "photos"), "tokenizer": bert}
    data = load(circo, distractors=3, **settings)
    assert len(data.server["gallery"]) == 4 + 3
    named = [int(number) for row in data.server["queries"]["targets"] for number in row if number >= 0]
    found = shades(data)
    assert [found[number] for number in named] == [70, 30, 100, 70]
    (left,) = data.left_out
    assert (left.what, left.count, left.total, left.wanted) == ("gallery images", 5, 12, True)
    assert load(circo, distractors=3, **settings).fingerprint == data.fingerprint
    assert load(circo, distractors=3, data_seed=1, **settings).fingerprint != data.fingerprint


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for number, name in enumerate("abcdefgh"):
        picture(tmp_path / f"{name}.png", 10 * number)
        picture(tmp_path / "photos" / "me" / f"{name}.png", number)
        picture(tmp_path / "photos" / "you" / f"{name}.png", number)
    lines = [
        {"reference": "a.png", "caption": "but red", "target": "b.png"},
        {"reference": "b.png", "captions": ["but blue", "but a blue square"], "targets": ["c.png", "d.png"]},
        {"reference": "a.png", "caption": "but left", "target": "c.png", "group": ["b.png", "c.png", "e.png"]},
    ]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return tmp_path / "queries.jsonl"


def test_own_queries_need_no_checkpoint_if_the_small_model_knows_their_words(own: Path) -> None:
    data = load(own, photos=str(own.parent / "photos"))
    queries = data.server["queries"]
    assert shades(data) == [0, 10, 20, 30, 40]
    assert texts(data) == [["but red", ""], ["but blue", "but a blue square"], ["but left", ""]]
    assert not queries["text"][0, 1].any()
    assert queries["targets"].tolist() == [[1, -1], [2, 3], [2, -1]]
    assert queries["removed"].tolist() == [[0], [1], [0]]
    assert queries["members"].tolist() == [[-1, -1, -1], [-1, -1, -1], [1, 2, 4]]
    assert data.vocabulary[1] == "[CLS]"


def test_test_photos_are_drawn_for_every_owner_and_are_no_training_photos(own: Path) -> None:
    data = load(own, photos=str(own.parent / "photos"), test_fraction=0.5)
    for owner in range(2):
        parts = [part["image"][part["group"] == owner][:, 0, 0, 0] for part in (data.train, data.test)]
        assert [len(part) for part in parts] == [4, 4]
        assert sorted(np.concatenate(parts).tolist()) == list(range(8))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            '{"reference": "a.png", "caption": "but purple", "target": "b.png"}',
            r"(?s)'purple' is none.*BLIP checkpoint",
        ),
        ('{"reference": "a.png", "caption": "but red", "traget": "b.png"}', r"(?s)line 1 = 'traget'.*target"),
        ('{"reference": "a.png", "caption": "but red"}', r"(?s)line 1.*either 'target' or 'targets'"),
        ('{"reference": "a.png", "caption": "but red", "targets": []}', r"(?s)line 1: targets.*at least one"),
        ('{"reference": "a.png", "caption": 3.5, "target": "b.png"}', r"(?s)line 1: caption = 3\.5.*text"),
        ('{"reference": "a.png", "caption": "but red", "target": "none.png"}', r"(?s)none\.png.*no such file"),
        ('["a.png"]', r"(?s)line 1.*a JSON object"),
        ('{"reference": "a.png", ', r"(?s)line 1.*a JSON object"),
        ("", "at least one query"),
    ],
)
def test_broken_queries_are_told_with_their_line(own: Path, line: str, told: str) -> None:
    own.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=told):
        load(own, photos=str(own.parent / "photos"))


@pytest.mark.parametrize("layout", ["fashioniq", "cirr", "circo"])
def test_another_folder_is_no_data_set(tmp_path: Path, layout: str, bert: str) -> None:
    with pytest.raises(DataError, match=r"data\.source\.path"):
        load(tmp_path, layout=layout, tokenizer=bert)


def test_a_query_that_names_an_image_of_no_list_is_refused(fashioniq: Path, bert: str) -> None:
    write(fashioniq / "image_splits" / "split.dress.val.json", ["D0", "D1"])
    with pytest.raises(DataError, match=r"(?s)dress/D2.*list of the gallery.*2 of 4 queries"):
        load(fashioniq, layout="fashioniq", tokenizer=bert)


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    source = build_source(Component(name="composed", path=str(tmp_path / "none.jsonl")))
    assert "none.jsonl" in str(source.missing())
