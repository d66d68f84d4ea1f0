"""The ctr service as a process: honest health, swaps under load, bad versions and bad requests survived."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from ctr_kit import plain_pctr, random_model, random_user
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from vitrine.api.ctr.v1 import ctr_pb2 as pb
from vitrine.api.ctr.v1.ctr_pb2_grpc import CtrServiceStub
from vitrine.artifacts import ArtifactStore
from vitrine.ctr import model

ROOT = Path(__file__).parents[2]
SERVICE = "vitrine.api.ctr.v1.CtrService"


class Ctr:
    """A running service and its store."""

    def __init__(self, store: Path, scratch: Path, channel: grpc.Channel, log: Path) -> None:
        self.store = ArtifactStore(str(store))
        self.stub = CtrServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.log = log
        self._scratch = scratch

    def publish(self, seed: int, schema: int = model.SCHEMA) -> str:
        folder = self._scratch / f"model-{seed}-{schema}"
        random_model(seed).write(folder)
        return self.store.publish(model.KIND, folder, schema=schema).version

    def score(self, ads=(100, 101), user: int = 1) -> pb.ScoreResponse:
        return self.stub.Score(request(ads, user), timeout=5)

    def serving(self, service: str = SERVICE) -> bool:
        answer = self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return answer.status == health_pb2.HealthCheckResponse.SERVING


def request(ads=(100, 101), user: int = 1) -> pb.ScoreRequest:
    keys, weights = random_user(user)
    made = pb.ScoreRequest(ad_ids=ads)
    made.context.keys.extend(keys.tolist())
    made.context.weights.extend(weights.tolist())
    return made


@pytest.fixture
def ctr(tmp_path) -> Iterator[Ctr]:
    log = tmp_path / "ctr.log"
    (tmp_path / "store").mkdir()
    command = [sys.executable, "-m", "services.ctr", "--store", str(tmp_path / "store"), "--poll-s", "0.05"]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        line = process.stdout.readline()
        assert line, log.read_text()
        with grpc.insecure_channel(json.loads(line)["address"]) as channel:
            yield Ctr(tmp_path / "store", tmp_path, channel, log)
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def refused_field(call: Callable[[], object]) -> str:
    """The field that an INVALID_ARGUMENT names."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    details = error_details_pb2.BadRequest()
    assert rpc_status.from_call(caught.value).details[0].Unpack(details)
    return details.field_violations[0].field


def test_it_serves_once_a_model_is_there_and_scores_as_the_plain_machine(ctr: Ctr):
    assert not ctr.serving()
    with pytest.raises(grpc.RpcError) as caught:
        ctr.score()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "vitrine train des" in caught.value.details()

    version = ctr.publish(0)
    wait_for(ctr.serving)
    ads = [*random_model(0).ads.tolist(), 7]
    answer = ctr.score(ads)
    assert answer.version == version
    assert answer.unknown_ads == 1
    wanted = [plain_pctr(random_model(0), *random_user(1), ad) for ad in ads]
    assert list(answer.pctrs) == pytest.approx(wanted, abs=1e-5)


def test_a_new_version_is_swapped_in_under_load_without_a_failed_request(ctr: Ctr):
    versions = {ctr.publish(0): 0}
    wait_for(ctr.serving)
    answers, failures, ended = [], [], threading.Event()

    def call() -> None:
        while not ended.is_set():
            try:
                answers.append(ctr.score())
            except grpc.RpcError as error:
                failures.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    with _ended(callers, ended):
        for seed in (1, 2, 3):
            version = ctr.publish(seed)
            versions[version] = seed
            wait_for(lambda version=version: answers[-1].version == version)
    assert failures == []
    assert {answer.version for answer in answers} == versions.keys()
    wanted = {
        version: [plain_pctr(random_model(seed), *random_user(1), ad) for ad in (100, 101)]
        for version, seed in versions.items()
    }
    for answer in answers:  # of one version each, never a mixture
        assert list(answer.pctrs) == pytest.approx(wanted[answer.version], abs=1e-5)


@contextlib.contextmanager
def _ended(threads: list[threading.Thread], event: threading.Event) -> Iterator[None]:
    try:
        yield
    finally:
        event.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("fault", ["corrupt", "truncated", "future schema", "not a model"])
def test_a_bad_version_is_refused_and_the_old_one_served_on(ctr: Ctr, fault: str):
    good = ctr.publish(0)
    wait_for(ctr.serving)
    before = ctr.score()
    if fault == "future schema":
        bad = ctr.publish(1, schema=model.SCHEMA + 1)
    elif fault == "not a model":
        (ctr._scratch / "odd").mkdir()
        np.save(ctr._scratch / "odd" / "keys.npy", np.ones(3))
        bad = ctr.store.publish(model.KIND, ctr._scratch / "odd", schema=model.SCHEMA).version
    else:
        folder = ctr._scratch / "spoilt"
        random_model(1).write(folder)
        bad = ctr.store.publish(model.KIND, folder, schema=model.SCHEMA, ref=None).version
        file = next(Path(ctr.store.root).glob(f"**/{bad}/v.npy"))
        whole = file.read_bytes()
        file.chmod(0o644)
        file.write_bytes(whole[:-9] if fault == "truncated" else whole[:-1] + bytes([whole[-1] ^ 1]))
        ctr.store.set_ref(model.KIND, bad)
    wait_for(lambda: f"{bad} is refused" in ctr.log.read_text())
    assert ctr.score() == before
    assert ctr.score().version == good
    assert ctr.serving()

    mended = ctr.publish(2)
    wait_for(lambda: ctr.score().version == mended)


def test_bad_requests_are_refused_by_field_and_the_service_lives(ctr: Ctr):
    ctr.publish(0)
    wait_for(ctr.serving)
    before = ctr.score()

    def spoilt(spoil: Callable[[pb.ScoreRequest], object]) -> pb.ScoreRequest:
        made = request()
        spoil(made)
        return made

    cases = [
        (request([]), "ad_ids"),
        (request([100] * 5_001), "ad_ids"),
        (spoilt(lambda r: r.context.weights.append(1)), "context.weights"),
        (spoilt(lambda r: r.context.weights.__setitem__(3, float("nan"))), "context.weights"),
        (spoilt(lambda r: r.context.weights.__setitem__(0, float("inf"))), "context.weights"),
        (spoilt(lambda r: r.context.keys.extend(range(10_001))), "context.keys"),
    ]
    for made, field in cases:
        assert refused_field(lambda made=made: ctr.stub.Score(made, timeout=5)) == field
    with pytest.raises(grpc.RpcError) as caught:
        ctr.stub.Score(request(), timeout=-1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED

    assert len(ctr.score([100] * 5_000).pctrs) == 5_000
    unknown_user = ctr.stub.Score(pb.ScoreRequest(ad_ids=[100]), timeout=5)
    assert len(unknown_user.pctrs) == 1
    assert ctr.score() == before
