"""Exact sums: known answers, invariance to order and grouping, range checks."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab.errors import FedLabError
from fedlab.protocol.sums import DEFAULT_RANGE_BITS, ExactSum, Reduction, log2_scale, range_bits_for
from fedlab.seeding import numpy_generator


def bits(total: ExactSum) -> dict[str, bytes]:
    return {name: values.tobytes() for name, values in total.state()[0].items()}


def cohort(clients: int, samples: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_generator(0, "cohort")
    weights = np.maximum(1, rng.multinomial(samples, rng.dirichlet(np.ones(clients))))
    values = rng.standard_normal((clients, size)) * 10.0 ** rng.uniform(-6, 3, (clients, 1))
    return np.clip(values, -1e3, 1e3).astype(np.float32), weights


def test_ten_thousand_clients_give_the_same_bits_in_any_order_and_grouping() -> None:
    values, weights = cohort(clients=10_000, samples=10_000_000, size=64)
    scale = log2_scale(int(weights.sum()))
    one = ExactSum(scale)
    for row, weight in zip(values, weights, strict=True):
        one.add({"w": row}, int(weight))

    for trial in range(3):
        rng = numpy_generator(trial, "grouping")
        order = rng.permutation(len(values))
        parts = np.split(order, np.sort(rng.choice(len(order), size=37, replace=False)))
        merged = ExactSum(scale)
        for part in [parts[i] for i in rng.permutation(len(parts))]:
            group = ExactSum(scale)
            for client in part:
                group.add({"w": values[client]}, int(weights[client]))
            merged.merge(pickle.loads(pickle.dumps(group)))
        assert bits(merged) == bits(one)
        assert merged.state()[1] == {"w": float(weights.sum())}


def test_the_mean_is_as_accurate_as_its_dtype() -> None:
    values, weights = cohort(clients=10_000, samples=10_000_000, size=16)
    total = ExactSum(log2_scale(int(weights.sum())))
    for row, weight in zip(values, weights, strict=True):
        total.add({"w": row.astype(np.float64)}, int(weight))
    truth = [
        math.fsum(float(x) * int(w) for x, w in zip(values[:, j], weights, strict=True)) / int(weights.sum())
        for j in range(values.shape[1])
    ]
    # half a grid step per client relative to the full weight, which is at most twice the total
    assert np.abs(total.mean()["w"] - truth).max() <= 10_000 * 2.0 ** (DEFAULT_RANGE_BITS - 53)
    single = ExactSum(log2_scale(int(weights.sum())))
    for row, weight in zip(values, weights, strict=True):
        single.add({"w": row}, int(weight))
    mean = single.mean()["w"]
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, truth, rtol=2e-7, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-2047, 2047, width=32), st.integers(0, 1000)),
        min_size=1,
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_ties_of_the_rounding_do_not_depend_on_the_order(terms: list[tuple[float, int]], random: object) -> None:
    scale = log2_scale(max(1, sum(weight for _, weight in terms)))

    def total(sequence: list[tuple[float, int]]) -> dict[str, bytes]:
        result = ExactSum(scale)
        for value, weight in sequence:
            result.add({"x": np.array(value, dtype=np.float64) * (1 + 2.0**-41)}, weight)
        return bits(result)

    shuffled = list(terms)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    assert total(shuffled) == total(terms)


def test_small_known_answer_with_a_name_that_one_client_lacks() -> None:
    total = ExactSum(log2_scale(4))
    total.add({"a": np.float32([1, 2]), "b": np.float16([[8]])}, 3)
    total.add({"a": np.float32([5, 6])}, 1)
    mean = total.mean()
    np.testing.assert_array_equal(mean["a"], np.float32([2, 3]))
    np.testing.assert_array_equal(mean["b"], np.float16([[8]]))
    assert mean["b"].dtype == np.float16
    assert total.state()[1] == {"a": 4.0, "b": 3.0}
    restored = ExactSum.from_state(*total.state(), Reduction("examples", 0))
    assert {name: values.tobytes() for name, values in restored.mean().items()} == {
        name: values.tobytes() for name, values in mean.items()
    }


def test_shapes_that_are_easily_lost() -> None:
    total = ExactSum(1)
    strided = np.arange(12, dtype=np.float32).reshape(3, 4).T
    total.add({"scalar": np.float32(3).reshape(()), "empty": np.zeros((0, 2), np.float32), "strided": strided}, 1)
    mean = total.mean()
    assert isinstance(mean["scalar"], np.ndarray)
    assert mean["scalar"].shape == ()
    assert mean["empty"].shape == (0, 2)
    np.testing.assert_array_equal(mean["strided"], strided)


def test_names_without_weight_have_no_mean() -> None:
    total = ExactSum()
    total.add({"a": np.ones(2, np.float32)}, 0)
    assert total.mean() == {}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2048.0, -1e30])
def test_a_value_out_of_range_is_refused_by_name_and_changes_nothing(bad: float) -> None:
    total = ExactSum(3)
    total.add({"first": np.ones(3, np.float32), "head.weight": np.ones(3, np.float32)}, 1)
    before = bits(total)
    with pytest.raises(FedLabError, match=r"'head\.weight' holds the value .*below 2048.*training\.lr") as caught:
        total.add({"first": np.ones(3, np.float32), "head.weight": np.float32([0, bad, 0])}, 1)
    assert f"{abs(bad):g}" in str(caught.value)
    assert bits(total) == before
    assert total.state()[1] == {"first": 1.0, "head.weight": 1.0}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), place=st.integers(0, 3 * 32_768), weight=st.integers(0, 100))
def test_a_client_that_turns_out_bad_after_a_part_was_added_leaves_no_trace(seed: int, place: int, weight: int) -> None:
    """Its tensors are larger than the pieces they are added in, and one of them is nobody's yet."""
    rng = numpy_generator(seed, "bad")
    good = {"a": rng.normal(size=70_000).astype(np.float32), "b": rng.normal(size=100_000).astype(np.float32)}
    total = ExactSum(8)
    total.add({"a": good["a"]}, 7)
    before = total.state()[1:], bits(total)
    bad = {"a": good["b"][:70_000], "b": good["b"].copy()}
    bad["b"][place] = np.nan
    with pytest.raises(FedLabError, match="'b' holds the value nan"):
        total.add(bad, weight)
    assert (total.state()[1:], bits(total)) == before


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_sum_made_of_arrays_of_others_never_writes_to_them(shape: tuple[int, ...]) -> None:
    """As arrays of the object store are, and those in replies."""
    ones = {"w": np.ones(shape, np.float32)}
    part = ExactSum(4)
    part.add(ones, 2)
    sums, weights, dtypes = part.state()
    sums["w"] = sums["w"].view()
    sums["w"].flags.writeable = False
    total = ExactSum.from_state(sums, weights, dtypes, Reduction(log2_scale=4))
    total.merge(part)
    total.add(ones, 1)
    other = ExactSum(4)
    other.merge(part)
    other.add(ones, 1)
    assert np.all(total.state()[0]["w"] == 5)
    assert np.all(other.state()[0]["w"] == 3)
    assert np.all(part.state()[0]["w"] == 2)


