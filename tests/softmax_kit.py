"""Training of the picture encoder on a few drawn pictures; run under torchrun it saves rank 0's weights.

torchrun --nproc-per-node 2 tests/softmax_kit.py WEIGHTS.npz STEPS [CHECKPOINTS]
"""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from trainers.runtime import dist
from trainers.runtime.checkpoint import Checkpoints
from trainers.runtime.dist import Group
from trainers.softmax.images import Images
from trainers.softmax.train import Config, Learner
from vitrine.ann.pictures import SIDE
from vitrine.data.schemas import TABLES

torch.set_num_threads(1)  # as trainers do; two threads that share a core spin

CONFIG = Config(epochs=4, batch=9, dim=8, seed=3)  # batches of odd size: processes get unequal shares
SHAPES = ("bar", "disc", "frame")


def drawn(n: int = 40, seed: int = 0) -> Images:
    """n pictures of three shapes in random colours; every fifth is for tests, every seventh for validation."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    masks = np.stack([np.abs(x) < 0.15, x**2 + y**2 < 0.1, np.maximum(np.abs(x), np.abs(y)) > 0.35])
    labels = np.arange(n) % 3
    colours = draws.integers(0, 256, (2, n, 3, 1, 1))
    pixels = np.where(masks[labels][:, None], colours[0], colours[1]) + draws.integers(-9, 10, (n, 3, SIDE, SIDE))
    split = np.array(["test" if i % 5 == 0 else "validation" if i % 7 == 0 else "train" for i in range(n)])
    pixels = torch.from_numpy(np.clip(pixels, 0, 255).astype(np.uint8))
    return Images(
        np.arange(1, n + 1, dtype=np.uint64),
        split,
        labels.astype(np.int64),
        SHAPES,
        pa.chunked_array([[png(p) for p in pixels.numpy()]], pa.binary()),
        pixels,
    )


def png(pixels: np.ndarray) -> bytes:
    """A PNG of uint8 (3, side, side)."""
    out = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(out, "PNG")
    return out.getvalue()


def write_images(file: Path, images: Images) -> None:
    """The images as a market's images.parquet."""
    columns = [images.ids, images.split, np.array(images.categories)[images.labels], images.files]
    pq.write_table(
        pa.table(
            [pa.array(c) if isinstance(c, np.ndarray) else c for c in columns], schema=TABLES["images"].schema
        ),
        file,
    )


def steps(group: Group, count: int, folder: Path | None = None) -> Learner:
    """A learner after `count` steps in float64, begun at the newest checkpoint in `folder`, where it leaves one."""
    learner = Learner(drawn(), CONFIG, group, dtype=torch.float64)
    checkpoints = Checkpoints(folder, group) if folder else None
    saved = checkpoints.latest() if checkpoints else None
    if checkpoints and saved:
        learner.restore(checkpoints.load(saved))
    for step in range(saved.step if saved else 0, count):
        learner.step(step)
    if checkpoints:
        checkpoints.save(count, learner.tensors(), {})
    return learner


def weights(learner: Learner) -> dict[str, np.ndarray]:
    """All weights by name."""
    return {name: weight.detach().numpy().copy() for name, weight in learner.net.named_parameters()}


def main(output: str, count: str, folder: str = "") -> None:
    with dist.group("cpu") as group:
        learner = steps(group, int(count), Path(folder) if folder else None)
        if group.rank == 0:
            np.savez(output, **weights(learner))


if __name__ == "__main__":
    main(*sys.argv[1:])
