"""Pictures become what the encoder sees, or are refused by field."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrine.ann import pictures
from vitrine.ann.pictures import SIDE
from vitrine.errors import FieldError


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def halves(width: int = 120, height: int = 160) -> Image.Image:
    """Red above, blue below."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (0, height // 2, width, height))
    return image


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_picture_is_squeezed_to_a_square_of_its_colours(format):
    seen = pictures.load(encoded(halves(), format))
    assert seen.shape == (3, SIDE, SIDE)
    assert seen.dtype == np.float32
    assert np.abs(seen[:, 2, 5] - [1, 0, 0]).max() < 0.05
    assert np.abs(seen[:, -2, 5] - [0, 0, 1]).max() < 0.05


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "I;16"])
def test_every_colour_mode_is_read(mode):
    image = Image.new("L", (50, 40), 255)
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    seen = pictures.pixels(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert seen.shape == (3, SIDE, SIDE)


def test_what_is_transparent_shows_white():
    assert (pictures.pixels(encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)))) == 255).all()


def test_a_photo_is_turned_as_its_exif_says():
    upright = halves()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees to the right
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    seen = pictures.load(encoded(lying, "JPEG", exif=exif, quality=95))
    assert np.abs(seen - pictures.load(encoded(upright, "JPEG", quality=95))).mean() < 0.02


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (31, 33)])
def test_any_shape_is_read(size):
    assert pictures.pixels(encoded(Image.new("RGB", size))).shape == (3, SIDE, SIDE)


def png_header(width: int, height: int) -> bytes:
    """A PNG that says its size and has no pixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


@pytest.mark.parametrize(
    ("message", "picture"),
    [
        ("empty", b""),
        ("not a JPEG or PNG", b"not a picture"),
        ("not a JPEG or PNG", encoded(Image.new("L", (9, 9)), "GIF")),
        ("more than", bytes(pictures.MAX_BYTES + 1)),
        ("9000 x 9000", png_header(9_000, 9_000)),
        ("pixels", png_header(50_000, 50_000)),
        ("cannot be decoded", png_header(50, 50)),
    ],
)
def test_what_is_no_picture_is_refused(message, picture):
    with pytest.raises(FieldError, match=message) as refused:
        pictures.load(picture)
    assert refused.value.field == "picture"


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    bomb = encoded(Image.new("1", (8000, 8000)))
    assert len(bomb) < 20_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(FieldError, match="8000 x 8000"):
        pictures.load(bomb)


@settings(deadline=None)
@given(st.sampled_from(["PNG", "JPEG"]), st.data())
def test_damaged_bytes_are_read_or_refused_but_never_crash(format, data):
    whole = bytearray(encoded(halves(24, 32), format))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(1, len(whole)))])
    with contextlib.suppress(FieldError):
        assert pictures.load(damaged).shape == (3, SIDE, SIDE)
