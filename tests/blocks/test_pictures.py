from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.blocks.pictures import attention_maps, in_batches, ranked_images, segmentations, spread_out
from fedlab.method import FigureContext


def context(**fields: Any) -> Any:
    given = {"data": {}, "client_test": lambda client: None, "denormalize": lambda x: x, "when": "after round 1"}
    made = SimpleNamespace(**given | fields)
    made.samples = partial(FigureContext.samples, made)
    return made


def test_samples_are_the_first_set_that_has_any_or_the_first_clients() -> None:
    sets = {"empty": {"x": torch.empty(0)}, "full": {"x": torch.ones(1)}, "more": {"x": torch.ones(2)}}
    own = {"x": torch.zeros(3)}
    assert context(data=sets).samples("none", "empty", "full", "more") is sets["full"]
    assert context(data=sets, client_test=lambda client: own).samples("none") is own
    assert context(data=sets, client_test=lambda client: sets["empty"]).samples() == {}
    assert context().samples() == {}


def test_samples_are_evenly_spread() -> None:
    columns = {"x": torch.arange(11), "y": torch.arange(11) * 2}
    found = spread_out(columns, 3)
    assert found["x"].tolist() == [0, 5, 10]
    assert found["y"].tolist() == [0, 10, 20]
    assert spread_out(columns, 20)["x"].tolist() == list(range(11))


def test_batches_are_in_order_and_the_last_may_be_smaller() -> None:
    assert [batch["x"].tolist() for batch in in_batches({"x": torch.arange(5)}, 2)] == [[0, 1], [2, 3], [4]]


class Says(nn.Module):
    """Predicts one class everywhere."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label = label

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 3, 2, 2)
        logits[:, self.label] = 1
        return logits


def test_segmentations_show_image_truth_and_each_network_that_there_is() -> None:
    task = SimpleNamespace(num_classes=3, class_names=("a", "b", "c"))
    networks = nn.ModuleDict({"student": Says(1), "twin": Says(1), "other": Says(2)})
    samples = {"image": torch.rand(4, 3, 8, 8), "mask": torch.ones(4, 2, 2, dtype=torch.int64)}
    grid = segmentations(
        context(task=task, networks=networks), samples, ("missing", "student", "twin", "other"), most=2
    )
    assert grid is not None
    assert grid.row_labels == ("image", "truth", "student", "twin", "other")
    assert grid.columns == 2
    image, truth, student, twin, other = grid.images.unflatten(0, (5, 2))
    assert torch.equal(image, samples["image"][:2])
    assert torch.equal(student, twin)
    assert torch.equal(student, truth)
    assert not torch.equal(student, other)
    assert "2 of 4 images" in grid.caption
    assert segmentations(context(task=task, networks=networks), {}, ("student",)) is None


def test_a_ranked_image_has_a_frame_that_tells_whether_it_is_right() -> None:
    queries, found = torch.full((1, 3, 32, 16), 0.5), [torch.zeros(2, 3, 32, 16)]
    grid = ranked_images(queries, found, [[True, False]], 3, "title", "caption")
    assert grid.column_labels == ("query", "1", "2", "3")
    asked, right, wrong, missing = grid.images
    assert asked[:, 0, 0].tolist() == [0.25] * 3
    assert right[:, 0, 0].argmax() == 1
    assert wrong[:, 0, 0].argmax() == 0
    assert (missing == 1).all()
    assert torch.equal(asked[:, 2:-2, 2:-2], queries[0])
    assert torch.equal(right[:, 2:-2, 2:-2], found[0][0])


def test_attention_is_drawn_over_the_image_and_scaled_to_its_largest_value() -> None:
    maps = torch.tensor([[[[0.0, 0.2], [0.1, 0.0]]]])
    grid = attention_maps(torch.ones(1, 1, 4, 4), maps, ("cls",), "title", "caption")
    assert grid.column_labels == ("image", "cls")
    image, heat = grid.images
    assert (image == 1).all()
    assert torch.allclose(heat[:, 0, 0], torch.full((3,), 0.3))  # no attention: the dimmed image
    assert torch.allclose(heat[:, 0, 3], 0.3 + 0.7 * torch.tensor([1.0, 0.75, 0.0]))
    assert torch.allclose(heat[:, 3, 0], 0.3 + 0.35 * torch.tensor([1.0, 0.75, 0.0]))
