"""Samples that are held back: sets that the server holds, and validation samples of each client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fedlab.config.base import Fraction, ProperFraction, Section, UnfitValue

By = Literal["sample", "group"]
_BY = (
    "sample: single samples are drawn, with the same share of each class; group: whole owners are drawn, such as "
    "persons, slides or videos, so that no owner is divided"
)
_SEED = "seed of the draw, which does not depend on the run's seed, so that all runs hold back the same samples"


class HeldSet(Section):
    """A set of samples that the server holds."""

    split: Literal["train", "test"] = Field(default="train", description="samples from which the set is drawn")
    share: Fraction = Field(default=0.1, description="share of the samples of the split, or of its owners")
    by: By = Field(default="sample", description=_BY)
    keep: bool = Field(default=False, description="whether the clients keep these samples as well")
    seed: int = Field(default=0, ge=0, description=_SEED)

    @model_validator(mode="after")
    def _something_is_left(self) -> HeldSet:
        if self.share == 1 and not self.keep:
            raise UnfitValue(
                "share", self.share, "a share below 1, or keep: true, because the clients would have nothing left"
            )
        return self


class Validation(Section):
    """Validation samples, held back from the training samples of each client."""

    share: ProperFraction = Field(description="share of each client's training samples, or of its owners")
    by: By = Field(default="sample", description=_BY)
    seed: int = Field(default=0, ge=0, description=_SEED)


def _shared(value: Any) -> Any:
    return {"share": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


ValidationField = Annotated[Validation, BeforeValidator(_shared)]


def check_held(held: Mapping[str, HeldSet]) -> None:
    """Check the names of the held-out sets and that together they need no more than there is.

    Raises:
        ValueError: a name that stands for the clients' samples, or shares of a split above 1.
    """
    if "train" in held:
        raise ValueError("another name than 'train', which stands for the clients' training samples")
    for split in ("train", "test"):
        shares = {name: one.share for name, one in held.items() if one.split == split}
        if sum(shares.values()) > 1 + 1e-9:
            sets = " and ".join(f"{name} {share:g}" for name, share in shares.items())
            raise ValueError(f"shares of {split} that add up to 1 at most ({sets}), because no sample is in two sets")
