"""The networks of a query: the light encoder φ, and what turns its feature map into a sentence."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError
from fedlab.methods.isa.settings import GROUPS, EncoderSettings, LearnerSettings
from fedlab.models.pixels import Prepared

_POOLED_DROPOUT, _POOLED_FACTOR = 0.5, 4  # of the compared MLP, as in miccunifi/SEARLE's phi


class Learned(NamedTuple):
    """What a learner makes of feature maps.

    Args:
        sentence: S (n, L, d_w), in the space of word embeddings.
        attention: A (n, L, hw), how much each token takes of each place; every row sums to 1.
    """

    sentence: Tensor
    attention: Tensor


def _norm(kind: str, channels: int, groups: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(groups, channels)


class SmallEncoder(nn.Module):
    """A convolutional network; every layer halves height and width.

    Args:
        s: its settings.
    """

    def __init__(self, s: EncoderSettings) -> None:
        super().__init__()
        self.num_features = s.widths[-1]
        self.prepare = Prepared(s.mean, s.std, s.size)
        layers = [
            part
            for before, after in itertools.pairwise((3, *s.widths))
            for part in (nn.Conv2d(before, after, 3, stride=2, padding=1), _norm(s.norm, after, GROUPS), nn.SiLU())
        ]
        self.body = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, H, W) in [0, 1] → the feature map F (n, D, h, w)."""
        features: Tensor = self.body(self.prepare(pixels))
        return features


class PretrainedEncoder(nn.Module):
    """A light network of `transformers`.

    Args:
        s: its settings.

    Raises:
        ConfigError: there is no such checkpoint, or it is of another model.
    """

    def __init__(self, s: EncoderSettings) -> None:
        from transformers import AutoConfig, EfficientNetModel, MobileNetV2Model, MobileViTModel, MobileViTV2Model

        super().__init__()
        models: dict[str, Any] = {
            model.config_class.model_type: model
            for model in (EfficientNetModel, MobileNetV2Model, MobileViTModel, MobileViTV2Model)
        }
        key, expected = "method.encoder.pretrained", f"a checkpoint of one of {', '.join(models)}"
        try:
            kind: str = AutoConfig.from_pretrained(s.pretrained).model_type
            if kind not in models:
                raise ConfigError(key, s.pretrained, expected, f"this one is of {kind}")
            self.model: Any = models[kind].from_pretrained(s.pretrained, dtype=torch.float32)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(key, s.pretrained, expected, " ".join(str(error).split())[:300]) from error
        self.prepare = Prepared(s.mean, s.std, s.size)
        with torch.no_grad():
            self.num_features = int(self.model.eval()(torch.zeros(1, 3, 64, 64)).last_hidden_state.shape[1])

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (n, 3, H, W) in [0, 1] → the feature map F (n, D, h, w)."""
        features: Tensor = self.model(self.prepare(pixels)).last_hidden_state
        return features


class TokenLearner(nn.Module):
    """The adaptive token learner: attention finds L patterns in an image, each of which becomes a token.

    T0 = A X, with A = softmax over places of a small network's scores; T1 = LN(T0 + self-attention);
    T2 = LN(T1 + cross-attention to X); T3 = LN(T2 + feed-forward); S = T3 W + b. Places have no positions: their order
    does not matter.

    Args:
        s: its settings.
        features: D.
        width: d_w, of a word embedding.
        norm: normalization of the scores, ``batch`` or ``group``.

    Source: arXiv 2403.01431; reconstructed after the tokenizer and refinement block of arXiv 2112.06159.
    """

    def __init__(self, s: LearnerSettings, features: int, width: int, norm: str) -> None:
        super().__init__()
        first = nn.Conv2d(features, s.tokens, 1)
        self.scores = nn.Sequential(first, _norm(norm, s.tokens, 1), nn.SiLU(), nn.Conv2d(s.tokens, s.tokens, 1))
        attention = {"dropout": s.dropout, "batch_first": True}
        self.itself = nn.MultiheadAttention(features, s.heads, **attention)
        self.image = nn.MultiheadAttention(features, s.heads, **attention)
        hidden = [
            nn.Linear(features, 4 * features),
            nn.GELU(),
            nn.Dropout(s.dropout),
            nn.Linear(4 * features, features),
        ]
        self.forward_part = nn.Sequential(*hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(3))
        self.out = nn.Linear(features, width)

    def forward(self, features: Tensor) -> Learned:
        """Feature maps F (n, D, h, w) → sentences."""
        x = features.flatten(2).transpose(1, 2)
        attention = self.scores(features).flatten(2).softmax(dim=2)
        tokens = attention @ x
        tokens = self.norms[0](tokens + self.itself(tokens, tokens, tokens, need_weights=False)[0])
        tokens = self.norms[1](tokens + self.image(tokens, x, x, need_weights=False)[0])
        tokens = self.norms[2](tokens + self.forward_part(tokens))
        return Learned(self.out(tokens), attention)


class PooledMapper(nn.Module):
    """One token from the mean of the feature map, by an MLP of three layers: the variant that ISA is compared with.

    Args:
        features: D.
        width: d_w, of a word embedding.

    Source: ``src/phi.py`` of ``miccunifi/SEARLE``.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        sizes = (features, _POOLED_FACTOR * features, _POOLED_FACTOR * features)
        hidden = [
            part
            for before, after in itertools.pairwise(sizes)
            for part in (nn.Linear(before, after), nn.GELU(), nn.Dropout(_POOLED_DROPOUT))
        ]
        self.body = nn.Sequential(*hidden, nn.Linear(sizes[-1], width))

    def forward(self, features: Tensor) -> Learned:
        """Feature maps F (n, D, h, w) → sentences of one token."""
        places = features.flatten(2)
        even = torch.full_like(places[:, :1], 1 / places.shape[2])
        return Learned(self.body(places.mean(dim=2))[:, None], even)


def make_encoder(s: EncoderSettings) -> SmallEncoder | PretrainedEncoder:
    """The light encoder φ."""
    return SmallEncoder(s) if s.pretrained is None else PretrainedEncoder(s)


def make_learner(s: LearnerSettings, features: int, width: int, norm: str) -> TokenLearner | PooledMapper:
    """What turns a feature map into a sentence.

    Args:
        s: its settings.
        features: D, channels of the feature map.
        width: d_w, of a word embedding.
        norm: normalization of the scores.

    Raises:
        ConfigError: the heads do not divide the channels.
    """
    if s.kind == "pooled":
        return PooledMapper(features, width)
    if features % s.heads:
        raise ConfigError("method.learner.heads", s.heads, f"a divisor of the {features} channels of the feature map")
    return TokenLearner(s, features, width, norm)
