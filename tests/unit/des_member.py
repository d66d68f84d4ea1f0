"""One process of a training under test: `python -m des_member MARKET OUT`, with torchrun's environment or none.

Trains every model in float64 and leaves the whole table of each in OUT, from rank 0.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainers.des import examples, inputs
from trainers.des.train import Config, Trainer, whole_table
from trainers.runtime import dist
from trainers.runtime.checkpoint import Checkpoints
from vitrine.data.market import Market

STEPS = 50
CONFIG = Config(dim=5, epochs=100, batch=16, pool=8, negatives=3.0, lr=0.1, init_scale=0.1, seed=3, dtype="float64")
CONFIGS = {"fm": CONFIG, "lr": replace(CONFIG, model="lr")}
HALF_LIFE_MS = 30 * 86_400_000


def build(market: Path) -> examples.Examples:
    """The examples that members and the oracle share."""
    return examples.build(inputs.read(Market(market)), HALF_LIFE_MS, seed=3, backward=0.5)


def main(market: Path, out: Path) -> None:
    """Train and leave the tables."""
    built = build(market)
    with dist.group("cpu") as group:
        for model, config in CONFIGS.items():
            trainer = Trainer(config, built, group)
            losses = [trainer.step(number) for number in range(STEPS)]
            checkpoints = Checkpoints(out / f"{model}-{group.world}", group)
            trainer.save(checkpoints, STEPS, losses[-1])
            if group.rank == 0:
                saved = checkpoints.latest()
                values, touched, bias = whole_table(checkpoints, saved, trainer.table.values.shape[1] - 1)
                arrays = {"values": values, "touched": touched, "bias": bias, "losses": losses}
                np.savez(out / f"{model}-{group.world}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
