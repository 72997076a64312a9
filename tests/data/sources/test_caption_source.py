"""Captioned images from JSONL files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab.config import Component
from fedlab.data.files.captions import decode, hub_tokens
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import build_source
from fedlab.errors import ConfigErrors, DataError

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (90, 90, 90)}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write([{"image": "red.png", …}, …])``: a JSONL file beside pictures of one color each."""
    for name, color in COLORS.items():
        Image.new("RGB", (20, 10), color).save(tmp_path / f"{name}.png")

    def make(lines: list[Any], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return make


def pair(color: str, caption: str, **more: Any) -> dict[str, Any]:
    return {"image": f"{color}.png", "caption": caption, **more}


PAIRS = [
    pair(
        "red", "A red field, wide", negatives=["a green field, wide", "a blue field, wide"], split="train", client="x"
    ),
    pair("green", "a green field", negatives={"replace_adjective": "a red field"}, split="train", client="y"),
    pair("blue", "a blue field", negatives=["a red field"], split="test", client="x"),
]


def load(path: Path, **settings: Any) -> Dataset:
    return build_source(Component(name="captions", path=str(path), size=8, **settings)).load(0)


def texts(samples: Samples, data: Dataset, column: str) -> list[list[str]]:
    ids = samples[column].reshape(len(samples), -1, samples[column].shape[-1])
    return [[decode(row, data.vocabulary) for row in rows if any(row)] for rows in ids.tolist()]


def test_pairs_become_columns(write: Write) -> None:
    data = load(write(PAIRS))
    assert data.vocabulary == ("<pad>", "<end>", ",", "a", "blue", "field", "green", "red", "wide")
    assert texts(data.train, data, "text") == [["a red field , wide"], ["a green field"]]
    assert texts(data.train, data, "negative/given") == [["a green field , wide", "a blue field , wide"], []]
    assert texts(data.train, data, "negative/replace_adjective") == [[], ["a red field"]]
    assert texts(data.test, data, "negative/given") == [["a red field"]]
    assert data.train["image"][0].reshape(3, -1).T.tolist() == [[255, 0, 0]] * 64
    assert data.train.group_names == data.train.domain_names == ("x", "y")
    assert data.train["group"].tolist() == [0, 1]
    assert data.train["text"].shape == (2, 6)


def test_captions_are_cut_to_the_length(write: Write) -> None:
    data = load(write(PAIRS), length=3)
    assert texts(data.train, data, "text") == [["a red"], ["a green"]]


def test_captions_of_one_image_stay_in_one_split(write: Write) -> None:
    lines = [pair(color, f"{color} {number}") for color in COLORS for number in range(5)]
    data = load(write(lines), test_fraction=0.5)
    found = [{text[0].split()[0] for text in texts(part, data, "text")} for part in (data.train, data.test)]
    assert not found[0] & found[1]
    assert [len(part) for part in (data.train, data.test)] == [10, 10]


def test_rules_fill_what_the_file_lacks(write: Write) -> None:
    lines = [pair("red", "a red dog left of a blue cat", split="train"), pair("blue", "a blue cat", split="test")]
    lines[0]["negatives"] = {"swap_noun": "a red cat left of a blue dog"}
    rules = {
        "kinds": ["swap_noun", "swap_adjective", "replace_noun", "reshuffle", "order"],
        "adjectives": ["red", "blue"], "nouns": ["dog", "cat", "cow"], "relations": {"left of": "right of"},
    }  # fmt: skip
    data = load(write(lines), rules=rules)
    found = {kind: texts(data.train, data, f"negative/{kind}")[0] for kind in rules["kinds"]}
    assert found["swap_noun"] == ["a red cat left of a blue dog"]
    assert found["swap_adjective"] == ["a blue dog left of a red cat"]
    assert found["reshuffle"] == ["a blue cat left of a red dog"]
    assert "cow" in found["replace_noun"][0]
    assert texts(data.test, data, "negative/swap_noun") == [[]]
    assert len(texts(data.test, data, "negative/order")[0]) == 1
    with pytest.raises(DataError, match="swap_adjective"):
        load(write(lines), rules={"kinds": ["swap_adjective"], "adjectives": ["pink", "mauve"]})


def test_the_servers_sets(write: Write, tmp_path: Path) -> None:
    for name in ("rot", "grün"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9), COLORS["red"]).save(tmp_path / "classes" / name / "1.png")
    data = load(
        write(PAIRS),
        composition=str(write([pair("red", "a red sea", negatives={"swap_obj": "a sea red"})], "items.jsonl")),
        pretrain=str(write([pair("grey", "fog")], "pretrain.jsonl")),
        zeroshot=str(tmp_path / "classes"),
        prompts=["a {}", "some {}"],
    )
    assert set(data.server) == {"composition", "pretrain", "zeroshot", "prompts"}
    assert texts(data.server["composition"], data, "negative/swap_obj") == [["a sea red"]]
    assert texts(data.server["pretrain"], data, "text") == [["fog"]]
    assert texts(data.server["prompts"], data, "text") == [["a grün"], ["some grün"], ["a rot"], ["some rot"]]
    assert data.server["prompts"]["label"].tolist() == [0, 0, 1, 1]
    assert data.server["zeroshot"].class_names == ("grün", "rot")


