"""The artifact's files: ids, vectors, the encoder as ONNX, thumbnails."""

import io
import logging
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn

from trainers.softmax.images import Images
from trainers.softmax.model import Encoder
from vitrine.ann import embeddings
from vitrine.ann import encoder as served
from vitrine.ann.pictures import SIDE

TOLERANCE = 1e-4
"""Largest difference of a vector's entry between onnxruntime and torch."""
_THUMBNAIL_SIDE = 256
_OPSET = 18


class _Embed(nn.Module):
    """`Encoder.embed` as a module's forward."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.encoder.embed(pictures)


def write(folder: Path, images: Images, encoder: Encoder, vectors: torch.Tensor) -> None:
    """All files of the `embeddings` artifact; vectors float32 (n, dim) of all images, on the CPU."""
    np.save(folder / "ids.npy", images.ids, allow_pickle=False)
    np.save(folder / "vectors.npy", vectors.numpy(), allow_pickle=False)
    write_onnx(encoder, folder / embeddings.ENCODER_FILE)
    columns = [
        pa.array(images.ids),
        pa.array(images.split),
        pa.array(np.array(images.categories)[images.labels]),
        pa.array([thumbnail(picture.as_py()) for picture in images.files], pa.binary()),
    ]
    pq.write_table(
        pa.table(columns, schema=embeddings.THUMBNAILS_SCHEMA),
        folder / embeddings.THUMBNAILS_FILE,
        compression=None,
    )


def write_onnx(encoder: Encoder, file: Path) -> None:
    """The encoder as ONNX, any number of pictures a call; RuntimeError where onnxruntime does not agree with it."""
    example = torch.rand((3, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    module = _Embed(encoder).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter without onnxscript is the older one, and says so
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            module,
            (example[:2],),
            str(file),
            input_names=[served.INPUT],
            output_names=[served.OUTPUT],
            dynamic_axes={served.INPUT: {0: "n"}, served.OUTPUT: {0: "n"}},
            opset_version=_OPSET,
            dynamo=False,
        )
        wanted = module(example).numpy()
    difference = float(np.abs(served.Encoder(file).encode(example.numpy()) - wanted).max())
    if not difference < TOLERANCE:
        raise RuntimeError(f"{file.name} differs from the encoder by {difference}, more than {TOLERANCE}")


def thumbnail(picture: bytes) -> bytes:
    """The picture itself where it is a small JPEG, else one of it with no side above 256."""
    with Image.open(io.BytesIO(picture)) as image:
        if image.format == "JPEG" and max(image.size) <= _THUMBNAIL_SIDE:
            return picture
        image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        out = io.BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=85)
        return out.getvalue()
