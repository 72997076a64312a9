"""Mask2Former's pixel decoder and masked-attention decoder of transformers, for features and queries of any origin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)
"""Image pixels per position of the four maps of features that the decoders take, in this order."""
DIVISOR = 32
"""The width of the decoders is a multiple of it, because they normalize in so many groups of channels."""
_ATTENDED = len(STRIDES) - 1  # the decoder attends to all maps but the finest, one in each layer, the coarsest first


class Decoded(NamedTuple):
    """What the queries have become, before the first layer and after each of L layers.

    Args:
        queries: (1 + L, n, Q, D), normalized.
        masks: logits of their masks at stride 4, (1 + L, n, Q, h, w).
    """

    queries: Tensor
    masks: Tensor


class MaskDecoder(nn.Module):
    """Turns maps of features into masks, one for each query.

    Args:
        channels: of the maps of features.
        width: D, of both decoders and of the queries; a multiple of 32.
        heads: attention heads, a divisor of `width`.
        layers: L, number of layers of the masked-attention decoder.
        pixel_layers: number of layers of deformable attention in the pixel decoder.
        feedforward: hidden width of a layer of the masked-attention decoder.
        pixel_feedforward: hidden width of a layer of the pixel decoder.

    Source: Cheng et al. 2022, arXiv 2112.01527; modules and initialization are those of transformers' Mask2Former.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 256,
        heads: int = 8,
        layers: int = 9,
        pixel_layers: int = 6,
        feedforward: int = 2048,
        pixel_feedforward: int = 1024,
    ) -> None:
        from transformers import Mask2FormerConfig
        from transformers.models.mask2former import modeling_mask2former as parts

        super().__init__()
        config = Mask2FormerConfig(
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            num_attention_heads=heads,
            encoder_layers=pixel_layers,
            encoder_feedforward_dim=pixel_feedforward,
            decoder_layers=layers + 1,  # transformers counts the prediction before the first layer
            dim_feedforward=feedforward,
            dropout=0.0,
        )
        self.pixels: Any = parts.Mask2FormerPixelDecoder(config, [channels] * len(STRIDES))
        self.levels = nn.Embedding(_ATTENDED, width)
        self.places: Any = parts.Mask2FormerSinePositionEmbedding(width // 2, normalize=True)
        self.decoder: Any = parts.Mask2FormerMaskedAttentionDecoder(config)
        # as transformers does it with its own models: first the inner modules, whose owners then draw some anew
        model: Any = parts.Mask2FormerPreTrainedModel(config)
        self.apply(model._init_weights)

    def forward(self, pyramid: Sequence[Tensor], queries: Tensor, positions: Tensor) -> Decoded:
        """Masks of images.

        Args:
            pyramid: maps of features of n images, (n, C, H / s, W / s) for each stride s of `STRIDES`.
            queries: (Q, D).
            positions: (Q, D), added to the queries wherever they attend to something.
        """
        made = self.pixels(list(pyramid), return_dict=True)
        maps = made.multi_scale_features
        places = [self.places(m.shape, m.device, m.dtype).flatten(2).permute(2, 0, 1) for m in maps]
        seen = [
            (m.flatten(2) + level[:, None]).permute(2, 0, 1) for m, level in zip(maps, self.levels.weight, strict=True)
        ]
        count = len(maps[0])
        found = self.decoder(
            inputs_embeds=queries[:, None].expand(-1, count, -1),
            query_position_embeddings=positions[:, None].expand(-1, count, -1),
            multi_stage_positional_embeddings=places,
            pixel_embeddings=made.mask_features,
            encoder_hidden_states=seen,
            feature_size_list=[m.shape[-2:] for m in maps],
            return_dict=True,
        )
        states = torch.stack(found.intermediate_hidden_states).transpose(1, 2)
        return Decoded(states, torch.stack(found.masks_queries_logits))
