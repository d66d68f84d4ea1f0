"""Simple product pictures, drawn: a garment's outline of its category, in any colour, place, size and turn.

Colour says nothing about the category and the outline says all, so that comparing pixels does poorly and a small
convolutional network well.
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vitrine.data import draws

SIZE = 64
"""Width and height of a picture, pixels."""
_SCALE = 2  # drawn larger, then shrunk: smooth edges

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """A polygon in the unit square, y downwards: filled, or a closed stroke where `width` > 0."""

    points: Points
    accent: bool = False
    width: float = 0.0


def _ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return tuple(zip((x + rx * np.cos(turns)).tolist(), (y + ry * np.sin(turns)).tolist(), strict=True))


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _mirrored(*right: tuple[float, float]) -> Points:
    """An outline from its right half, top to bottom."""
    return (*right, *((1 - x, y) for x, y in reversed(right)))


_SHAPES: dict[str, tuple[_Part, ...]] = {
    "shirt": (
        _Part(
            _mirrored(
                (0.50, 0.21), (0.56, 0.21), (0.64, 0.15), (0.97, 0.36), (0.86, 0.52), (0.73, 0.42), (0.73, 0.86)
            )
        ),
        _Part(_box(0.45, 0.38, 0.55, 0.50), accent=True),
    ),
    "trousers": (
        _Part(((0.30, 0.08), (0.70, 0.08), (0.78, 0.94), (0.57, 0.94), (0.50, 0.35), (0.43, 0.94), (0.22, 0.94))),
        _Part(_box(0.30, 0.08, 0.70, 0.15), accent=True),
    ),
    "dress": (
        _Part(_mirrored((0.57, 0.16), (0.64, 0.06), (0.66, 0.38), (0.90, 0.94))),
        _Part(_box(0.33, 0.37, 0.67, 0.43), accent=True),
    ),
    "skirt": (
        _Part(((0.30, 0.25), (0.70, 0.25), (0.95, 0.78), (0.05, 0.78))),
        _Part(_box(0.30, 0.22, 0.70, 0.31), accent=True),
    ),
    "hat": (
        _Part(_ellipse(0.5, 0.66, 0.46, 0.13)),
        _Part(((0.28, 0.64), (0.30, 0.34), (0.38, 0.26), (0.62, 0.26), (0.70, 0.34), (0.72, 0.64))),
        _Part(_box(0.28, 0.54, 0.72, 0.62), accent=True),
    ),
    "shoe": (
        _Part(((0.08, 0.34), (0.32, 0.30), (0.40, 0.46), (0.70, 0.54), (0.92, 0.62), (0.95, 0.72), (0.06, 0.72))),
        _Part(_box(0.05, 0.72, 0.96, 0.79), accent=True),
    ),
    "bag": (
        _Part(_ellipse(0.5, 0.42, 0.22, 0.28), width=0.07),
        _Part(((0.16, 0.42), (0.84, 0.42), (0.92, 0.88), (0.08, 0.88))),
        _Part(_box(0.45, 0.50, 0.55, 0.60), accent=True),
    ),
    "glasses": (
        _Part(_ellipse(0.25, 0.5, 0.19, 0.17)),
        _Part(_ellipse(0.75, 0.5, 0.19, 0.17)),
        _Part(((0.44, 0.46), (0.56, 0.46), (0.56, 0.50), (0.44, 0.50))),
        _Part(_ellipse(0.25, 0.5, 0.11, 0.10), accent=True),
        _Part(_ellipse(0.75, 0.5, 0.11, 0.10), accent=True),
    ),
    "watch": (
        _Part(_box(0.40, 0.03, 0.60, 0.97)),
        _Part(_ellipse(0.5, 0.5, 0.28, 0.28)),
        _Part(_ellipse(0.5, 0.5, 0.19, 0.19), accent=True),
    ),
    "umbrella": (
        _Part(
            _mirrored(
                (0.50, 0.10), (0.70, 0.15), (0.88, 0.30), (0.96, 0.50), (0.81, 0.44), (0.66, 0.50), (0.50, 0.44)
            )
        ),
        _Part(((0.48, 0.44), (0.52, 0.44), (0.52, 0.90), (0.36, 0.90), (0.36, 0.82), (0.48, 0.86)), accent=True),
    ),
}

CATEGORIES = tuple(_SHAPES)


def draw(seed: int, item_id: int, category: str) -> bytes:
    """The JPEG of one item, SIZE x SIZE, the same bytes for the same arguments; `category` is of CATEGORIES."""
    u = draws.uniform(seed, "picture", item_id, np.arange(24))
    side = SIZE * _SCALE
    ground, accent = _colour(u[0:3]), _colour(u[3:6])
    colour = _colour(u[6:9])
    while np.abs(colour - ground).sum() < 150:  # an outline must be seen
        colour = (colour + 97) % 256
    canvas = Image.new("RGB", (side, side), _rgb(ground))
    pencil = ImageDraw.Draw(canvas)
    for k in range(2):  # a background that is not the product's: two pale discs
        x, y, r = u[9 + 3 * k : 12 + 3 * k] * (side, side, 0.4 * side)
        pencil.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(0.85 * ground + 0.15 * accent))
    place = _placement(u[15:20]) * side
    for part in _SHAPES[category]:
        points = np.column_stack([np.asarray(part.points) - 0.5, np.ones(len(part.points))]) @ place
        fill = _rgb(0.6 * colour + 0.4 * accent if part.accent else colour)
        corners = [(float(x), float(y)) for x, y in points]
        if part.width:
            pencil.line([*corners, corners[0]], fill=fill, width=round(part.width * side * 0.7), joint="curve")
        else:
            pencil.polygon(corners, fill=fill)
    small = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32)
    noise = np.random.Generator(np.random.Philox(key=[seed, item_id])).standard_normal(small.shape, np.float32)
    out = io.BytesIO()
    pixels = np.clip(small + noise * (4 + 10 * u[20]), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    return out.getvalue()


def _placement(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 2) affine map from centred unit coordinates: turn up to 17 degrees, size 0.65 to 0.95, shift, flip."""
    turn, size = (u[0] - 0.5) * 0.6, 0.65 + 0.3 * u[1]
    flip = -1.0 if u[2] < 0.5 else 1.0
    cos, sin = size * np.cos(turn), size * np.sin(turn)
    slack = 0.35 * (1 - size)
    shift = 0.5 + slack * (2 * u[3:5] - 1)
    return np.array([[flip * cos, flip * sin], [-sin, cos], shift])


def _colour(u: NDArray[np.float64]) -> NDArray[np.float64]:
    return 20 + 215 * u


def _rgb(colour: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (int(c) for c in colour)
    return red, green, blue
