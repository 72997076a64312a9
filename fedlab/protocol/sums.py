"""Exact weighted sums of client arrays, with the same bits for every order and grouping of the clients.

Floating-point addition is not associative, so the result of plain partial sums would change with the number of workers.
Here every term ``weight · x`` is first rounded to a fixed grid, by adding and subtracting a large constant (the
pre-rounding of Demmel and Nguyen, "Fast Reproducible Floating-Point Summation", 2013). Sums of grid points are exact in
float64 as long as they stay inside the range of the grid, and exact sums do not depend on the order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from fedlab.errors import FedLabError

DEFAULT_RANGE_BITS = 13
GROWTH_BITS = 5
"""Number of powers of two by which a value of the server may grow in one round without leaving its range."""

_BLOCK = 32_768  # float64 elements: the scratch buffer stays in the second-level cache


@dataclass(frozen=True)
class Reduction:
    """How the engine may sum the ``arrays`` of a cohort before they reach the server.

    Args:
        weight: ``examples`` weighs each client by its metric ``num-examples``, ``uniform`` by 1.
        log2_scale: a whole number k with 2^k ≥ the sum of all weights of the cohort; see the function `log2_scale`.
        range_bits: tensors that need another range than the default; see `range_bits_for`.
    """

    weight: Literal["examples", "uniform"] = "examples"
    log2_scale: int = 0
    range_bits: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """The reduction as the text that a message carries."""
        return json.dumps(
            {"weight": self.weight, "log2_scale": self.log2_scale, "range_bits": dict(self.range_bits)}, sort_keys=True
        )

    @classmethod
    def from_json(cls, text: str) -> Reduction:
        """The reverse of `to_json`.

        Raises:
            FedLabError: the text is not that of a reduction.
        """
        try:
            raw = json.loads(text)
            weight, scale, bits = raw["weight"], int(raw["log2_scale"]), raw.get("range_bits", {})
            if weight not in ("examples", "uniform"):
                raise ValueError(f"unknown weight {weight!r}")
            return cls(weight, scale, {str(name): int(value) for name, value in bits.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FedLabError(
                f"a message asks for the reduction {text!r}, which cannot be read: {error!r}. "
                "Build it with Reduction(...).to_json()"
            ) from error

    def start(self) -> ExactSum:
        """An empty sum of this kind."""
        return ExactSum(self.log2_scale, self.range_bits)


def log2_scale(total_weight: float) -> int:
    """The smallest k ≥ 0 with 2^k ≥ `total_weight`."""
    return max(0, math.ceil(total_weight) - 1).bit_length()


def range_bits_for(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Range bits of the tensors whose present values leave too little room to grow in the default range.

    Args:
        arrays: the server's current values, any shapes; integer arrays are skipped.

    Raises:
        FedLabError: a value is NaN or infinite.
    """
    needed = {}
    for name, values in arrays.items():
        if values.dtype.kind != "f" or values.size == 0:
            continue
        peak = peak_of(values)
        if not math.isfinite(peak):
            raise FedLabError(f"tensor {name!r} of the server holds {peak}: the run diverged before this round")
        bits = _bits_for(peak)
        if bits > DEFAULT_RANGE_BITS:
            needed[name] = bits
    return needed


def range_limit(values: np.ndarray) -> float:
    """The magnitude below which clients' values of a tensor must stay in the range that `range_bits_for` gives it.

    Args:
        values: the server's current values, any shape, finite.
    """
    floats = values.dtype.kind == "f" and values.size > 0
    return _limit_of(max(DEFAULT_RANGE_BITS, _bits_for(peak_of(values))) if floats else DEFAULT_RANGE_BITS)


def _bits_for(peak: float) -> int:
    return math.frexp(peak)[1] + GROWTH_BITS + 2


def _limit_of(bits: int) -> float:
    return 2.0 ** (bits - 2)


