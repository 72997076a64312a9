"""The local training loop: batches, schedules, gradient corrections. It does not know which paper it runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedlab.clients.corrections import Correction
from fedlab.config import TrainingConfig
from fedlab.context import ClientState, FitContext, Optimiser
from fedlab.method import Batch, Method, Step
from fedlab.runfolder import write_atomic


def schedule(training: TrainingConfig, total_steps: int) -> Callable[[int], float]:
    """Learning-rate factor over the global step: linear warm-up, then constant or cosine to zero."""

    def factor(step: int) -> float:
        if step < training.warmup_steps:
            return (step + 1) / training.warmup_steps
        if training.schedule == "constant":
            return 1.0
        done = (step - training.warmup_steps) / max(1, total_steps - training.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


class LocalTrainer(FitContext):
    """`FitContext` over one client's data in memory.

    Args:
        method: whose loss is minimised.
        data: training columns on the device.
        state: the client's lasting tensors.
        shared: tensors received from the server, on the device.
        client: FedLab client id.
        fingerprint: hash of the client's data.
        cache: folder of results that outlive a run.
        correct: makes the gradient corrections asked for, given the trainable parameters.
    """

    def __init__(
        self,
        *,
        method: Method,
        data: dict[str, Tensor],
        state: ClientState,
        shared: dict[str, Tensor],
        client: int,
        fingerprint: str,
        cache: Path,
        correct: Callable[[Sequence[Tensor]], list[Correction]],
        **work: Any,
    ) -> None:
        super().__init__(scope=("client", client), **work)
        self.method, self.data, self.state, self.shared = method, data, state, shared
        self.examples = _length(data)
        self.fingerprint, self._cache = fingerprint, cache
        self._steps_taken = 0
        self._corrected: Optimiser | None = None
        self._corrections = correct([p for p in self.networks.parameters() if p.requires_grad])

    def train(self, columns: Mapping[str, Tensor] | None = None) -> None:
        optimiser = self.optimiser(self.method.param_groups(self.networks))
        self._corrected = optimiser
        self.networks.train()
        for batch, step in self.batches(columns):
            optimiser.set_step(step.global_step)
            with self.autocast():
                terms = self.method.loss(self.networks, batch, step)
            self.step(terms, optimiser)
            self.method.after_step(self.networks, step)

    def optimiser(self, params: Any, **overrides: Any) -> Optimiser:
        made = super().optimiser(params, **overrides)
        if self.training.schedule != "constant" or self.training.warmup_steps:
            made._factor = schedule(self.training, max(1, self.rounds * self._steps_per_round(_length(self.data))))
        return made

    def _before_update(self, optimiser: Optimiser) -> None:
        if optimiser is self._corrected:
            for correction in self._corrections:
                correction.apply(optimiser.parameters)

    def batches(self, columns: Mapping[str, Tensor] | None = None) -> Iterator[tuple[Batch, Step]]:
        columns = self.data if columns is None else columns
        spec = self.method.batches()
        per_round = self._steps_per_round(_length(columns))
        limit = 1 if self.preflight else self.training.local_steps
        for epoch in range(self.training.local_epochs if limit is None else 2**31):
            generator = self.generator("batches", epoch)
            sampler = spec.sampler or self._shuffled
            taken_before = self._steps_taken
            for indices in sampler(columns, self.training.batch_size, generator):
                batch: Batch = {name: values[indices.to(values.device)] for name, values in columns.items()}
                if spec.collate is not None:
                    batch = spec.collate(batch, generator)
                index = self._steps_taken
                yield (
                    batch,
                    Step(
                        round=self.round,
                        epoch=epoch,
                        index=index,
                        global_step=(self.round - 1) * per_round + index,
                        total_steps=self.rounds * per_round,
                        plan=self.plan,
                        shared=self.shared,
                    ),
                )
                self._steps_taken += 1
                if limit is not None and self._steps_taken >= limit:
                    return
            if self._steps_taken == taken_before:  # fewer samples than the sampler needs for one batch
                return

    def _shuffled(self, columns: Mapping[str, Tensor], batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(_length(columns), generator=generator)
        for indices in order.split(batch_size):
            if len(indices) == batch_size or not self.training.drop_last:
                yield indices

    def _steps_per_round(self, samples: int) -> int:
        if self.training.local_steps is not None:
            return self.training.local_steps
        rounding = math.floor if self.training.drop_last else math.ceil
        return rounding(samples / self.training.batch_size) * self.training.local_epochs

    def cached(self, name: str, key: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        # the machine's kernels are part of a result's bits, so a cache is never shared between torch builds
        identity = {
            "name": name,
            "data": self.fingerprint,
            "seed": self.seed,
            "key": dict(key),
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "device": self.device.type,
        }
        digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()
        path = self._cache / name / f"{digest}.safetensors"
        if path.exists():
            try:
                return safetensors.torch.load_file(path)
            except SafetensorError:
                path.unlink(missing_ok=True)  # torn by a full disk: compute it again
        result = {name: value.detach().cpu().contiguous() for name, value in compute().items()}
        if not self.preflight:
            write_atomic(path, safetensors.torch.save(result))
        return result


def _length(columns: Mapping[str, Tensor]) -> int:
    return len(next(iter(columns.values()), ()))
