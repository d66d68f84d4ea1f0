"""A sharded index for tests: what is published, a server process for each replica, and the router before them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from ann_kit import FIRST_ID, publish_embeddings, unit_vectors
from matching_live import Service

from vitrine.ann import hashing
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Parameters
from vitrine.ann.index import BinaryIndex, shard_folder, write_meta
from vitrine.ann.segment import Segment
from vitrine.artifacts import ArtifactStore
from vitrine.client import AnnClient
from vitrine.placement import shards_of
from vitrine.runtime import process
from vitrine.runtime.local_servers import free_ports

DIM, BITS, ITEMS = 32, 128, 400
OVER_RECALL = 100  # every pool holds all items, so that answers do not depend on how they are dealt
SHARDS = 2


def dealt_index(folder: Path, seed: int, *, shards: int = SHARDS, items: int = ITEMS) -> BinaryIndex:
    """Writes the files of an artifact with so many shards; the same items as one index."""
    vectors = unit_vectors(seed, items, DIM)
    ids = np.arange(FIRST_ID, FIRST_ID + 3 * items, 3, dtype=np.uint64)
    named = Attributes.of(
        [{"shop": int(item % 11), "kind": "odd" if item % 2 else "even"} for item in ids.tolist()]
    )
    function = hashing.fit(vectors, BITS, seed=seed)
    owners = shards_of(ids, shards)
    folder.mkdir(parents=True)
    write_meta(folder, function, over_recall=OVER_RECALL, shards=shards)
    for shard in range(shards):
        rows = np.flatnonzero(owners == shard)
        segment = Segment.build(
            ids[rows],
            vectors[rows],
            function,
            named.take(rows),
            Parameters(),
            folder.parent / f"build-{shard}-{seed}",
        )
        (folder / shard_folder(shard)).mkdir()
        segment.write(folder / shard_folder(shard))
    return BinaryIndex.of(ids, vectors, function, over_recall=OVER_RECALL, attributes=named)


class Sharded:
    """A store, replicas by shard, and a router; replicas are named `ann-<shard>-<number>` and keep their ports."""

    def __init__(self, folder: Path, replicas: int, *, namespace: str = "t", **settings: str) -> None:
        self.folder, self.namespace = folder, namespace
        self.store = ArtifactStore(folder / "store", namespace=namespace)
        self.environment = os.environ | {
            "PYTHONPATH": os.getcwd(),
            "VITRINE_NAMESPACE": namespace,
            "VITRINE_POLL_S": "0.05",
            "OMP_NUM_THREADS": "1",
            **{f"VITRINE_{name.upper()}": value for name, value in settings.items()},
        }
        self.embeddings = publish_embeddings(self.store, folder / "embeddings", n=50, dim=DIM)
        self.wholes: dict[str, BinaryIndex] = {}
        ports = free_ports(SHARDS * replicas)
        self.ports = [ports[shard * replicas : (shard + 1) * replicas] for shard in range(SHARDS)]
        self.services: dict[str, Service] = {}

    @property
    def shards(self) -> str:
        return ";".join(",".join(f"127.0.0.1:{port}" for port in ports) for ports in self.ports)

    def publish(self, seed: int, *, ref: str | None = "stable", name: str = "binary-index") -> str:
        """A version of random items; `wholes` has them as one index."""
        folder = self.folder / f"index-{len(self.wholes)}"
        whole = dealt_index(folder, seed)
        manifest = self.store.publish(
            name, folder, schema=2, parents={"embeddings": self.embeddings.version}, ref=ref
        )
        self.wholes[manifest.version] = whole
        return manifest.version

    def replica(self, shard: int, number: int, **settings: str) -> Service:
        """Starts a replica."""
        own = {
            "VITRINE_STORE": str(self.folder / "store"),
            "VITRINE_SHARD": f"{shard}/{SHARDS}",
            "VITRINE_PORT": str(self.ports[shard][number]),
            **{f"VITRINE_{name.upper()}": value for name, value in settings.items()},
        }
        name = f"ann-{shard}-{number}"
        self.services[name] = Service(["services.ann"], self.environment | own, self.folder, name)
        return self.services[name]

    def router(self, **settings: str) -> Service:
        own = {"VITRINE_SHARDS": self.shards, "VITRINE_LOOK_S": "0.1", "VITRINE_DRAIN_DELAY_MS": "0"}
        own |= {f"VITRINE_{name.upper()}": value for name, value in settings.items()}
        self.services["router"] = Service(["services.ann.router"], self.environment | own, self.folder, "router")
        return self.services["router"]

    def close(self) -> None:
        for service in self.services.values():
            process.stop(service.process)


@contextmanager
def sharded(folder: Path, replicas: int = 1, **settings: str) -> Iterator[Sharded]:
    """The store and no process yet."""
    made = Sharded(folder, replicas, **settings)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def running(folder: Path, replicas: int = 1, **settings: str) -> Iterator[tuple[Sharded, AnnClient]]:
    """A published index, its replicas and a router, all serving; and a client of the router."""
    with sharded(folder, replicas, **settings) as made:
        made.publish(0)
        for shard in range(SHARDS):
            for number in range(replicas):
                made.replica(shard, number)
        router = made.router()
        wait_serving(made.services.values())
        with AnnClient(router.address(), timeout_s=10) as client:
            yield made, client


def wait_serving(services: Sequence[Service]) -> None:
    for service in services:
        service.wait_serving()
