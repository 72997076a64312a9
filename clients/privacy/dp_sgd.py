"""Local training with DP-SGD, which keeps single examples private."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedlab.assembly import Components
from fedlab.clients.functional import MethodLoss
from fedlab.clients.trainer import LocalTrainer
from fedlab.errors import FedLabError
from fedlab.method import Batch, NotFiniteError, Optimizer, Step
from fedlab.privacy import DPSGD, WITHIN
from fedlab.privacy.gradients import clipped_sum
from fedlab.privacy.poisson import Calibration, local_steps, sampling_rate, steps_per_epoch
from fedlab.protocol.effort import NO_SAMPLES


class PrivateTrainer(LocalTrainer):
    """DP-SGD (Abadi et al. 2016, arXiv 1607.00133, algorithm 1) with the run's optimizer.

    A step draws each of the n examples independently with probability q and clips the gradient of each to the norm C.
    It adds Gaussian noise of standard deviation σ·C to the sum of these gradients, and divides by the expected number
    of examples, q·n. A step that draws no example adds its noise too. Optimizer, schedule and correction only process
    the noisy gradient further, which costs no additional privacy.

    Args:
        calibration: determines the noise multiplier σ of a client.
        work: the arguments of `LocalTrainer`.
    """

    def __init__(self, *, calibration: Calibration, **work: Any) -> None:
        super().__init__(**work)
        self._calibration = calibration
        self._rate, self._noise, self._expected, self._steps = 0.0, 0.0, 0, 0

    @property
    def spent(self) -> dict[str, float]:
        """The facts of the round that the privacy account needs: sampling rate q, noise multiplier σ, steps taken."""
        return {"rate": self._rate, "noise_multiplier": self._noise, "steps": self._steps}

    def train(self, columns: Mapping[str, Tensor] | None = None) -> None:
        if self._steps:
            raise FedLabError(f"{self._who} trains twice in one round, which no noise was planned for")
        super().train(columns)

    def step(self, terms: Mapping[str, Tensor] | Tensor, optimizer: Optimizer) -> float:
        raise FedLabError(f"{self._who} makes a step of its own in fit(), which DP-SGD cannot make private")

    def batches(self, columns: Mapping[str, Tensor] | None = None) -> Iterator[tuple[Batch, Step]]:
        """Batches drawn by Poisson sampling, as many as planned for the round.

        In preflight there is a single batch of the first examples, at most ``privacy.physical_batch_size``.
        """
        columns = self.data if columns is None else columns
        count = len(next(iter(columns.values()), ()))
        if count == 0:
            self.effort.reason = NO_SAMPLES
            return
        training, planned = self.training, local_steps(self.training, count)
        self._rate, self._expected = sampling_rate(training, count), min(training.batch_size, count)
        self._noise = self._calibration.noise_multiplier(count)
        for index in range(1 if self.preflight else planned):
            if self._left <= 0:
                return
            self._left -= 1
            chosen = self._drawn(count, index)
            batch: Batch = {name: values[chosen.to(values.device)] for name, values in columns.items()}
            batch = self._augmented(batch, 0, index)
            self.effort.batches += 1
            yield batch, self._step(index // steps_per_epoch(training, count), index, planned)

    def _drawn(self, count: int, index: int) -> Tensor:
        if self.preflight:
            return torch.arange(min(count, self._calibration.settings.physical_batch_size))
        draws = torch.rand(count, generator=self.generator("batches", index), dtype=torch.float64)
        return (draws < self._rate).nonzero().squeeze(1)

    def _descend(self, batch: Batch, step: Step, optimizer: Optimizer) -> bool:
        settings, size = self._calibration.settings, len(next(iter(batch.values())))
        parameters = self._moved(optimizer)
        loss = partial(MethodLoss(self.networks, self).of, step=step)
        total = clipped_sum(loss, parameters, batch, settings.clip, settings.physical_batch_size)
        means = {name: float(value) / size for name, value in total.terms.items()}
        if not math.isfinite(float(total.norms.sum()) + sum(means.values())):
            raise NotFiniteError(
                f"an example's loss or gradient is not finite in round {self.round} (loss of the batch: {means}). "
                f"Lower the learning rate (training.lr = {self.training.lr})."
            )
        optimizer.torch.zero_grad(set_to_none=True)
        generator = self.generator("noise", step.index)
        for name, p in parameters.items():
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype) * (self._noise * settings.clip)
            p.grad = (total.gradients[name] + self.place(noise)) / self._expected
        self._before_update(optimizer)
        optimizer.torch.step()
        self._steps += 1
        if size:
            within = float((total.norms <= settings.clip).double().mean())
            for name, value in {**means, WITHIN: within}.items():
                self.log(name, value)
        return True

    def _moved(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """The parameters that the optimizer changes, by name."""
        moved = {id(p) for p in optimizer.parameters if p.requires_grad}
        named: dict[str, Tensor] = {n: p for n, p in self.networks.named_parameters() if id(p) in moved}
        if len(named) < len(moved):
            raise FedLabError(f"{self._who} trains parameters outside its networks, which DP-SGD cannot reach")
        return named

    @property
    def _who(self) -> str:
        return type(self.method).__name__


def calibration_of(components: Components) -> Calibration | None:
    """The noise of local steps, if a run keeps examples private; None otherwise.

    Args:
        components: of the run.
    """
    config, method, privacy = components.config, components.method, components.privacy
    if not isinstance(privacy, DPSGD):
        return None
    rounds = config.federation.rounds
    plans = (method.plan(round, rounds) for round in range(1, rounds + 1))
    stages = Counter(components.stages.training(plan) for plan in plans)
    return Calibration(privacy.settings, stages)
