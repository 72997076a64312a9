"""Known answers and laws of the compression stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedlab.config import Component
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.protocol.compression import VALUES, Chain, chain_from, make_chain

VECTORS = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40).map(lambda v: np.array(v, np.float32))


def chain(*stages: Any) -> Chain:
    return make_chain([Component(**({"name": stage} if isinstance(stage, str) else stage)) for stage in stages])


def topk(fraction: float) -> dict[str, Any]:
    return {"name": "topk", "fraction": fraction}


def quantize(bits: int) -> dict[str, Any]:
    return {"name": "quantize", "bits": bits}


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def trip(by: Chain, values: np.ndarray, seed: int = 0) -> np.ndarray:
    return by.decode(by.encode(values, draws(seed)), values.size)


def size(by: Chain, count: int) -> int:
    return sum(part.nbytes for part in by.encode(np.ones(count, np.float32), draws()).values())


def test_top_k_keeps_the_largest_by_magnitude_and_of_equals_the_first() -> None:
    values = np.array([0.5, -3, 2, -2, 0, 1, 2, -2], np.float32)
    parts = chain(topk(3 / 8)).encode(values, draws())
    assert parts["0.indices"].tolist() == [1, 2, 3]
    assert parts["0.indices"].dtype == np.int32
    assert parts[VALUES].tolist() == [-3, 2, -2]
    assert trip(chain(topk(3 / 8)), values).tolist() == [0, -3, 2, -2, 0, 0, 0, 0]


@given(VECTORS, st.floats(0.01, 0.99))
def test_what_top_k_leaves_out_is_never_larger_than_what_it_sends(values: np.ndarray, fraction: float) -> None:
    by = chain(topk(fraction))
    kept = by.encode(values, draws())["0.indices"]
    assert len(set(kept.tolist())) == len(kept) == by.steps[0].length(values.size)
    rest = np.delete(np.abs(values), kept)
    assert not rest.size or rest.max() <= np.abs(values[kept]).min()


@given(VECTORS, st.sampled_from([4, 8]), st.integers(0, 100))
@example(np.array([1e-45], np.float32), 4, 0)
@example(np.array([1e-45, 1.4e-44], np.float32), 4, 0)
def test_quantization_errs_by_less_than_a_step(values: np.ndarray, bits: int, seed: int) -> None:
    step = np.abs(values).max() / (2 ** (bits - 1) - 1)
    error = np.abs(trip(chain(quantize(bits)), values, seed).astype(np.float64) - values)
    assert error.max() <= step * (1 + 1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_is_unbiased(bits: int) -> None:
    values = draws(1).normal(size=200).astype(np.float32)
    by, generator, repeats = chain(quantize(bits)), draws(2), 4000
    mean = np.mean([by.decode(by.encode(values, generator), 200) for _ in range(repeats)], axis=0, dtype=np.float64)
    step = np.abs(values).max() / (2 ** (bits - 1) - 1)
    # a rounding's standard deviation is at most half a step; 5 standard errors over 200 values
    assert np.abs(mean - values).max() < 5 * 0.5 * step / np.sqrt(repeats)
    # rounding to the nearest would be off by up to half a step
    nearest = np.rint(values / step) * step
    assert np.abs(nearest - values).max() > 0.4 * step


def test_quantization_repeats_with_its_draws_and_not_with_others() -> None:
    values = draws(3).normal(size=50).astype(np.float32)
    by = chain(quantize(4))
    assert np.array_equal(trip(by, values, 7), trip(by, values, 7))
    assert not np.array_equal(trip(by, values, 7), trip(by, values, 8))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [0.0, 1e-45, -1.0])
def test_constant_and_tiny_vectors_survive_quantization(bits: int, value: float) -> None:
    values = np.full(3, value, np.float32)
    assert np.allclose(trip(chain(quantize(bits)), values), values, atol=1e-44)


def test_half_precision_rounds_to_the_nearest() -> None:
    values = np.array([1, 1 / 3, -65504, 2**-30], np.float32)
    assert trip(chain("fp16"), values).tolist() == values.astype(np.float16).astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (("fp16",), 2 * 101),
        ((quantize(8),), 101 + 4),
        ((quantize(4),), 51 + 4),
        ((topk(0.1),), 10 * (4 + 4)),
        ((topk(0.1), "fp16"), 10 * (4 + 2)),
        ((topk(0.1), quantize(8)), 10 * (4 + 1) + 4),
        ((topk(0.1), quantize(4)), 10 * 4 + 5 + 4),
        ((topk(0.001),), 8),
    ],
)
def test_wire_sizes(stages: tuple[Any, ...], expected: int) -> None:
    assert size(chain(*stages), 101) == expected


@given(VECTORS, st.sampled_from([(topk(0.3), quantize(4)), (topk(0.3), "fp16"), (quantize(8),), (topk(0.5),)]))
def test_a_chain_made_from_its_text_decodes_the_same(values: np.ndarray, stages: tuple[Any, ...]) -> None:
    by = chain(*stages)
    parts = by.encode(values, draws())
    assert np.array_equal(by.decode(parts, values.size), chain_from(by.text).decode(parts, values.size))


def test_sent_and_residual_together_are_the_sum_of_all_updates() -> None:
    by = chain(topk(0.1), quantize(8))
    updates = draws(4).normal(size=(30, 100)).astype(np.float32)
    sent, residual = np.zeros(100), np.zeros(100, np.float32)
    for round, update in enumerate(updates):
        wanted = update + residual
        decoded = trip(by, wanted, round)
        residual = wanted - decoded
        sent += decoded
    np.testing.assert_allclose(sent + residual, updates.sum(axis=0, dtype=np.float64), atol=1e-5)


def test_a_stage_that_changes_nothing_is_left_out() -> None:
    assert not chain()
    assert not chain(topk(1.0))
    assert not chain(topk(1)).feedback
    assert len(chain(topk(1), "fp16").steps) == 1
    assert chain(topk(0.5)).feedback
    assert not chain({**topk(0.5), "error_feedback": False}).feedback


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (("fp16", quantize(8)), "exchange.compression.1.name.*no such step after fp16"),
        ((quantize(8), topk(0.5)), "exchange.compression.1.name.*no such step after quantize"),
        ((topk(0.5), topk(0.5)), "exchange.compression.1.name.*no such step after topk"),
        (("topq",), "exchange.compression.0.name.*topk"),
        ((topk(0),), "exchange.compression.0.fraction"),
        ((quantize(3),), "exchange.compression.0.bits"),
    ],
)
def test_chains_that_make_no_sense_are_refused(stages: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ConfigError, ConfigErrors), match=f"(?s){message}"):
        chain(*stages)
