"""How well neighbours agree on their category: of the encoder, of plain pixels, and by chance."""

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from trainers.softmax.images import Images
from vitrine.ann.pictures import SIDE

K = 10
_CHUNK = 256  # queries compared with all items at a time


def held_out(images: Images) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows of the queries and of the items searched: test against the rest, or validation against train.

    None where there are neither test nor validation pictures.
    """
    for queries, items in (("test", ("train", "validation")), ("validation", ("train",))):
        rows = images.rows(queries)
        if len(rows):
            return rows, images.rows(*items)
    return None


def same_category(
    queries: torch.Tensor, items: torch.Tensor, query_labels: NDArray[np.int64], item_labels: NDArray[np.int64]
) -> float:
    """Share of each query's 10 nearest items, by L2 over float32 (q, d) and (n, d), that have its category."""
    squares = (items * items).sum(1)
    same = []
    for start in range(0, len(queries), _CHUNK):
        distances = (
            squares - 2 * queries[start : start + _CHUNK] @ items.T
        )  # and the query's own square, for all alike
        nearest = distances.topk(min(K, len(items)), largest=False).indices.numpy()
        same.append(item_labels[nearest] == query_labels[start : start + _CHUNK, None])
    return float(np.concatenate(same).mean())


def by_chance(query_labels: NDArray[np.int64], item_labels: NDArray[np.int64]) -> float:
    """The same share for items drawn at random."""
    share = np.bincount(item_labels, minlength=int(query_labels.max()) + 1) / len(item_labels)
    return float(share[query_labels].mean())


def centre_crop(picture: bytes) -> NDArray[np.uint8]:
    """uint8 (3, SIDE, SIDE): the middle square of a picture, which the baseline of pixels compares."""
    with Image.open(io.BytesIO(picture)) as image:
        image.draft("RGB", (2 * SIDE, 2 * SIDE))
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = image.convert("RGB").resize(
            (SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
        return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))
