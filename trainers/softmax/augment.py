"""Pictures seen anew each epoch: flipped, turned, zoomed, shifted, in other light; a function of its counters."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from vitrine.data import draws


@dataclass(frozen=True)
class Ranges:
    """How far a picture is changed, at most; each amount is drawn evenly from minus this to this.

    zoom, contrast, colour: logarithms of factors; turn: radians; shift: half widths; light: of 0..1
    """

    zoom: float = 0.12
    turn: float = 0.08
    shift: float = 0.1
    colour: float = 0.15
    contrast: float = 0.15
    light: float = 0.075


def augment(
    pixels: torch.Tensor, rows: NDArray[np.int64], *, seed: int, epoch: int, ranges: Ranges | None = None
) -> torch.Tensor:
    """float32 (n, 3, side, side) of pixels uint8 (n, 3, side, side), about 0..1.

    rows: int64 (n,), the pictures' numbers in the data set: the same (seed, epoch, row) is changed in the same way,
          whichever process and batch it is in
    """
    r = ranges or Ranges()
    drawn = draws.uniform(seed, "softmax/augment", epoch, rows[:, None], np.arange(10))
    u = torch.from_numpy((2 * drawn - 1).astype(np.float32)).to(pixels.device)
    zoom, turn = torch.exp(r.zoom * u[:, 0]), r.turn * u[:, 1]
    flip = torch.where(u[:, 2] < 0, -1.0, 1.0)
    place = torch.stack(
        [
            torch.stack([zoom * torch.cos(turn) * flip, -zoom * torch.sin(turn), r.shift * u[:, 3]], 1),
            torch.stack([zoom * torch.sin(turn) * flip, zoom * torch.cos(turn), r.shift * u[:, 4]], 1),
        ],
        1,
    )
    x = pixels.float() / 255
    grid = F.affine_grid(place, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    x = x * torch.exp(r.colour * u[:, 5:8])[:, :, None, None]
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * torch.exp(r.contrast * u[:, 8])[:, None, None, None] + mean
    return x + (r.light * u[:, 9])[:, None, None, None]
