"""Captions and image codes as one sequence of tokens: caption, [REP], BOI, codes row by row, EOI.

The vocabulary holds the words of captions, then BOI, EOI, REP, and then the image codes. All masks are functions of the
tokens, so that neither the length of a caption nor padding can shift them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PAD = 0
"""What stands behind a sequence, or before a prompt. It is also a word, but no mask contains it."""
Positions = Literal["hybnext", "rep", "last"]


@dataclass(frozen=True)
class Layout:
    """How captions and images become sequences.

    Args:
        words: number of token ids of captions.
        ends: ids that end a caption; what follows the first of them is padding.
        codes: number of image codes.
        cells: number of codes of an image.
        rep: whether the token REP stands before BOI.
    """

    words: int
    ends: tuple[int, ...]
    codes: int
    cells: int
    rep: bool = False

    @property
    def boi(self) -> int:
        return self.words

    @property
    def eoi(self) -> int:
        return self.words + 1

    @property
    def rep_token(self) -> int:
        return self.words + 2

    @property
    def first_code(self) -> int:
        return self.words + 3

    @property
    def size(self) -> int:
        """Number of all tokens."""
        return self.first_code + self.codes

    def longest(self, text_length: int) -> int:
        """Length of the longest sequence with captions of so many tokens."""
        return text_length + 1 + self.rep + self.cells + 1

    def lengths(self, text: Tensor) -> Tensor:
        """Number of tokens of each caption, the first end token included: text (n, L) → (n,)."""
        ended = torch.isin(text, torch.tensor(self.ends, device=text.device))
        place = torch.where(ended.any(dim=1), ended.int().argmax(dim=1) + 1, text.shape[1])
        return torch.where((text == PAD).all(dim=1), 0, place)

    def sequences(self, text: Tensor, codes: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Token ids for training, filled with `PAD` on the right.

        Args:
            text: captions (n, L).
            codes: image codes (n, cells), from 0.
            dropped: samples whose caption is left out (n,), not 0, as guidance needs; default: none.

        Returns:
            (n, T), T that of the longest sequence of the batch.
        """
        lengths = self.lengths(text)
        if dropped is not None:
            lengths = lengths.masked_fill(dropped.bool(), 0)
        n, start = len(text), self._start(text)
        image = torch.cat([start, codes + self.first_code, text.new_full((n, 1), self.eoi)], dim=1)
        longest = int(lengths.max()) if n else 0
        ids = text.new_full((n, longest + image.shape[1]), PAD)
        ids[:, :longest] = text[:, :longest].masked_fill(self._columns(longest, text) >= lengths[:, None], PAD)
        return ids.scatter(1, lengths[:, None] + self._columns(image.shape[1], text), image)

    def prompts(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """What an image is generated from: token ids, filled with `PAD` on the left, and their mask; (n, T) each."""
        lengths, start = self.lengths(text), self._start(text)
        longest = int(lengths.max())
        columns = self._columns(longest, text)
        shift = longest - lengths[:, None]
        present = columns >= shift
        words = text.gather(1, (columns - shift).clamp(min=0)).masked_fill(~present, PAD)
        mask = torch.cat([present, torch.ones_like(start, dtype=torch.bool)], dim=1)
        return torch.cat([words, start], dim=1), mask.long()

    def image_positions(self, ids: Tensor) -> Tensor:
        """P = {t : x_{t+1} is an image token}: (n, T) bool, from that of BOI to that of the last code but one."""
        return _before(ids, ids >= self.first_code)

    def predicted_positions(self, ids: Tensor) -> Tensor:
        """Positions whose next token is learned: those of P, and that before EOI; (n, T) bool."""
        return _before(ids, (ids >= self.first_code) | (ids == self.eoi))

    def aligned_positions(self, ids: Tensor, which: Positions) -> Tensor:
        """Positions that are aligned: all of P (``hybnext``), that of REP, or the last of P; (n, T) bool."""
        if which == "rep":
            return ids == self.rep_token
        image = self.image_positions(ids)
        if which == "hybnext":
            return image
        place = torch.arange(ids.shape[1], device=ids.device)
        return image & (place == torch.where(image, place, -1).amax(dim=1, keepdim=True))

    @property
    def not_codes(self) -> list[int]:
        """Tokens that must not be drawn inside an image."""
        return list(range(self.first_code))

    def _start(self, text: Tensor) -> Tensor:
        """What precedes the codes of each image, (n, 1) or (n, 2)."""
        tokens = [self.rep_token, self.boi] if self.rep else [self.boi]
        return text.new_tensor(tokens).expand(len(text), -1)

    @staticmethod
    def _columns(count: int, like: Tensor) -> Tensor:
        return torch.arange(count, device=like.device)[None]


def _before(ids: Tensor, mask: Tensor) -> Tensor:
    """Positions before those of a mask."""
    return torch.cat([mask[:, 1:], torch.zeros_like(ids[:, :1], dtype=torch.bool)], dim=1)
