from __future__ import annotations

from collections import Counter

import pytest
import torch

from fedlab.data.batching import balanced_batches, identity_batches, whole_batches


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_incomplete_batches_are_dropped_unless_they_are_all_there_is() -> None:
    drawn_from = [whole_batches({"audio": torch.zeros(n, 2)}, 8, generator()) for n in (0, 5, 8, 21)]
    sizes = [[len(part) for part in parts] for parts in drawn_from]
    assert sizes == [[], [5], [8], [8, 8]]
    drawn = torch.cat(list(whole_batches({"audio": torch.zeros(16, 2)}, 8, generator())))
    assert sorted(drawn.tolist()) == list(range(16))


def test_balanced_batches_draw_rare_classes_as_often_as_frequent_ones() -> None:
    labels = torch.tensor([0] * 900 + [1] * 100)
    for columns in ({"label": labels}, {"tags": torch.eye(2, dtype=torch.uint8)[labels]}):
        batches = list(balanced_batches(columns, 64, generator()))
        assert {len(part) for part in batches[:-1]} == {64}
        drawn = labels[torch.cat(batches)]
        assert len(drawn) == 1000
        assert float(drawn.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert len(torch.cat(list(balanced_batches({"tags": torch.zeros(9, 3)}, 4, generator())))) == 9


# identities


def test_every_batch_has_p_identities_with_k_images_each() -> None:
    labels = torch.arange(23).repeat_interleave(9).tolist()
    batches = list(identity_batches(labels, 5, 4, generator()))
    for batch in batches:
        counts = Counter(labels[i] for i in batch.tolist())
        assert len(counts) == 5
        assert set(counts.values()) == {4}
        assert len(set(batch.tolist())) == 20
    seen = torch.cat(batches).tolist()
    assert len(seen) == len(set(seen))  # groups are disjoint, the remainder is dropped
    # two groups of each identity; it ends when fewer than five identities are left
    used = Counter(labels[i] for batch in batches for i in batch[::4].tolist())
    assert sum(count < 2 for count in used.values()) + (23 - len(used)) < 5


def test_identities_with_few_images_are_drawn_with_replacement() -> None:
    batches = list(identity_batches([3, 3, 8, 8, 8, 8, 8], 2, 4, generator()))
    assert len(batches) == 1
    counts = Counter([3, 3, 8, 8, 8, 8, 8][i] for i in batches[0].tolist())
    assert counts == {3: 4, 8: 4}


@pytest.mark.parametrize(("labels", "identities"), [([1] * 9, 1), ([1] * 8 + [2] * 8, 2), ([], 0)])
def test_clients_of_few_identities_use_them_all(labels: list[int], identities: int) -> None:
    batches = list(identity_batches(labels, 16, 4, generator()))
    assert len(batches) == (2 if labels else 0)
    assert all(len({labels[i] for i in batch.tolist()}) == identities for batch in batches)


def test_batches_depend_on_the_generator_alone() -> None:
    labels = torch.arange(10).repeat_interleave(8).tolist()
    first, again, other = (torch.cat(list(identity_batches(labels, 4, 4, generator(s)))) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
