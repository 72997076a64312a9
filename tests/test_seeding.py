from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlab.seeding import derive_seed, global_generators, numpy_generator, torch_generator

PURPOSES = st.lists(st.text(max_size=3) | st.integers(0, 5), max_size=3)


def test_a_seed_is_the_same_on_every_machine() -> None:
    assert [derive_seed(0), derive_seed(7, "init")] == [4246866556266386882, 6814445399046354404]


@given(st.integers(0, 2**63), PURPOSES)
def test_a_seed_fits_every_generator(seed: int, purpose: list[str | int]) -> None:
    derived = derive_seed(seed, *purpose)
    assert 0 <= derived < 2**63
    torch_generator(seed, *purpose)


@given(PURPOSES, PURPOSES)
def test_different_purposes_draw_differently(one: list[str | int], other: list[str | int]) -> None:
    assert (derive_seed(0, *one) == derive_seed(0, *other)) == (one == other)


def test_a_number_and_its_text_are_different_purposes() -> None:
    assert derive_seed(0, 1) != derive_seed(0, "1")
    assert derive_seed(1) != derive_seed(0, 1)


def test_numpy_integers_count_as_integers() -> None:
    assert derive_seed(3, "client", int(np.int64(5))) == derive_seed(3, "client", np.int64(5))  # type: ignore[arg-type]  # NumPy integers are accepted too
    assert derive_seed(np.int32(3), "client") == derive_seed(3, "client")  # type: ignore[arg-type]  # NumPy integers are accepted too


def test_no_global_generator_is_touched() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # the legacy state is a tuple
    torch.rand(3, generator=torch_generator(0, "x"))
    numpy_generator(0, "x").random(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index]  # the legacy state is a tuple


def test_global_generators_are_a_function_of_the_purpose_and_given_back() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def inside(*purpose: str | int) -> tuple[float, float, float]:
        with global_generators(3, *purpose):
            return draw()

    def reset() -> None:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)

    reset()
    outside = draw()
    reset()
    one = inside("client", 1)
    assert draw() == outside
    assert inside("client", 1) == one
    assert all(a != b for a, b in zip(inside("client", 2), one, strict=True))
