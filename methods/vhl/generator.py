"""The virtual set: images of an untrained convolutional generator, from one latent distribution per class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedlab.models import seeded_init

_LATENT, _WIDTH, _START = 64, 32, 4


class RandomGenerator(nn.Module):
    """Maps latent vectors to images, with weights that are drawn once and never trained.

    It replaces the paper's untrained StyleGAN-v2 by one mapping layer, a 4×4 map, and convolutions that each double
    its size until it covers the image; the middle is cut out.

    Args:
        shape: (C, H, W).
        seed: of the weights.
    """

    def __init__(self, shape: tuple[int, int, int], seed: int) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        side = _START
        with seeded_init(seed):
            layers: list[nn.Module] = [
                nn.Linear(_LATENT, _LATENT),
                nn.LeakyReLU(0.2),
                nn.Linear(_LATENT, _WIDTH * _START**2),
                nn.Unflatten(1, (_WIDTH, _START, _START)),
                nn.LeakyReLU(0.2),
            ]
            while side < max(self.height, self.width):
                layers += [
                    nn.Upsample(scale_factor=2, mode="bilinear"),
                    nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1),
                    nn.LeakyReLU(0.2),
                ]
                side *= 2
            layers.append(nn.Conv2d(_WIDTH, channels, 1))
            for layer in layers:
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, a=0.2)
        self.top, self.left = (side - self.height) // 2, (side - self.width) // 2
        self.layers = nn.Sequential(*layers).requires_grad_(False)

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.layers(latent)
        return image[:, :, self.top : self.top + self.height, self.left : self.left + self.width]


def virtual_images(
    shape: tuple[int, int, int],
    classes: int,
    per_class: int,
    mean_std: float,
    latent_std: float,
    generator: torch.Generator,
) -> Tensor:
    """Virtual images, class after class; each channel of the whole set has mean 0 and standard deviation 1.

    Class c draws its latents from N(m_c, s²), its mean m_c once from N(0, σ²).

    Args:
        shape: (C, H, W).
        classes: M.
        per_class: images of each.
        mean_std: σ.
        latent_std: s.
        generator: of all draws, the generator's weights included.

    Returns:
        (M · per_class, C, H, W).
    """
    network = RandomGenerator(shape, int(torch.randint(2**62, (), generator=generator)))
    means = mean_std * torch.randn(classes, _LATENT, generator=generator)
    images = torch.cat([network(m + latent_std * torch.randn(per_class, _LATENT, generator=generator)) for m in means])
    std, mean = torch.std_mean(images, dim=(0, 2, 3), keepdim=True, correction=0)
    return (images - mean) / std
