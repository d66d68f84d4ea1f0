"""Photos that visitors upload: checked, shrunk, and kept for a while in memory under a random name."""

import io
import secrets
import threading
from collections import OrderedDict

from PIL import Image, ImageOps

from services.console.inputs import InputError
from vitrine.ann.pictures import MAX_BYTES, MAX_PIXELS

__all__ = ["MAX_BYTES", "Uploads", "shrink"]

_SIDE = 320  # longest side of what is kept and searched by; the encoder sees 32 x 32
_MOST_KEPT = 256
_DECODERS = threading.BoundedSemaphore(2)  # a large PNG takes up to 160 MB while it is decoded


def shrink(picture: bytes) -> bytes:
    """A JPEG of at most 320 pixels a side, upright, on white; InputError where it is no good JPEG or PNG."""
    if not picture:
        raise InputError("photo: no file was chosen; choose a JPEG or PNG")
    if len(picture) > MAX_BYTES:
        raise InputError(f"photo: has {len(picture):,} bytes; {MAX_BYTES:,} at most")
    try:
        with _DECODERS, Image.open(io.BytesIO(picture), formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f"photo: is {width} x {height}; {MAX_PIXELS:,} pixels at most")
            image.draft("RGB", (_SIDE, _SIDE))
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((_SIDE, _SIDE))
            rgba = upright.convert("RGBA")
            white = Image.new("RGB", rgba.size, "white")
            white.paste(rgba, mask=rgba.getchannel("A"))
            kept = io.BytesIO()
            white.save(kept, "JPEG", quality=92)
            return kept.getvalue()
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they like over a damaged file
        raise InputError("photo: cannot be read as a JPEG or PNG; choose another file") from error


class Uploads:
    """The last uploads by token; nobody can guess one."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, picture: bytes) -> str:
        """The token of a picture that `shrink` made."""
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[token] = picture
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return token

    def get(self, token: str) -> bytes:
        """The picture; InputError where it is not kept (any more)."""
        with self._lock:
            picture = self._kept.get(token)
        if picture is None:
            raise InputError("photo: this upload is not kept any more; upload it again")
        return picture