def test_a_wider_range_is_given_to_tensors_with_large_server_values() -> None:
    server = {
        "weight": np.float32([0.5, -63.9]),
        "bn.running_var": np.float32([1000.0]),
        "bn.num_batches_tracked": np.array(10**6),
    }
    wider = range_bits_for(server)
    assert wider == {"bn.running_var": 10 + 5 + 2}
    total = ExactSum(0, wider)
    total.add({"bn.running_var": np.float32([32_000.0])}, 1)
    assert total.mean()["bn.running_var"] == np.float32(32_000)
    with pytest.raises(FedLabError, match="running_var"):
        ExactSum(0, wider).add({"bn.running_var": np.float32([32_768.0])}, 1)
    with pytest.raises(FedLabError, match="'w' of the server holds nan"):
        range_bits_for({"w": np.float32([np.nan])})


def test_what_cannot_be_averaged_is_refused() -> None:
    total = ExactSum(1)
    with pytest.raises(FedLabError, match="'count' has dtype int64"):
        total.add({"count": np.array([1])}, 1)
    total.add({"w": np.ones(2, np.float32)}, 1)
    with pytest.raises(FedLabError, match=r"'w' comes as float32\[3\].*float32\[2\]"):
        total.add({"w": np.ones(3, np.float32)}, 1)
    with pytest.raises(FedLabError, match=r"more than 2\^1"):
        total.add({"w": np.ones(2, np.float32)}, 2)
    with pytest.raises(FedLabError, match="whole number"):
        total.add({"w": np.ones(2, np.float32)}, 0.5)
    with pytest.raises(FedLabError, match="whole number"):
        total.add({"w": np.ones(2, np.float32)}, math.nan)
    with pytest.raises(FedLabError, match="different scale"):
        total.merge(ExactSum(2))


def test_log2_scale_is_the_smallest_that_covers() -> None:
    assert [log2_scale(n) for n in (0, 1, 2, 3, 4, 5, 10**7)] == [0, 0, 1, 2, 2, 3, 24]


def test_the_reduction_travels_as_text() -> None:
    reduction = Reduction("uniform", 5, {"bn.running_var": 17})
    assert Reduction.from_json(reduction.to_json()) == reduction
    for text in ("no json", "[]", '{"weight": "votes", "log2_scale": 1}', '{"weight": "uniform"}'):
        with pytest.raises(FedLabError, match="cannot be read"):
            Reduction.from_json(text)
