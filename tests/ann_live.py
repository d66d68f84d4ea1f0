"""A live ann system for tests: servers over one namespace's log and store, and the model of what they hold."""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from ann_kit import live_base, publish_embeddings, unit_vectors
from matching_live import Service

from tests.waiting import wait_for
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.artifacts import ArtifactStore
from vitrine.placement import qualify
from vitrine.runtime import kafka, process, topics
from vitrine.runtime.contained import offsets
from vitrine.runtime.embedded import EmbeddedStack

DIM, BITS = 16, 128
INDEX = "binary-index"
OVER_RECALL = 100


class Replica:
    """A server process that is killed and started again, and calls that outlive it."""

    def __init__(self, environment: dict[str, str], folder: Path, name: str) -> None:
        self._environment, self._folder, self._name = environment, folder, name
        self._channel: grpc.Channel | None = None
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.service = Service(["services.ann"], self._environment, self._folder, self._name)

    def kill(self) -> None:
        """SIGKILL, from any thread; `call` starts it again."""
        self.service.kill()

    def call(self, method: str, request: object, timeout_s: float = 60.0) -> object:
        """The answer, however often the server has to be started for it; every method here may be repeated."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.service.process.poll() is not None:
                self.start()
                self._close_channel()
            if self._channel is None:
                self._channel = self._connected()
            if self._channel is None:  # killed before it served
                continue
            try:
                stub = ann_pb2_grpc.AnnServiceStub(self._channel)
                return getattr(stub, method)(request, timeout=20)
            except grpc.RpcError as error:
                gone = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED)
                if error.code() not in gone or time.monotonic() > deadline:
                    raise AssertionError(f"{method}: {error}\n{self.service.said()}") from error
                time.sleep(0.02)

    def stop(self) -> None:
        self._close_channel()
        process.stop(self.service.process)

    def _connected(self) -> grpc.Channel | None:
        deadline = time.monotonic() + 60
        while self.service.process.poll() is None:
            if self.service.serving():
                return grpc.insecure_channel(self.service.address())
            assert time.monotonic() < deadline, f"not serving:\n{self.service.said()}"
            time.sleep(0.02)
        return None

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


@dataclass(frozen=True)
class Version:
    """A published index: what it contains."""

    version: str
    items: dict[int, bytes]


class AnnLive:
    """Topics, a store with embeddings, versions of an index over it, and replicas.

    model: item -> vector as bytes, of every write that was answered
    """

    def __init__(self, stack: EmbeddedStack, namespace: str, folder: Path, *, partitions: int = 4) -> None:
        self.stack, self.namespace, self._folder = stack, namespace, folder
        self.topic = qualify(namespace, topics.ITEM_UPDATES)
        topics.create(stack.kafka_url, namespace, partitions)
        self.store = ArtifactStore(folder / "store", namespace=namespace)
        self.embeddings = publish_embeddings(self.store, folder / "embeddings", n=50, dim=DIM, encoder=False)
        self.model: dict[int, bytes] = {}
        self.versions: list[str] = []
        self.shown: dict[int, int] = {}
        self.replicas: list[Replica] = []
        self._cluster = kafka.cluster_id(stack.kafka_url)

    def publish(self, seed: int) -> str:
        """A version that contains all that was answered so far, with a hash function of this seed."""
        folder = self._folder / f"index-{len(self.versions)}"
        folder.mkdir()
        vectors = {item: np.frombuffer(row, np.float32) for item, row in self.model.items()}
        live_base(vectors, seed=seed, bits=BITS).write(folder)
        contained = {place: offset + 1 for place, offset in self.shown.items()}
        manifest = self.store.publish(
            INDEX,
            folder,
            schema=2,
            parents={"embeddings": self.embeddings.version},
            offsets=offsets(self.topic, self._cluster, contained) if contained else None,
        )
        self.versions.append(manifest.version)
        return manifest.version

    def replica(self, name: str = "ann", **settings: str) -> Replica:
        environment = os.environ | {
            "PYTHONPATH": os.getcwd(),
            "VITRINE_NAMESPACE": self.namespace,
            "VITRINE_STORE": str(self._folder / "store"),
            "VITRINE_KAFKA_URL": self.stack.kafka_url,
            "VITRINE_POLL_S": "0.05",
            "OMP_NUM_THREADS": "1",
        }
        extra = {f"VITRINE_{key.upper()}": value for key, value in settings.items()}
        self.replicas.append(Replica(environment | extra, self._folder, name))
        return self.replicas[-1]

    def upsert(self, replica: Replica, items: dict[int, np.ndarray]) -> None:
        request = ann_pb2.UpsertRequest(
            item_ids=list(items),
            vectors=np.stack(list(items.values())).astype("<f4").tobytes(),
            embeddings_version=self.embeddings.version,
        )
        self._note(replica.call("Upsert", request))
        self.model |= {item: row.tobytes() for item, row in items.items()}

    def delete(self, replica: Replica, items: Iterable[int]) -> None:
        items = list(items)
        self._note(replica.call("Delete", ann_pb2.DeleteRequest(item_ids=items)))
        for item in items:
            self.model.pop(item, None)

    def wait_for_version(self, replica: Replica, version: str) -> None:
        wait_for(lambda: replica.call("Stats", ann_pb2.StatsRequest()).version == version, 60, replica.service.said)

    def check_all(self, replica: Replica, ids: Iterable[int]) -> None:
        """What a replica holds of these ids is what the model does, and so is its number of items."""
        asked = list(ids)
        for begin in range(0, len(asked), 1000):
            some = asked[begin : begin + 1000]
            self.wait_shown(replica)
            answer = replica.call("Get", ann_pb2.GetRequest(item_ids=some))
            rows = np.frombuffer(answer.vectors, "<f4").reshape(-1, DIM)
            found = dict(zip(answer.item_ids, rows, strict=True))
            expected = [item for item in some if item in self.model]
            assert list(found) == expected
            for item in expected:
                # The service brings vectors to unit length, which may move the last bit.
                assert np.abs(found[item] - np.frombuffer(self.model[item], np.float32)).max() < 1e-6, item
        assert replica.call("Stats", ann_pb2.StatsRequest()).items == len(self.model)

    def check_search(self, replica: Replica, query: np.ndarray, k: int = 10) -> None:
        """A search gives items of the model alone, by the vectors that they have now, and where it looks at all of
        them the nearest."""
        answer = self.search(replica, query, k)
        found = list(answer.item_ids)
        assert set(found) <= set(self.model), f"deleted: {set(found) - set(self.model)}"
        assert len(set(found)) == len(found) == min(k, len(self.model))
        given = np.array(answer.scores)
        assert np.abs(given - self._rows(found) @ query).max() < 1e-5, "by a vector from before"
        if len(self.model) <= OVER_RECALL * k:
            best = np.sort(self._rows(list(self.model)) @ query)[::-1][:k]
            assert np.abs(given - best).max() < 1e-5

    def check_found(self, replica: Replica, item: int) -> None:
        """An item's own vector finds it."""
        found = self.search(replica, self._rows([item])[0], 1)
        assert found.scores[0] > 1 - 1e-5
        assert found.item_ids[0] in self.model

    def _rows(self, items: list[int]) -> np.ndarray:
        return np.stack([np.frombuffer(self.model[item], np.float32) for item in items])

    def search(self, replica: Replica, query: np.ndarray, k: int) -> ann_pb2.SearchResponse:
        request = ann_pb2.SearchRequest(vectors=query.astype("<f4").tobytes(), k=k, over_recall=OVER_RECALL)
        return replica.call("Search", self._with_sequences(request))

    def wait_shown(self, replica: Replica) -> None:
        """Until the replica shows every write that was answered."""
        query = unit_vectors(0, 1, DIM)[0]
        self.search(replica, query, 1)

    def close(self) -> None:
        for replica in self.replicas:
            replica.stop()

    def _with_sequences(self, request: ann_pb2.SearchRequest) -> ann_pb2.SearchRequest:
        for partition, offset in self.shown.items():
            request.min_sequences.add(partition=partition, offset=offset)
        return request

    def _note(self, answer: object) -> None:
        for each in answer.sequences:
            self.shown[each.partition] = max(self.shown.get(each.partition, -1), each.offset)


@contextmanager
def ann_live(stack: EmbeddedStack, namespace: str, folder: Path) -> Iterator[AnnLive]:
    run = AnnLive(stack, namespace, folder)
    try:
        yield run
    finally:
        run.close()
