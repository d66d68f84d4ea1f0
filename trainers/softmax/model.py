"""The encoder: whitened patches, then strided and residual 3x3 convolutions with group normalisation.

Sized for minutes of CPU, not hours (docs/softmax.md has what was measured): the stem halves the picture at once, so
that most of the arithmetic runs at 16 x 16 and 8 x 8.
"""

import torch
import torch.nn.functional as F
from torch import nn

_STEM = 5  # width of a patch
_RIDGE = 1e-2  # of a whitened patch's variance, so that noise is not blown up


class Encoder(nn.Module):
    """Pictures (n, 3, side, side) in 0..1 to features (n, dim), which `embed` scales to unit length."""

    def __init__(self, dim: int = 64, stem: int = 24, widths: tuple[int, ...] = (48, 96)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, _STEM, stride=2, padding=_STEM // 2, bias=False), _norm(stem), nn.ReLU()
        )
        inputs = (stem, *widths[:-1])
        self.stages = nn.Sequential(*(_Stage(i, width) for i, width in zip(inputs, widths, strict=True)))
        self.out = nn.Linear(widths[-1], dim)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.stages(self.stem(4 * pictures - 2)).mean((2, 3))
        projected: torch.Tensor = self.out(features)
        return projected

    def embed(self, pictures: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, dim)."""
        return F.normalize(self(pictures), eps=1e-6)


class _Stage(nn.Module):
    """Half the side, `width` channels: a strided convolution, then a residual one."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(inputs, width, 3, 2, 1, bias=False), _norm(width), nn.ReLU())
        self.same = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), _norm(width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        y: torch.Tensor = x + self.same(x)
        return y


def _norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018): of one picture alone, so that a batch may be cut into shares."""
    return nn.GroupNorm(min(8, channels // 4), channels)


def whiten(encoder: Encoder, pictures: torch.Tensor) -> None:
    """Start the stem from whitened principal patches of pictures (n, 3, side, side) in 0..1, and their negatives.

    As in Coates and Ng 2012; the loss falls faster than from random patches.
    """
    weight = encoder.stem[0].weight
    half = len(weight) // 2
    patches = (4 * pictures.double() - 2).unfold(2, _STEM, 3).unfold(3, _STEM, 3)
    flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * _STEM * _STEM)
    flat = flat - flat.mean(0)
    variances, directions = torch.linalg.eigh(flat.T @ flat / len(flat))
    filters = (directions / (variances + _RIDGE).sqrt()).T.flip(0)[:half].reshape(half, 3, _STEM, _STEM)
    with torch.no_grad():
        weight.copy_(torch.cat([filters, -filters]) / 4)
