"""Compression of updates: the steps that make an array smaller, and how each of them is undone.

A step turns a vector into values, which are fewer or coarser numbers, and into side arrays, which are needed to undo
the step. The next step works on the values. A client sends the values of the last step and the side arrays of all
steps.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedlab.config import Component, Fraction, Section
from fedlab.errors import ConfigError, FedLabError
from fedlab.registry import Registry

KEY = "exchange.compression"
VALUES = "values"
COMPRESSORS = Registry(
    "compressor",
    {
        "topk": "fedlab.protocol.compression:TopK",
        "quantize": "fedlab.protocol.compression:Quantize",
        "fp16": "fedlab.protocol.compression:Half",
    },
    "fedlab.compressors",
)

Side = dict[str, np.ndarray]


class Compressor(ABC):
    """Base of all steps of compression.

    Args:
        settings: an object of the class's `Settings`.
    """

    class Settings(Section):
        """A step without settings."""

    last: ClassVar[bool] = True
    """Whether no other step can follow, because the values are not float32 numbers."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @property
    def identity(self) -> bool:
        """Whether the step changes nothing with these settings. It is then left out."""
        return False

    @property
    def feedback(self) -> bool:
        """Whether a client keeps what the step loses in a round and adds it to its next update (error feedback)."""
        return False

    def length(self, size: int) -> int:
        """Number of values that the step encodes when it is given `size` numbers."""
        return size

    @abstractmethod
    def encode(self, values: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, Side]:
        """Encode a vector.

        Args:
            values: a float32 vector that is not empty.
            draws: the generator of the step's random numbers.

        Returns:
            The step's values, a vector, and its side arrays by name.
        """

    @abstractmethod
    def decode(self, values: np.ndarray, side: Side, size: int) -> np.ndarray:
        """Turn what `encode` returned back into a float32 vector of `size` numbers."""


class TopK(Compressor):
    """The k entries of largest magnitude with their int32 positions; error feedback keeps the rest for later rounds."""

    class Settings(Section):
        """Settings of top-k."""

        fraction: Fraction = Field(
            default=0.01, description="share k/n of a tensor's n values that are sent; at least one value is sent"
        )
        error_feedback: bool = Field(
            default=True, description="add the values that were not sent to the client's next update"
        )

    last = False

    @property
    def identity(self) -> bool:
        return bool(self.settings.fraction == 1)

    @property
    def feedback(self) -> bool:
        return bool(self.settings.error_feedback)

    def length(self, size: int) -> int:
        return max(1, int(self.settings.fraction * size + 1e-9))

    def encode(self, values: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, Side]:
        count, size = np.abs(values), values.size
        k = self.length(size)
        threshold = np.partition(count, size - k)[size - k]
        above, ties = np.flatnonzero(count > threshold), np.flatnonzero(count == threshold)
        # Of equal magnitudes the first ones are sent, because np.partition's choice differs between processors.
        chosen = np.sort(np.concatenate([above, ties[: k - above.size]]))
        return values[chosen], {"indices": chosen.astype(np.int32)}

    def decode(self, values: np.ndarray, side: Side, size: int) -> np.ndarray:
        places = side["indices"].astype(np.int64)
        if places.size and not (places[0] >= 0 and places[-1] < size and (np.diff(places) > 0).all()):
            raise FedLabError(f"positions of values are not ascending numbers from 0 to {size - 1}")
        full = np.zeros(size, np.float32)
        full[side["indices"]] = values
        return full


class Quantize(Compressor):
    """Unbiased stochastic rounding to whole multiples of one step per tensor, max|v| / (2^(bits-1) - 1)."""

    class Settings(Section):
        """Settings of quantization."""

        bits: Literal[4, 8] = Field(default=8, description="bits of each value; two values of 4 bits share a byte")

    @property
    def _levels(self) -> int:
        return int(2 ** (self.settings.bits - 1) - 1)

    def encode(self, values: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, Side]:
        peak = np.abs(values).max()
        scale = np.float32(peak / self._levels)
        if scale < np.finfo(np.float32).tiny and scale * self._levels < peak:
            scale = np.nextafter(scale, np.float32(1))  # a subnormal scale may round so far down that the peak is cut
        exact = values / np.float64(scale) if scale > 0 else np.zeros(values.size)
        levels = np.floor(exact + draws.random(values.size))
        codes: np.ndarray = (np.clip(levels, -self._levels, self._levels) + self._levels).astype(np.uint8)
        if self.settings.bits == 4:
            codes = np.append(codes, np.zeros(codes.size % 2, np.uint8))
            codes = codes[::2] | codes[1::2] << 4
        return codes, {"scale": np.array([scale], np.float32)}

    def decode(self, values: np.ndarray, side: Side, size: int) -> np.ndarray:
        if self.settings.bits == 4:
            values = np.stack([values & 15, values >> 4], axis=1).reshape(-1)[:size]
        return (values.astype(np.float32) - np.float32(self._levels)) * side["scale"]


