"""Images as discrete codes: a codebook of patches that is fitted, and a pre-trained VQ-VAE.

Images are given and returned as pixels in [0, 1]; codes are read row by row, from the top.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.errors import ConfigError, DataError


class ImageCodes(nn.Module):
    """Base of all tokenizers of images, which define `encode` and `decode`.

    Args:
        count: number of different codes.
        grid: rows and columns of codes of an image.
    """

    def __init__(self, count: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.count, self.grid = count, grid

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (n, C, H, W) → codes (n, cells), int64."""
        raise NotImplementedError  # no abstract method: `fedlab.method.network` takes concrete types only

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (n, cells) → pixels (n, C, H, W) in [0, 1]."""
        raise NotImplementedError  # no abstract method: `fedlab.method.network` takes concrete types only


class PatchCodes(ImageCodes):
    """A codebook of whole patches: each patch becomes the number of the nearest one in the codebook.

    Args:
        count: number of codes.
        patch: height and width of a patch in pixels.
        shape: (C, H, W) of an image; H and W are multiples of `patch`.
    """

    codebook: Tensor

    def __init__(self, count: int, patch: int, shape: tuple[int, ...]) -> None:
        channels, height, width = shape
        super().__init__(count, (height // patch, width // patch))
        self.patch = patch
        self.register_buffer("codebook", torch.zeros(count, channels * patch * patch))

    def fit(self, pixels: Tensor, seed: int) -> None:
        """Fit the codebook to the patches of images by k-means (scikit-learn).

        Args:
            pixels: (n, C, H, W).
            seed: seed of the initialization of k-means.

        Raises:
            DataError: the images have fewer different patches than there are codes.
        """
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        patches = self._patches(pixels).flatten(0, 1).cpu()
        different = len(torch.unique(patches, dim=0))
        if different < self.count:
            fix = "choose fewer codes, or give the server more images"
            raise DataError("images for the codebook", f"{different} different patches", f"at least {self.count}", fix)
        with threadpool_limits(1):  # several threads add up in an order that is not always the same
            found = KMeans(self.count, n_init=1, random_state=seed % 2**32).fit(patches.numpy())
        self.codebook.copy_(torch.as_tensor(found.cluster_centers_))

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        return torch.cdist(self._patches(pixels), self.codebook[None]).argmin(dim=2)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        height, width = (side * self.patch for side in self.grid)
        columns = self.codebook[codes].transpose(1, 2)
        return F.fold(columns, (height, width), self.patch, stride=self.patch).clamp(0, 1)

    def _patches(self, pixels: Tensor) -> Tensor:
        """(n, cells, C · patch²)."""
        return F.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2)


class JanusCodes(ImageCodes):
    """The VQ-VAE of `transformers` that has a decoder, ``JanusVQVAE``, which is LlamaGen's tokenizer.

    Args:
        source: hub name of a VQ-VAE, or a folder written by its ``save_pretrained``.
        shape: (3, H, W) of an image, H = W.
        key: the setting that named the source, for error messages.

    Raises:
        ConfigError: there is no such checkpoint, or its codes do not divide these images.
    """

    def __init__(self, source: str, shape: tuple[int, ...], key: str) -> None:
        from transformers import JanusVQVAE, JanusVQVAEConfig

        try:
            config: Any = JanusVQVAEConfig.from_pretrained(source)
            stride = 2 ** (len(config.channel_multiplier) - 1)
            if shape[0] != config.in_channels or shape[1] != shape[2] or shape[1] % stride:
                expected = f"square images with {config.in_channels} channels and a multiple of {stride} pixels"
                raise ConfigError("data.source", f"images {'×'.join(map(str, shape))}", expected)
            config.num_patches = shape[1] // stride
            model, loaded = JanusVQVAE.from_pretrained(source, config=config, output_loading_info=True)
            if loaded["missing_keys"]:
                raise ValueError(f"the checkpoint has no {min(loaded['missing_keys'])!r}")
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(key, source, "a VQ-VAE of Janus, written by save_pretrained", reason) from error
        super().__init__(config.num_embeddings, (config.num_patches,) * 2)
        self.model: Any = model.eval()

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        codes: Tensor = self.model.encode(2 * pixels - 1).image_tokens
        return codes.reshape(len(pixels), -1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        pixels: Tensor = self.model.decode(codes)
        if pixels.shape[1] != 3:  # transformers returns the channels last
            pixels = pixels.permute(0, 3, 1, 2)
        return ((pixels + 1) / 2).clamp(0, 1)
