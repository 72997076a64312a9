"""Compositional understanding: is an image nearer to its caption than to a minimally altered one?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np
from torch import Tensor


class CaptionChoice:
    """Share of images strictly nearer to their caption than to every false caption of a kind; ties are wrong.

    One false caption is the protocol of SugarCrepe (Hsieh et al. 2023, arXiv 2306.14610) and VALSE; several are that of
    ARO's order tasks, where the true caption must be the only best. All sums are counts, so merging is exact.
    """

    def __init__(self) -> None:
        self._sums: dict[str, int] = defaultdict(int)

    def update(self, kind: str, true: Tensor, false: Tensor, present: Tensor, blind: bool = False) -> None:
        """Add items of one kind.

        Args:
            kind: of the false captions.
            true: (n,) similarity of the image to its caption.
            false: (n, m) similarity to the false captions.
            present: (n, m) bool, which of these there are; a sample without any is no item.
            blind: whether the image was withheld, as a control.
        """
        items = present.any(dim=1)
        right = ((true[:, None] > false) | ~present).all(dim=1) & items
        name = "blind" if blind else "seen"
        self._sums[f"{name}.right.{kind}"] += int(right.sum())
        self._sums[f"{name}.items.{kind}"] += int(items.sum())

    def state(self) -> dict[str, np.ndarray]:
        """Counts to be merged by addition, int64."""
        return {name: np.asarray(count, np.int64) for name, count in self._sums.items()}

    def merge(self, state: Mapping[str, np.ndarray]) -> None:
        """Add another object's state."""
        for name, count in state.items():
            self._sums[name] += int(count)

    def compute(self, apart: Collection[str] = ()) -> dict[str, float]:
        """Shares of right choices; kinds without items are left out.

        Args:
            apart: kinds that do not count in the pooled shares.

        Returns:
            ``accuracy``: over all items of all kinds but those `apart`. ``accuracy_<kind>``. ``mean_<family>``: the
            unweighted mean over the kinds of a family, ``replace`` for ``replace_noun`` and ``replace_relation`` (as
            SugarCrepe reports them), where there are several. ``text_only`` and ``text_only_<kind>`` of those `apart`:
            the same with the image withheld; about ½ unless the false captions show without the image.
        """
        kinds = [
            name.removeprefix("seen.items.") for name, count in self._sums.items() if "seen.items." in name and count
        ]
        pooled = [kind for kind in kinds if kind not in apart]
        values = {f"accuracy_{kind}": self._share("seen", [kind]) for kind in kinds}
        families: dict[str, list[float]] = defaultdict(list)
        for kind in kinds:
            families[kind.split("_")[0]].append(values[f"accuracy_{kind}"])
        values |= {f"mean_{name}": float(np.mean(found)) for name, found in families.items() if len(found) > 1}
        if pooled:
            values = {"accuracy": self._share("seen", pooled), **values}
        for name, group in {"text_only": pooled, **{f"text_only_{k}": [k] for k in kinds if k in apart}}.items():
            if any(self._sums[f"blind.items.{kind}"] for kind in group):
                values[name] = self._share("blind", group)
        return values

    def _share(self, name: str, kinds: Collection[str]) -> float:
        right, items = (sum(self._sums[f"{name}.{what}.{kind}"] for kind in kinds) for what in ("right", "items"))
        return right / items