class ExactSum:
    """Weighted sums of named float arrays and the total weight of each name.

    With range bits R and scale 2^k, values must stay below 2^(R-2) in magnitude and weights must be whole numbers
    whose sum is at most 2^k. Then |Σ w·x| < 2^(R-2+k), each term is rounded to the grid 2^(R+k-53), and every
    partial sum is exact. By default R = 13: values up to 2048; the rounding of one client's term, relative to the
    full weight 2^k, is at most 2^-41.

    Args:
        log2_scale: k.
        range_bits: R by name, for the tensors that need another value than the default.
    """

    def __init__(self, log2_scale: int = 0, range_bits: Mapping[str, int] | None = None) -> None:
        self._scale = log2_scale
        self._range_bits = dict(range_bits or {})
        self._sums: dict[str, np.ndarray] = {}
        self._weights: dict[str, float] = {}
        self._dtypes: dict[str, np.dtype] = {}

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Add ``weight · arrays``. Names that a client does not hold may be missing.

        Args:
            arrays: float arrays; the shape and dtype of a name are the same for all clients.
            weight: a whole number ≥ 0, such as a count of samples.

        Raises:
            FedLabError: a value is NaN, infinite or out of range, an array is not of floats or differs in shape,
                or the weights exceed the scale. In that case nothing has been added.
        """
        if not (weight >= 0 and float(weight).is_integer()):
            raise FedLabError(f"a client's weight is {weight}: expected a whole number ≥ 0, such as a count of samples")
        for name, values in arrays.items():
            self._check(name, values)
            self._check_weight(name, weight)
        # One pass over memory both checks and adds. If a value turns out to be bad, what was added before it is
        # subtracted again, which is exact.
        new, scratch = [name for name in arrays if name not in self._sums], np.empty(_BLOCK)
        for added, block in enumerate(self._blocks(arrays)):
            if not peak_of(block.values) < block.limit:  # negated, so that NaN is refused too
                for earlier in islice(self._blocks(arrays), added):
                    np.subtract(earlier.total, earlier.term(weight, scratch), out=earlier.total)
                for name in new:
                    for held in (self._sums, self._weights, self._dtypes):
                        held.pop(name, None)
                raise self._out_of_range(block.name, arrays[block.name])
            np.add(block.total, block.term(weight, scratch), out=block.total)
        for name in arrays:
            self._weights[name] += float(weight)

    def merge(self, other: ExactSum) -> None:
        """Add another partial sum of the same cohort.

        Raises:
            FedLabError: the two differ in scale, ranges, shapes or dtypes, or together exceed the scale.
        """
        if (self._scale, self._range_bits) != (other._scale, other._range_bits):
            raise FedLabError("partial sums of different scale or range cannot be merged: use one reduction a round")
        for name, values in other._sums.items():
            self._check_same(name, values.shape, other._dtypes[name])
            self._check_weight(name, other._weights[name])
        for name, values in other._sums.items():
            if name not in self._sums:
                self._sums[name], self._dtypes[name] = _shared(values), other._dtypes[name]
                self._weights[name] = other._weights[name]
                continue
            mine = self._sums[name]
            self._sums[name] = np.add(mine, values, out=mine if mine.flags.writeable else np.empty_like(mine))
            self._weights[name] += other._weights[name]

    def mean(self) -> dict[str, np.ndarray]:
        """Weighted means in the dtype that the clients sent. Names whose total weight is 0 are left out."""
        return {
            # computed in float64 and rounded once, without a temporary float64 array
            name: np.divide(total, self._weights[name], np.empty(total.shape, self._dtypes[name]), casting="unsafe")
            for name, total in self._sums.items()
            if self._weights[name] > 0
        }

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, str]]:
        """The sums Σ w·x (float64), the total weights Σ w and the clients' dtypes, by name."""
        return dict(self._sums), dict(self._weights), {name: dtype.name for name, dtype in self._dtypes.items()}

    @classmethod
    def from_state(
        cls,
        sums: Mapping[str, np.ndarray],
        weights: Mapping[str, float],
        dtypes: Mapping[str, str],
        reduction: Reduction,
    ) -> ExactSum:
        """The sum from what `state` returned and from the reduction under which it was formed."""
        total = reduction.start()
        total._sums = {name: _shared(values) for name, values in sums.items()}
        total._weights = dict(weights)
        total._dtypes = {name: np.dtype(dtypes[name]) for name in sums}
        return total

    def _check(self, name: str, values: np.ndarray) -> None:
        if values.dtype.kind != "f":
            raise FedLabError(
                f"tensor {name!r} has dtype {values.dtype}: only floats can be averaged; "
                "exchange integer buffers as copies or keep them local"
            )
        self._check_same(name, values.shape, values.dtype)

    def _out_of_range(self, name: str, values: np.ndarray) -> FedLabError:
        return FedLabError(
            f"tensor {name!r} holds the value {peak_of(values):g} at its peak, expected finite values below "
            f"{self._limit(name):g}; the client's training has most likely diverged: lower training.lr or set "
            "training.clip_norm"
        )

    def _check_same(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if name in self._sums and (self._sums[name].shape, self._dtypes[name]) != (shape, dtype):
            raise FedLabError(
                f"tensor {name!r} comes as {dtype}{list(shape)} from one client and as "
                f"{self._dtypes[name]}{list(self._sums[name].shape)} from another: they cannot be averaged"
            )

    def _check_weight(self, name: str, weight: float) -> None:
        if not self._weights.get(name, 0.0) + weight <= 2.0**self._scale:
            raise FedLabError(
                f"the clients' weights for tensor {name!r} add up to more than 2^{self._scale}: "
                "log2_scale must cover the whole cohort"
            )

    def _blocks(self, arrays: Mapping[str, np.ndarray]) -> Iterator[_Block]:
        """Split a client's values into blocks that fit into the processor's cache, each with its part of the sum."""
        for name, values in arrays.items():
            total, flat = self._entry(name, values.shape, values.dtype), values.reshape(-1)
            limit, constant = self._limit(name), self._grid_constant(name)
            for start in range(0, len(flat), _BLOCK):
                piece = slice(start, start + _BLOCK)
                yield _Block(name, flat[piece], total[piece], limit, constant)

    def _entry(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if name not in self._sums:
            self._sums[name], self._weights[name], self._dtypes[name] = np.zeros(shape), 0.0, dtype
        elif not self._sums[name].flags.writeable:
            self._sums[name] = self._sums[name].copy()
        return self._sums[name].reshape(-1)

    def _bits(self, name: str) -> int:
        return self._range_bits.get(name, DEFAULT_RANGE_BITS)

    def _limit(self, name: str) -> float:
        return _limit_of(self._bits(name))

    def _grid_constant(self, name: str) -> float:
        # 1.5·2^(e-1) plus or minus anything below 2^(e-2) stays in [2^(e-1), 2^e), where float64 has one spacing
        return 1.5 * 2.0 ** (self._bits(name) + self._scale - 1)


class _Block(NamedTuple):
    name: str
    values: np.ndarray
    total: np.ndarray
    limit: float
    constant: float

    def term(self, weight: float, scratch: np.ndarray) -> np.ndarray:
        """weight · values, rounded to the grid."""
        term = scratch[: len(self.values)]
        term[:] = self.values
        term *= weight
        term += self.constant
        term -= self.constant
        return term


def _shared(values: np.ndarray) -> np.ndarray:
    """The array itself if it is read-only, such as one in Ray's object store; otherwise a copy of it."""
    return values.copy() if values.flags.writeable else values


def peak_of(values: np.ndarray) -> float:
    """The largest magnitude in an array that is not empty; NaN if a value is NaN, because min and max propagate it."""
    return max(float(values.max()), -float(values.min()))
