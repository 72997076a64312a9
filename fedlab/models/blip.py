"""BLIP: an image encoder, a text encoder and an encoder that matches both, of any size (Li et al. 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.errors import ConfigError
from fedlab.models.pixels import Prepared

TINY = str(Path(__file__).parent / "tiny_blip")
"""A small BLIP that comes with FedLab. It knows the words and pictures of `fedlab.data.generated.edits` and no others;
``benchmarks/tiny_blip.py`` is its recipe."""
_BERT_CLS = 101  # the number of [CLS] in the vocabulary of BERT, which published checkpoints do not state
_MATCH = 1  # the logit of the matching head that says that image and text belong together


class Seen(NamedTuple):
    """What the image encoder sees.

    Args:
        vectors: v, of length 1, (n, d).
        tokens: H, the class token and those of the patches, (n, 1 + N, d_v).
    """

    vectors: Tensor
    tokens: Tensor


class Sentence(NamedTuple):
    """A text in the space of word embeddings, before positions and layer normalization.

    Args:
        embeddings: (n, T, d_w).
        mask: which places are no padding, (n, T) bool.
    """

    embeddings: Tensor
    mask: Tensor


class Blip(nn.Module):
    """The three encoders of `transformers.BlipForImageTextRetrieval`, for word embeddings as well as for words.

    Args:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        super().__init__()
        self.model = model
        vision, text = model.config.vision_config, model.config.text_config
        self.prepare = Prepared(OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, int(vision.image_size))
        self.cls = int(getattr(text, "cls_token_id", None) or _BERT_CLS)
        self.sep, self.pad = int(text.sep_token_id), int(text.pad_token_id or 0)
        self.word_width, self.vision_width = int(text.hidden_size), int(vision.hidden_size)
        self.num_words, self.positions = int(text.vocab_size), int(text.max_position_embeddings)
        side = int(vision.image_size) // int(vision.patch_size)
        self.grid = side, side

    def look(self, pixels: Tensor) -> Seen:
        """E_V: pixels (n, 3, H, W) in [0, 1] → vectors and tokens."""
        tokens = self.model.vision_model(pixel_values=self.prepare(pixels)).last_hidden_state
        return Seen(F.normalize(self.model.vision_proj(tokens[:, 0]).float(), dim=-1), tokens)

    @property
    def word_embeddings(self) -> Tensor:
        """The embedding of each word, (V, d_w)."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def sentence(self, tokens: Tensor, ids: Tensor | None = None) -> Sentence:
        """``[CLS]``, then L given embeddings, then the words of a text, ``[SEP]``, and padding.

        Args:
            tokens: (n, L, d_w), in place of words; L may be 0.
            ids: the text as numbers (n, M), whose ``[CLS]``, ``[SEP]`` and padding do not count; None for no text.
        """
        count = len(tokens)
        first = torch.full((count, 1), self.cls, dtype=torch.long, device=tokens.device)
        words = first[:, :0] if ids is None else ids
        special = (words == self.cls) | (words == self.sep) | (words == self.pad)
        # words in order, in front of what is no word
        words = words.masked_fill(special, self.pad).gather(1, special.long().argsort(dim=1, stable=True))
        length = (~special).sum(dim=1, keepdim=True)
        words = words[:, : int(length.max()) if len(length) else 0]  # no longer than the longest text
        rest = torch.cat([words, torch.full_like(first, self.pad)], dim=1).scatter(1, length, self.sep)
        there = torch.arange(rest.shape[1], device=rest.device)[None] <= length
        embed = self.model.get_input_embeddings()
        parts = [embed(first), tokens.to(embed.weight.dtype), embed(rest)]
        before = there.new_ones(count, 1 + tokens.shape[1])
        return Sentence(torch.cat(parts, dim=1), torch.cat([before, there], dim=1))

    def read(self, sentence: Sentence) -> Tensor:
        """E_T: the vector u of each sentence, of length 1, (n, d)."""
        return F.normalize(self.model.text_proj(self._encode(sentence)).float(), dim=-1)

    def match(self, sentence: Sentence, tokens: Tensor) -> Tensor:
        """E_M: logits (n, 2) of whether each sentence describes the image with these tokens (n, 1 + N, d_v).

        The second logit is that of a match.
        """
        there = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        seen = {"encoder_hidden_states": tokens, "encoder_attention_mask": there}
        logits: Tensor = self.model.itm_head(self._encode(sentence, **seen))
        return logits

    def _encode(self, sentence: Sentence, **seen: Tensor) -> Tensor:
        """The state of ``[CLS]`` after the last block, (n, d_w)."""
        # transformers adds the positions to the very tensor that it is given
        given = {"inputs_embeds": sentence.embeddings.clone(), "attention_mask": sentence.mask.long()}
        encoded: Tensor = self.model.text_encoder(**given, **seen).last_hidden_state[:, 0]
        return encoded


def match_probability(logits: Tensor) -> Tensor:
    """The probability (n,) of a match, of the logits of `Blip.match`."""
    return logits.float().softmax(dim=1)[:, _MATCH]


def load_blip(source: str, key: str) -> Blip:
    """BLIP for image-text retrieval from a checkpoint, such as ``Salesforce/blip-itm-base-coco`` or `TINY`.

    Args:
        source: hub name or folder.
        key: the setting that named it, for error messages.

    Raises:
        ConfigError: there is no such checkpoint, or it is of another model.
    """
    from transformers import BlipForImageTextRetrieval
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it would be drawn into the run's own output
    try:
        model, told = BlipForImageTextRetrieval.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
        if told["missing_keys"]:
            raise ValueError(f"it lacks {', '.join(sorted(told['missing_keys'])[:3])}")
    except (OSError, ValueError, RuntimeError) as error:
        expected = "a BLIP model for image-text retrieval on the hub, in its cache, or a folder of save_pretrained"
        raise ConfigError(key, source, expected, " ".join(str(error).split())[:300]) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return Blip(model.eval())
