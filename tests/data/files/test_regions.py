"""Region maps of faces: from files, from a parser with its own numbering, from the template."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedlab.data.files.regions import MapFiles, SegFormerParser, Template
from fedlab.data.regions import CELEBAMASK, MIRRORED, REGIONS, template
from fedlab.errors import DataError

LAPA = ("background", "skin", "r_brow", "l_brow", "r_eye", "l_eye", "nose", "u_lip", "mouth", "l_lip", "hair")
"""The names of CelebAMask-HQ for the classes of LaPa, in LaPa's order."""


def images(count: int = 3, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


# numbers


def test_the_numbering_of_celebamask_is_that_of_the_specification() -> None:
    expected = {1: 1, 2: 6, 3: 1, 4: 5, 5: 4, 6: 3, 7: 2, 8: 1, 9: 1, 10: 8, 11: 7, 12: 9, 13: 10}
    assert list(CELEBAMASK.values()) == [expected.get(number, 0) for number in range(19)]
    assert [CELEBAMASK[name] for name in LAPA] == list(range(11))


def test_mirroring_twice_changes_nothing_and_swaps_left_and_right() -> None:
    assert [MIRRORED[MIRRORED[number]] for number in range(11)] == list(range(11))
    for number, name in enumerate(REGIONS):
        other = name.replace("right", "?").replace("left", "right").replace("?", "left")
        assert REGIONS[MIRRORED[number]] == other


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (224, 200)])
def test_the_template_has_every_region_and_is_symmetric(size: tuple[int, int]) -> None:
    painted = template(*size)
    assert painted.shape == size
    assert set(np.unique(painted)) == set(range(11))
    mirrored = np.array(MIRRORED)[painted[:, ::-1]]
    assert (mirrored == painted).mean() > 0.95
    made = Template().maps([], [], images())
    assert made.known.all()
    assert (made.regions == template(32, 32)).all()


# files


def test_maps_lie_beside_the_pictures_and_are_resized_by_nearest_neighbor(tmp_path: Path) -> None:
    painted = template(64, 48)
    np.save(tmp_path / "a.npy", painted.astype(np.int8))
    found = MapFiles("lapa").maps([tmp_path / "a.png", tmp_path / "b.png"], [(64, 48), (64, 48)], images(2))
    assert found.known.tolist() == [True, False]
    assert (found.regions[0] == painted[1::2, (np.arange(32) * 1.5 + 0.75).astype(int)]).all()
    assert not found.regions[1].any()


def test_numbers_of_celebamask_are_converted(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(19).repeat(19).reshape(19, 19))
    found = MapFiles("celebamask").maps([tmp_path / "a.jpg"], [(19, 19)], images(1, 19))
    assert found.regions[0][:, 0].tolist() == list(CELEBAMASK.values())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.zeros((8, 8, 3), np.uint8), "picture's size"),
        (np.zeros((8, 9), np.uint8), "8×8"),
        (np.zeros((8, 8)), "integers"),
        (np.full((8, 8), 11), "0 to 10"),
        (np.full((8, 8), -1), "0 to 10"),
    ],
)
def test_maps_that_cannot_be_used_are_named(tmp_path: Path, values: np.ndarray, told: str) -> None:
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(DataError, match=r"a\.npy") as caught:
        MapFiles("lapa").maps([tmp_path / "a.png"], [(8, 8)], images(1))
    assert told in caught.value.expected


def test_pickled_maps_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"not": "a map"}], object), allow_pickle=True)
    with pytest.raises(DataError, match="readable region map"):
        MapFiles("lapa").maps([tmp_path / "a.png"], [(8, 8)], images(1))


# a parser


@pytest.fixture
def parser(tmp_path: Path) -> Path:
    """A tiny face parser that is saved as transformers saves one; its classes are in an order of their own."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 8], patch_sizes=[3, 3], strides=[2, 2],
        num_attention_heads=[1, 1], mlp_ratios=[1, 1], decoder_hidden_size=8, id2label=dict(enumerate(reversed(LAPA))),
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():  # all pixels are skin, which is the last but one class here
        model.decode_head.classifier.weight.zero_()
        model.decode_head.classifier.bias.copy_(torch.nn.functional.one_hot(torch.tensor(9), 11))
    model.save_pretrained(tmp_path / "parser")
    (tmp_path / "parser" / "preprocessor_config.json").write_text('{"size": {"height": 32, "width": 32}}')
    return tmp_path / "parser"


def test_a_parser_says_by_the_names_of_its_own_classes_what_it_sees(parser: Path, tmp_path: Path) -> None:
    found = SegFormerParser(str(parser), str(tmp_path / "cache")).maps([], [], images())
    assert found.regions.shape == (3, 32, 32)
    assert (found.regions == 1).all()
    assert found.known.all()


def test_the_parser_runs_once_and_a_picture_without_skin_has_no_map(
    parser: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    runs = []

    def parsed(self: SegFormerParser, pictures: np.ndarray) -> torch.Tensor:
        runs.append(len(pictures))
        made = torch.ones(len(pictures), 32, 32, dtype=torch.uint8)
        made[1] = 10
        return made

    monkeypatch.setattr(SegFormerParser, "_parsed", parsed)
    made = [SegFormerParser(str(parser), str(tmp_path / "cache")).maps([], [], images()) for _ in range(2)]
    assert runs == [3]
    assert made[1].known.tolist() == [True, False, True]
    (parser / "config.json").write_text((parser / "config.json").read_text() + "\n")
    SegFormerParser(str(parser), str(tmp_path / "cache")).maps([], [], images())
    assert runs == [3, 3]


def test_a_parser_that_cannot_be_used_is_refused(parser: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    with pytest.raises(DataError, match=r"data\.source\.parser"):
        SegFormerParser(str(tmp_path / "nowhere"), cache).maps([], [], images())
    config = parser / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"u_lip"', '"LABEL_3"'))
    with pytest.raises(DataError, match="LABEL_3"):
        SegFormerParser(str(parser), cache).maps([], [], images())
    config.write_text("no json")
    with pytest.raises(DataError, match="SegFormer face parser"):
        SegFormerParser(str(parser), cache).maps([], [], images())
    config.write_text(whole)
    for text in ("no json", "[1, 2]", '{"size": null}', '{"image_mean": [0.5]}'):
        (parser / "preprocessor_config.json").write_text(text)
        with pytest.raises(DataError, match="size, image_mean and image_std"):
            SegFormerParser(str(parser), cache).maps([], [], images())
