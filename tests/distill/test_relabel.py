from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fedlab.distill.mixing import Mixing, mix
from fedlab.distill.relabel import StoredLabels, draw_epoch, storage_bytes, store
from fedlab.distill.views import take_views


def teacher() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(800, 4)).eval()


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mixing", ["cutmix", "mixup", "none"])
def test_a_stored_configuration_replays_the_same_view_and_logits(mixing: Mixing) -> None:
    x, model, generator = images(), teacher(), torch.Generator().manual_seed(42)
    drawn = [draw_epoch(8, (12, 12), 3, generator, mixing=mixing) for _ in range(3)]
    tensors = store(x, model, drawn)
    stored = StoredLabels(x, tensors)
    assert len(stored) == 9
    for item, configuration in enumerate([c for epoch in drawn for c in epoch]):
        view, logits = stored[item]
        assert torch.equal(view, configuration.view(x))
        assert (model(view) - model(configuration.view(x))).abs().max() < 1e-5
        assert (logits - model(view)).abs().max() < 1e-2
    assert tensors["logits"].dtype == torch.float16
    assert tensors["logits"].numel() * 2 == storage_bytes(3, 8, 4)


def test_the_label_of_a_mixed_image_is_the_teachers_output_on_it() -> None:
    """Not a mixture of labels."""
    x, model = images(), teacher()
    (drawn,) = draw_epoch(8, (12, 12), 8, torch.Generator().manual_seed(3))
    _, logits = StoredLabels(x, store(x, model, [[drawn]]))[0]
    views = take_views(x[drawn.indices], drawn.views)
    mixed = mix(views, drawn.mix)
    assert 0 < drawn.mix.share < 1
    assert (logits - model(mixed)).abs().max() < 1e-2
    of_labels = drawn.mix.share * model(views) + (1 - drawn.mix.share) * model(views)[drawn.mix.permutation]
    assert (logits - of_labels).abs().max() > 0.05


def test_it_is_a_data_set_of_whole_batches() -> None:
    x = images()
    drawn = [draw_epoch(8, (12, 12), 4, torch.Generator().manual_seed(epoch)) for epoch in range(2)]
    batches = list(DataLoader(StoredLabels(x, store(x, teacher(), drawn)), batch_size=None))
    assert [(tuple(view.shape), tuple(logits.shape)) for view, logits in batches] == [((4, 3, 12, 12), (4, 4))] * 4


def test_every_image_is_drawn_once_an_epoch_in_batches_of_nearly_equal_size() -> None:
    drawn = draw_epoch(9, (8, 8), 4, torch.Generator().manual_seed(0))
    assert [len(c.indices) for c in drawn] == [3, 3, 3]
    assert sorted(torch.cat([c.indices for c in drawn]).tolist()) == list(range(9))


def test_soft_labels_of_imagenet_take_30_gigabytes() -> None:
    assert storage_bytes(300, 50_000, 1000) == 30 * 10**9
