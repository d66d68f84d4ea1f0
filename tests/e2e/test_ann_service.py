"""The ann service as a process of its own: what it answers, refuses, and swaps under load."""

import contextlib
import io
import itertools
import json
import os
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from ann_kit import FIRST_ID, publish_embeddings, publish_index, segment_of, small_index, unit_vectors
from matching_live import Service, wait_for
from PIL import Image

from vitrine.ann import pictures
from vitrine.ann.encoder import Encoder
from vitrine.ann.index import Options
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.artifacts import ArtifactStore
from vitrine.client import (
    AnnClient,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
)
from vitrine.runtime import process

DIM, BITS = 32, 128
ONE = unit_vectors(1, 1, DIM).tobytes()


@dataclass
class Running:
    """A store, and a service that follows it."""

    store: ArtifactStore
    scratch: Path
    service: Service
    client: AnnClient
    versions: list[str] = field(default_factory=list)

    def publish(self, seed: int, **options: int) -> str:
        """A new index of random vectors under new embeddings."""
        parent = publish_embeddings(self.store, self.scratch / f"embeddings-{len(self.versions)}", seed=seed)
        folder = self.scratch / f"index-{len(self.versions)}"
        self.versions.append(publish_index(self.store, folder, parent, seed=seed, **options).version)
        return self.versions[-1]

    def wait_for_version(self, version: str) -> None:
        wait_for(lambda: self.client.stats().version == version, 20, self.service.said)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A service before anything is published."""
    store = ArtifactStore(tmp_path / "store", namespace="t")
    environment = os.environ | {
        "PYTHONPATH": os.getcwd(),
        "VITRINE_STORE": str(tmp_path / "store"),
        "VITRINE_NAMESPACE": "t",
        "VITRINE_POLL_S": "0.05",
        "OMP_NUM_THREADS": "1",
    }
    service = Service(["services.ann"], environment, tmp_path, "ann")
    try:
        wait_for(lambda: (tmp_path / "ann.address").exists(), 60, service.said)
        with AnnClient(service.address(), timeout_s=10) as client:
            yield Running(store, tmp_path, service, client)
    finally:
        if service.process.poll() is None:
            assert process.stop(service.process) == 0, service.said()


@pytest.fixture
def serving(running: Running) -> Running:
    """A service that serves the index of seed 0."""
    running.publish(0)
    running.service.wait_serving()
    return running


def picture(seed: int = 0) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_it_serves_once_an_index_is_published_and_not_before(running):
    assert not running.service.serving()
    with grpc.insecure_channel(running.service.address()) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            ann_pb2_grpc.AnnServiceStub(channel).Search(ann_pb2.SearchRequest(vectors=ONE, k=5), timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "vitrine train bdg" in refused.value.details()
    version = running.publish(0)
    running.service.wait_serving()
    stats = running.client.stats()
    assert (stats.version, stats.embeddings_version) == (version, running.store.resolve("embeddings"))
    assert (stats.items, stats.dim, stats.bits, stats.over_recall, stats.pictures) == (500, DIM, BITS, 10, True)
    assert running.service.metric("vitrine_ann_items") == 500


def test_vectors_codes_and_pictures_find_what_the_library_finds(serving):
    index, asked = small_index(0), unit_vectors(1, 7, DIM)
    answer = serving.client.search(5 * asked, k=12, over_recall=3)
    expected = index.search_vectors(asked, Options(12, 3))
    assert answer.version == serving.versions[0]
    assert np.array_equal(np.concatenate(answer.ids), expected.ids)
    assert np.array_equal(np.concatenate(answer.distances), expected.distances)
    assert np.abs(np.concatenate(answer.scores) - expected.scores).max() < 1e-6

    codes = np.ascontiguousarray(index.hashing.encode(asked).T)
    answer = serving.client.search(codes=codes, k=12)
    expected = index.search_codes(codes, Options(12))
    assert answer.scores is None
    assert np.array_equal(np.concatenate(answer.ids), expected.ids)
    assert np.array_equal(np.concatenate(answer.distances), expected.distances)

    answer = serving.client.search(picture=picture(), k=3)
    vector = Encoder(serving.scratch / "embeddings-0" / "encoder.onnx").encode(pictures.load(picture())[None])
    assert np.array_equal(answer.ids[0], index.search_vectors(vector, Options(3)).ids)

    assert len(serving.client.search(asked, k=1000).ids[0]) == 500
    for stage in ("decode", "encode", "scan", "rerank"):
        assert f'stage="{stage}"' in metrics_page(serving)


def metrics_page(running: Running) -> str:
    with urllib.request.urlopen(f"http://{running.service.address('metrics')}/metrics", timeout=5) as page:
        return str(page.read().decode())


BAD_REQUESTS = {
    "no query": ("vectors", {"k": 5}),
    "two queries": ("codes", {"vectors": ONE, "codes": bytes(BITS // 8), "k": 5}),
    "wrong vector length": ("vectors", {"vectors": ONE[:-4], "k": 5}),
    "half a float": ("vectors", {"vectors": ONE[:-1], "k": 5}),
    "NaN": ("vectors", {"vectors": np.full(DIM, np.nan, "<f4").tobytes(), "k": 5}),
    "infinite": ("vectors", {"vectors": np.full(DIM, np.inf, "<f4").tobytes(), "k": 5}),
    "all zero": ("vectors", {"vectors": bytes(4 * DIM), "k": 5}),
    "k of 0": ("k", {"vectors": ONE}),
    "k of 100,000": ("k", {"vectors": ONE, "k": 100_000}),
    "over_recall of 101": ("over_recall", {"vectors": ONE, "k": 5, "over_recall": 101}),
    "oversized batch": ("vectors", {"vectors": ONE * 257, "k": 5}),
    "oversized batch of codes": ("codes", {"codes": bytes(BITS // 8) * 257, "k": 5}),
    "wrong code length": ("codes", {"codes": bytes(BITS // 8 + 1), "k": 5}),
    "k of 0 by code": ("k", {"codes": bytes(BITS // 8)}),
    "no picture": ("picture", {"picture": b"GIF89a", "k": 5}),
    "picture cut short": ("picture", {"picture": picture()[:2000], "k": 5}),
    "large picture": ("picture", {"picture": bytes((8 << 20) + 1), "k": 5}),
}


def test_each_bad_request_names_its_field_and_the_service_lives_on(serving):
    with grpc.insecure_channel(serving.service.address()) as channel:
        stub = ann_pb2_grpc.AnnServiceStub(channel)
        for name, (wrong, request) in BAD_REQUESTS.items():
            with pytest.raises(grpc.RpcError) as refused:
                stub.Search(ann_pb2.SearchRequest(**request), timeout=10)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
            assert refused.value.details().startswith(f"{wrong}: "), name
        with pytest.raises(grpc.RpcError) as refused:
            stub.Search(ann_pb2.SearchRequest(vectors=bytes(17 << 20), k=5), timeout=10)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as refused:
            stub.Search(ann_pb2.SearchRequest(vectors=ONE, k=5), timeout=-1)
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(NotFoundError, match="shoes"):
        serving.client.search(unit_vectors(1, 1, DIM), index="shoes")
    with pytest.raises(NotFoundError, match="shoes"):
        serving.client.stats(index="shoes")
    assert len(serving.client.search(unit_vectors(1, 256, DIM), k=5).ids) == 256
    assert serving.service.serving()


def test_a_search_ends_when_its_deadline_passes(serving):
    asked = unit_vectors(1, 256, DIM)
    timeouts_s = itertools.cycle((0.001, 0.002, 0.004, 0.008))  # too short a one ends before the server hears of it

    def ended_there() -> bool:
        with contextlib.suppress(DeadlineExceededError):
            # 128,000 vectors are compared
            serving.client.search(asked, k=500, over_recall=100, timeout_s=next(timeouts_s))
        return 'grpc_code="DEADLINE_EXCEEDED"' in metrics_page(serving)

    wait_for(ended_there, 20)  # the server stopped too: it would have ended with OK
    with pytest.raises(DeadlineExceededError):
        serving.client.search(asked, k=500, over_recall=100, timeout_s=0.0001)
    assert len(serving.client.search(asked, k=5).ids) == 256


def test_versions_are_swapped_under_load_without_a_failed_request(serving):
    asked, stop = unit_vectors(1, 3, DIM), threading.Event()
    expected = {serving.versions[0]: small_index(0).search_vectors(asked, Options(10)).ids}
    answers: list[tuple[str, bool]] = []
    failures: list[Exception] = []

    def ask(kind: str) -> None:
        with AnnClient(serving.service.address(), timeout_s=10) as client:
            while not stop.is_set():
                try:
                    if kind == "vectors":
                        answer = client.search(asked, k=10)
                        right = answer.version in expected and np.array_equal(
                            np.concatenate(answer.ids), expected[answer.version]
                        )
                        answers.append((answer.version, right))
                    else:
                        client.search(picture=picture(), k=10)
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in ("vectors", "vectors", "pictures")]
    for thread in threads:
        thread.start()
    try:
        for seed in (1, 2, 3):
            following = small_index(seed).search_vectors(asked, Options(10)).ids
            parent = publish_embeddings(serving.store, serving.scratch / f"e{seed}", seed=seed)
            serving.scratch.joinpath(f"i{seed}").mkdir()
            small_index(seed).write(serving.scratch / f"i{seed}")
            version = serving.store.publish(
                "binary-index",
                serving.scratch / f"i{seed}",
                schema=2,
                parents={"embeddings": parent.version},
                ref=None,
            ).version
            expected[version] = following
            serving.store.set_ref("binary-index", version)
            serving.wait_for_version(version)
            wait_for(lambda v=version: answers[-1][0] == v, 10)
        first = serving.store.rollback("binary-index", serving.versions[0])
        serving.wait_for_version(first)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert all(right for _, right in answers)
    assert {version for version, _ in answers} == set(expected)


def cut_codes(store: ArtifactStore, version: str) -> None:
    file = Path(store.root) / f"t.binary-index/{version}/shard-00000/codes.npy"
    file.write_bytes(file.read_bytes()[:-8])


def flip_a_bit(store: ArtifactStore, version: str) -> None:
    file = Path(store.root) / f"t.binary-index/{version}/shard-00000/vectors.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_bad_version_is_refused_and_the_old_one_serves_on(serving):
    def refused(count: int) -> None:
        wait_for(
            lambda: serving.service.metric("vitrine_artifact_refused_total") == count, 20, serving.service.said
        )
        wait_for(lambda: serving.service.metric("vitrine_degraded") == 1, 10)
        assert serving.client.search(unit_vectors(1, 1, DIM), k=5).version == serving.versions[0]
        assert serving.service.serving()

    parent = serving.store.manifest("embeddings")
    count = 0
    for damage in (cut_codes, flip_a_bit):
        index = small_index(5)
        folder = serving.scratch / damage.__name__
        folder.mkdir()
        index.write(folder)
        version = serving.store.publish(
            "binary-index", folder, schema=2, parents={"embeddings": parent.version}, ref=None
        ).version
        damage(serving.store, version)
        serving.store.set_ref("binary-index", version)
        refused(count := count + 1)

    def publish(name: str, change, **options) -> None:
        folder = serving.scratch / name
        folder.mkdir()
        small_index(5, **options.pop("index", {})).write(folder)
        change(folder)
        serving.store.publish(
            "binary-index", folder, **{"schema": 2, "parents": {"embeddings": parent.version}} | options
        )

    publish("future", lambda folder: None, schema=3)
    refused(count := count + 1)
    publish("orphan", lambda folder: None, parents={})
    refused(count := count + 1)
    publish("mixed", lambda folder: np.save(folder / "shard-00000/codes.npy", segment_of(small_index(6)).codes))
    refused(count := count + 1)
    publish("other dim", lambda folder: None, index={"dim": DIM * 2})
    refused(count := count + 1)
    publish("pickle", lambda folder: np.save(folder / "shard-00000/ids.npy", np.array([{}]), allow_pickle=True))
    refused(count := count + 1)

    serving.store.set_ref("binary-index", serving.versions[0])  # rolled back to what is served on
    wait_for(lambda: serving.service.metric("vitrine_degraded") == 0, 10)
    assert serving.service.serving()
    good = serving.publish(7)
    serving.wait_for_version(good)
    wait_for(lambda: serving.service.metric("vitrine_degraded") == 0, 10)
    reasons = [json.loads(line) for line in serving.service.log.read_text().splitlines() if "refused" in line]
    assert any("codes.npy" in str(reason) for reason in reasons)


def test_embeddings_without_an_encoder_answer_vectors_and_refuse_pictures(running):
    parent = publish_embeddings(running.store, running.scratch / "e", encoder=False)
    publish_index(running.store, running.scratch / "i", parent)
    running.service.wait_serving()
    assert not running.client.stats().pictures
    with pytest.raises(InvalidArgumentError, match="no encoder"):
        running.client.search(picture=picture())
    assert running.client.search(unit_vectors(1, 1, DIM), k=1).ids[0][0] >= FIRST_ID


def test_it_says_what_it_lacks(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VITRINE_")} | {
        "PYTHONPATH": os.getcwd()
    }
    service = Service(["services.ann"], environment, tmp_path, "ann")
    assert service.wait_end() == 2
    assert "--store (or VITRINE_STORE) is required" in service.said()