def tokenizer_folder(folder: Path) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"a": 0, "<s>": 1, "</s>": 2, "red": 3, "field": 4, "[UNK]": 5}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="[UNK]", model_max_length=6
    )
    fast.save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_of_ones_own(write: Write, tmp_path: Path) -> None:
    data = load(write(PAIRS), tokenizer=tokenizer_folder(tmp_path / "tokenizer"))
    assert data.vocabulary == ("a", "<s>", "</s>", "red", "field", "[UNK]")
    assert data.train["text"][1].tolist() == [1, 0, 5, 4, 2, 2]
    assert data.train["negative/replace_adjective"].tolist() == [[[0] * 6], [[1, 0, 3, 4, 2, 2]]]
    assert decode(data.train["text"][1].tolist(), data.vocabulary) == "a field"


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.source\.tokenizer"):
        hub_tokens(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([], "at least one line"),
        (["{"], "line 1"),
        (["[1]"], "line 1"),
        ([{"image": "red.png"}], "line 1: caption"),
        ([pair("red", " ")], "line 1: caption"),
        ([pair("red", "a", negative=["b"])], "did you mean 'negatives'"),
        ([pair("red", "a"), pair("red", "a field", negatives=["A  field"])], "line 2: negatives.given"),
        ([pair("red", "a", negatives="b")], "a list of captions, or a mapping"),
        ([pair("red", "a", negatives={"Swap Noun": "b"})], "small letters"),
        ([pair("red", "a", negatives=[1])], "a caption, or a list of captions"),
        ([pair("red", "a", split="val")], "train or test"),
        ([pair("red", "a", client="x"), pair("red", "b")], "in all lines, or in none"),
        ([pair("red", "a", client=1.5)], "text or a whole number"),
        ([pair("red", "a", split="train")], "test pairs"),
        ([pair("mauve", "a", split="train"), pair("red", "b", split="test")], "mauve.png"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(write: Write, lines: list[Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        load(write(lines))


def test_missing_files_are_named(tmp_path: Path) -> None:
    source = build_source(Component(name="captions", path=str(tmp_path / "none.jsonl")))
    assert "none.jsonl" in (source.missing() or "")
    with pytest.raises(DataError, match="none"):
        source.load(0)


def test_unknown_rules_are_refused(write: Write) -> None:
    with pytest.raises(ConfigErrors, match="did you mean 'swap_noun'"):
        load(write(PAIRS), rules={"kinds": ["swap_nouns"]})


def test_pictures_are_read_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedlab.data.files.images import PictureReader

    read: list[Path] = []
    original = PictureReader.read
    monkeypatch.setattr(PictureReader, "read", lambda self, path, *a: (read.append(path), original(self, path, *a))[1])
    lines = [pair("red", f"number {n}", split="train") for n in range(4)] + [pair("blue", "x", split="test")]
    data = load(write(lines))
    assert len(read) == 2
    assert np.array_equal(data.train["image"][0], data.train["image"][3])


# files as people write them


def test_other_separators_of_unicode_belong_to_the_caption(write: Write) -> None:
    lines = [
        json.dumps(pair("red", f"a red{mark}square", split="train"), ensure_ascii=False) for mark in "\u2028\u0085\x1f"
    ]
    lines[2] = json.dumps(pair("red", "a red\x0bsquare", split="train"))
    data = load(write([*lines, pair("blue", "a blue square", split="test")]))
    assert texts(data.train, data, "text") == [["a red square"]] * 3


def test_ten_broken_lines_are_told_at_once(write: Write) -> None:
    with pytest.raises(DataError, match=r"line 1[\s\S]*12 of 13 lines[\s\S]*line 10[\s\S]*and 2 more") as caught:
        load(write([*["{"] * 12, pair("red", "a")]))
    assert "line 11" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"image": "red.png", "caption": "a", "caption": "b"}', "occurs twice"),
        ('{"image": "red.png", "caption": "half \\ud83d of one"}', "whole characters"),
        ('{"image": ' * 5000, "a JSON object"),
    ],
    ids=["twice", "half a character", "deep"],
)
def test_lines_that_are_no_plain_object_are_refused(write: Write, line: str, match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load(write([line]))
    str(caught.value).encode()


def counts(data: Dataset) -> dict[str, float]:
    return {left.what: left.count for left in data.left_out if left.what != "classes"}


def test_captions_that_are_cut_are_counted(write: Write) -> None:
    assert counts(load(write(PAIRS))) == {}
    # with their false captions the pairs have seven: four of five tokens and the end, three of them longer
    assert counts(load(write(PAIRS), length=4)) == {"ends of captions": 3}
    assert "data.source.length: 6" in str(load(write(PAIRS), length=4).left_out[0])


def test_a_tokenizers_unknown_words_are_counted(write: Write, tmp_path: Path) -> None:
    found = counts(load(write(PAIRS), tokenizer=tokenizer_folder(tmp_path / "tokenizer")))
    assert found["words or parts of words"] > 0
    known = [pair("red", "a red field", split="train"), pair("blue", "a field", split="test")]
    assert counts(load(write(known), tokenizer=str(tmp_path / "tokenizer"))) == {}


def test_every_zero_shot_class_has_a_picture(write: Write, tmp_path: Path) -> None:
    for name in ("rot", "gelb"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "classes" / "rot" / "1.png")
    with pytest.raises(DataError, match="gelb"):
        load(write(PAIRS), zeroshot=str(tmp_path / "classes"))


def test_few_images_still_have_one_for_tests(write: Write) -> None:
    data = load(write([pair("red", "a"), pair("blue", "b")]), test_fraction=0.1)
    assert [len(part) for part in (data.train, data.test)] == [1, 1]
