"""Batches of DeGLA: K false captions for each true one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedlab.data.files.captions import NEGATIVE, kinds_of
from fedlab.errors import ConfigError, did_you_mean
from fedlab.method import Batch, Task
from fedlab.methods.degla.settings import DeGLASettings


def check_columns(s: DeGLASettings, task: Task) -> None:
    """Refuse data without captions, or without the false captions that the settings need.

    Raises:
        ConfigError: what is missing, or kinds that do not exist.
    """
    for name in ("image", "text"):
        if name not in task.columns:
            raise ConfigError(
                "data.source", sorted(task.columns), f"a column {name!r}", "choose a source of captioned images"
            )
    kinds = kinds_of(task.columns)
    named = {"held_out": s.held_out, "unpooled": s.unpooled, "merge": tuple(k for group in s.merge for k in group)}
    for key, given in named.items():
        for kind in given:
            if kind not in kinds:
                raise ConfigError(
                    f"method.{key}", kind, "a kind of false caption in the data", did_you_mean(kind, kinds)
                )
    if s.needs_negatives and not set(kinds) - set(s.held_out):
        raise ConfigError(
            "data.source",
            list(kinds),
            "false captions to train on, beside those of method.held_out",
            "give the data negatives, or the captions source rules that make them; without any: method.contrast=none, "
            "method.lambda_igc=0, method.lambda_tgc=0",
        )


def with_negatives(batch: Mapping[str, Tensor], s: DeGLASettings, generator: torch.Generator) -> Batch:
    """The batch with ``negatives`` (B, K, L) and ``present`` (B, K) instead of a column for each kind.

    Every caption of every kind that is trained on has a place, but merged kinds share one: a sample then uses any
    one of its captions of these kinds.
    """
    trained = [kind for kind in kinds_of(batch) if kind not in s.held_out]
    merged = [[kind for kind in group if kind in trained] for group in s.merge]
    alone = [kind for kind in trained if not any(kind in group for group in merged)]
    places = [_one_of([batch[NEGATIVE + k] for k in group], batch["image"], generator) for group in merged if group]
    places += [batch[NEGATIVE + kind] for kind in alone]
    text = batch["text"]
    negatives = torch.cat(places, dim=1) if places else text.new_zeros(len(text), 0, text.shape[-1])
    kept = {name: values for name, values in batch.items() if not name.startswith(NEGATIVE)}
    return {**kept, "negatives": negatives, "present": is_caption(negatives)}


def is_caption(ids: Tensor) -> Tensor:
    """Which rows of (…, L) are captions and not only padding: (…) bool."""
    return ids.any(dim=-1)


def _one_of(columns: Sequence[Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    """One random caption (B, 1, L) for each sample of those in its columns (B, m, L); `like` gives the device."""
    every = torch.cat(list(columns), dim=1)
    draws = torch.rand(every.shape[:2], generator=generator).to(like)
    chosen = draws.masked_fill(~is_caption(every), -1.0).argmax(dim=1)
    return every[torch.arange(len(every), device=every.device), chosen][:, None]
