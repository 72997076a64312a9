"""Retrieval as a probe."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedlab.config import Positive
from fedlab.errors import DataError
from fedlab.metrics.retrieval import search
from fedlab.probes.base import SCORE, Labels, Probe, Probed, ProbeSettings, check_classes


class RetrievalSettings(ProbeSettings):
    """Settings of retrieval."""

    recall: tuple[Positive, ...] = Field(
        default=(1, 5, 10), description="numbers k of best results among which one of the query's class is looked for"
    )


class RetrievalProbe(Probe[RetrievalSettings]):
    """Retrieval: how well samples of a query's class are ranked before others, by cosine. Nothing is fitted.

    Every sample of the set ``test`` is a query to the set ``fit``, or to all other samples of ``test`` if ``fit`` is
    null. The score is the mean average precision, ``recall_1`` the share of queries whose best result is of their
    class, and so on; see `fedlab.metrics.Retrieval` for the queries that count. Results that the camera of the query
    took do not count, if the samples have a column ``camera``.
    """

    Settings = RetrievalSettings
    fits = False

    def check(self, fit: Labels | None, test: Labels) -> None:
        for labels in (fit, test) if fit is not None else (test,):
            assert labels is not None
            check_classes(labels)
        if fit is not None and not np.isin(test.values, fit.values).any():
            fix = "choose sets with common classes, or set fit: null, which searches the set test itself"
            raise DataError(f"set {fit.name!r}", "no class of the queries", f"classes of the set {test.name!r}", fix)

    def run(self, fit: Probed | None, test: Probed, rng: np.random.Generator) -> Mapping[str, float]:
        gallery = None if fit is None else _columns(fit)
        values = search(_columns(test), gallery, self.settings.recall).compute()
        recall = {f"recall_{k}": values[f"rank{k}"] for k in self.settings.recall if f"rank{k}" in values}
        return {SCORE: values["mAP"], **recall} if values else {}


def _columns(samples: Probed) -> dict[str, Tensor]:
    columns = {"feature": samples.vectors, "label": samples.labels}
    columns |= {name: values for name, values in samples.columns.items() if name == "camera"}
    return {name: torch.from_numpy(values) for name, values in columns.items()}
