"""What training ends in: the `ctr-model` and, cut from it, the `towers`, published with the run's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from trainers.des.examples import Examples
from trainers.des.train import Config
from vitrine.artifacts import ArtifactStore
from vitrine.ctr import model as artifact
from vitrine.ctr.model import CtrModel
from vitrine.features import SCHEMA


def to_model(config: Config, examples: Examples, values: np.ndarray, touched: np.ndarray, bias: float) -> CtrModel:
    """The trained rows as an artifact: rows that no step touched are noise and stay out.

    values: (n, k + 1) rows of `examples.keys`, v and then w
    """
    bags, n_ads = examples.bags, len(examples.ads)
    first = bags.indptr[-1 - n_ads]
    return CtrModel(
        keys=examples.keys[touched],
        w=values[touched, -1].astype(np.float32),
        v=values[touched, :-1].astype(np.float32),
        ads=examples.ads,
        ad_key_indptr=bags.indptr[-1 - n_ads :] - first,
        ad_keys=examples.keys[bags.ids[first:]],
        ad_weights=bags.x[first:],
        bias=bias,
        kind=config.model,
        schema=SCHEMA,
    )


def base_rate_offset(base_rate: float, negatives: float) -> float:
    """What to add to the bias so that probabilities mean clicks an impression (docs/ctr.md, "Calibration").

    Trained with `negatives` drawn ads for one clicked, an ad that the user cares for as little as for any other has
    odds of 1 / negatives; shown, it is clicked with probability `base_rate`.
    """
    return math.log(base_rate / (1 - base_rate)) + math.log(negatives)


def publish(
    model: CtrModel,
    examples: Examples,
    store: str,
    namespace: str,
    metrics: Mapping[str, float | int | str],
    scratch: Path,
) -> dict[str, str]:
    """Publish both artifacts; {name: version}. `towers` names the `ctr-model` it is cut from as its parent."""
    artifacts = ArtifactStore(store, namespace=namespace)
    model.write(scratch / artifact.KIND)
    whole = artifacts.publish(artifact.KIND, scratch / artifact.KIND, schema=artifact.SCHEMA, metrics=metrics)
    towers = model.towers(examples.keys[examples.user_rows])
    towers.write(scratch / artifact.TOWERS_KIND, SCHEMA)
    cut = artifacts.publish(
        artifact.TOWERS_KIND,
        scratch / artifact.TOWERS_KIND,
        schema=artifact.TOWERS_SCHEMA,
        parents={artifact.KIND: whole.version},
        metrics=metrics,
    )
    return {artifact.KIND: whole.version, artifact.TOWERS_KIND: cut.version}
