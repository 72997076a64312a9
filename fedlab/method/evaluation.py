"""The context of the evaluation of one client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fedlab.method.context import WorkContext
from fedlab.method.types import Batch


class EvaluationContext(WorkContext):
    """The evaluation of one client.

    Args:
        data: the client's test columns, as tensors on the device.
        train_data: returns the client's training columns, for probes and nearest neighbors.
        state: the tensors that the client keeps from round to round; changes made here are not saved.
        batch_size: samples in a batch of evaluation.
        client: the client's id, from 0.
        validation: returns the columns of the training samples that the client holds back.
        **work: all other arguments of `WorkContext`, except ``scope``.
    """

    def __init__(
        self,
        *,
        data: Mapping[str, Tensor],
        train_data: Callable[[], Mapping[str, Tensor]],
        state: Mapping[str, Tensor],
        batch_size: int,
        client: int,
        validation: Callable[[], Mapping[str, Tensor]] = dict,
        **work: Any,
    ) -> None:
        super().__init__(scope=("client", client), **work)
        self.data, self.train_data, self.state, self.batch_size = data, train_data, state, batch_size
        self.client = client
        self._validation = validation

    @property
    def validation(self) -> Mapping[str, Tensor]:
        """The columns of the training samples that the client holds back, for choices such as a threshold.

        They have no samples unless ``data.validation`` asks for them.
        """
        return self._validation()

    def batches(self) -> Iterator[Batch]:
        """Yield batches of the test samples, in order."""
        return self.iterate(self.data, self.batch_size)

    def classification(self, predict: Callable[[Batch], Tensor]) -> Mapping[str, np.ndarray]:
        """The confusion matrix and the sum of the loss of `predict`, which maps n samples to logits (n, K)."""
        from fedlab.metrics import Classification

        metric = Classification(self.task.num_classes)
        for batch in self.batches():
            with self.autocast():
                logits = predict(batch)
            metric.update(logits.float(), batch["label"])
        return metric.state()
