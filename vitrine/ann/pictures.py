"""From a picture's bytes to what the encoder sees, the same in training and serving."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vitrine.errors import FieldError

SIDE = 32
"""Width and height of the encoder's input, pixels (measured in docs/softmax.md)."""
MAX_BYTES = 8 << 20
MAX_PIXELS = 4096 * 4096
"""A PNG this large takes up to 160 MB while it is decoded; a JPEG less, as it is decoded at a reduced size."""

_FORMATS = ("JPEG", "PNG")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def load(picture: bytes) -> NDArray[np.float32]:
    """A JPEG or PNG as float32 (3, SIDE, SIDE), red, green and blue in 0..1; raises as `pixels` does."""
    return pixels(picture).astype(np.float32) / np.float32(255)


def pixels(picture: bytes) -> NDArray[np.uint8]:
    """A JPEG or PNG as uint8 (3, SIDE, SIDE): turned as its EXIF says, on white, squeezed to a square.

    The whole picture is squeezed, not cropped: the ends of trousers and dresses tell them apart.

    Raises FieldError("picture") where it is empty, larger than MAX_BYTES or MAX_PIXELS (read off its header, before
    anything is decoded), neither JPEG nor PNG, or cannot be decoded.
    """
    if not picture:
        raise FieldError("picture", "is empty; give the bytes of a JPEG or PNG file")
    if len(picture) > MAX_BYTES:
        raise FieldError("picture", f"has {len(picture):,} bytes, more than {MAX_BYTES:,}; send a smaller copy")
    try:
        with Image.open(io.BytesIO(picture), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise FieldError(
                    "picture", f"is {width} x {height}, more than {MAX_PIXELS:,} pixels; send a smaller copy"
                )
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at 1/2 to 1/8 of its size
            square = _opaque(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            orientation = image.getexif().get(_ORIENTATION, 1)
            if orientation != 1:
                square.getexif()[_ORIENTATION] = orientation
                square = ImageOps.exif_transpose(square)
            return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
    except FieldError:
        raise
    except UnidentifiedImageError as error:
        raise FieldError("picture", "is not a JPEG or PNG; send one of these") from error
    except Image.DecompressionBombError as error:
        raise FieldError("picture", f"has more than {MAX_PIXELS:,} pixels; send a smaller copy") from error
    except _UNREADABLE as error:
        raise FieldError("picture", f"cannot be decoded as JPEG or PNG ({error}); send a whole file") from error


_ORIENTATION = 0x0112


def _opaque(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    white.paste(image, mask=image.getchannel("A"))
    return white