class Half(Compressor):
    """Values as 16-bit floats, rounded to the nearest."""

    def encode(self, values: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, Side]:
        with np.errstate(over="ignore"):  # a value that is too large becomes infinite, which averaging refuses
            return values.astype(np.float16), {}

    def decode(self, values: np.ndarray, side: Side, size: int) -> np.ndarray:
        return values.astype(np.float32)


@dataclass(frozen=True)
class Chain:
    """Steps of compression that are applied one after the other. Steps that change nothing have been left out.

    Args:
        steps: the steps, in the order of encoding.
        text: JSON from which `chain_from` makes the same chain.
    """

    steps: tuple[Compressor, ...]
    text: str

    def __bool__(self) -> bool:
        return bool(self.steps)

    @property
    def feedback(self) -> bool:
        """Whether a client keeps what one of the steps loses in a round and adds it to its next update."""
        return any(step.feedback for step in self.steps)

    def encode(self, values: np.ndarray, draws: np.random.Generator) -> Side:
        """Encode a float32 vector that is not empty. `decode` turns the arrays back into a vector of the same size."""
        parts: Side = {}
        for place, step in enumerate(self.steps):
            values, side = step.encode(values, draws)
            parts |= {f"{place}.{name}": array for name, array in side.items()}
        return {**parts, VALUES: values}

    def nbytes(self, size: int) -> int:
        """Number of bytes that `encode` makes of `size` zeros. With FedLab's own steps, all values give this number."""
        return _nbytes(self, size)

    def check(self, name: str, parts: Side, size: int) -> None:
        """Refuse arrays that `encode` does not make of `size` numbers, so that NumPy repeats none of them to fit.

        Args:
            name: of the tensor, for the error message.
            parts: as they came from a client.
            size: of the tensor.

        Raises:
            FedLabError: an array is missing or unknown, or has another type. Shapes are compared only if all steps are
                FedLab's own, whose arrays have the same shapes whatever the values.
        """
        own = all(type(step).__module__ == __name__ for step in self.steps)
        wanted, found = (
            {part: (dtype, shape if own else ()) for part, (dtype, shape) in layout.items()}
            for layout in (_layout(self, size), {part: (array.dtype, array.shape) for part, array in parts.items()})
        )
        for part in sorted(wanted.keys() | found.keys()):
            if wanted.get(part) != found.get(part):
                raise FedLabError(
                    f"the compressed update of {name!r} has not the form of the chain in its part {part!r}"
                )

    def decode(self, parts: Side, size: int) -> np.ndarray:
        """Turn what `encode` returned back into a float32 vector of `size` numbers."""
        sizes = [size]
        for step in self.steps:
            sizes.append(step.length(sizes[-1]))
        values = parts[VALUES]
        for place in reversed(range(len(self.steps))):
            prefix = f"{place}."
            side = {name.removeprefix(prefix): array for name, array in parts.items() if name.startswith(prefix)}
            values = self.steps[place].decode(values, side, sizes[place])
        return values


def _nbytes(chain: Chain, size: int) -> int:
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in _layout(chain, size).values())


@lru_cache(maxsize=4096)
def _layout(chain: Chain, size: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Type and shape of each array that a chain makes of `size` zeros, by part."""
    parts = chain.encode(np.zeros(size, np.float32), np.random.default_rng(0))
    return {part: (array.dtype, array.shape) for part, array in parts.items()}


def make_chain(components: Sequence[Component]) -> Chain:
    """The chain that a configuration asks for, with its settings validated.

    Raises:
        ConfigError, ConfigErrors: a step or a setting is unknown, or a step cannot follow the one before it.
    """
    steps: list[Compressor] = []
    for place, component in enumerate(components):
        key = f"{KEY}.{place}"
        found, settings = COMPRESSORS.configured(component, key)
        if not issubclass(found, Compressor):
            raise ConfigError(f"{key}.name", component.name, "a subclass of fedlab.protocol.compression.Compressor")
        if place and (steps[-1].last or not found.last):
            raise ConfigError(
                f"{key}.name",
                component.name,
                f"no such step after {components[place - 1].name}",
                "choose at most one way to select entries, then at most one way to code values",
            )
        steps.append(found(settings))
    text = json.dumps([component.model_dump(mode="json") for component in components], sort_keys=True)
    return Chain(tuple(step for step in steps if not step.identity), text)


@lru_cache(maxsize=8)
def chain_from(text: str) -> Chain:
    """The chain whose `Chain.text` is `text`."""
    return make_chain([Component.model_validate(raw) for raw in json.loads(text)])
