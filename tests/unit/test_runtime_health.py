"""Health: what it answers follows the checks, over a real channel."""

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.small_ctr_server import SERVICE, SmallCtr
from vitrine.api.ctr.v1 import ctr_pb2_grpc
from vitrine.runtime import metrics
from vitrine.runtime.health import Health
from vitrine.runtime.server import Process
from vitrine.runtime.settings import Settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def add_small_ctr(server):
    ctr_pb2_grpc.add_CtrServiceServicer_to_server(SmallCtr(), server)


@pytest.fixture
def start():
    started = []

    def _start(**options):
        process = Process(Settings(), "ctr", add_small_ctr, **options)
        process.start()
        channel = grpc.insecure_channel(process.address)
        started.append((process, channel))
        return process, health_pb2_grpc.HealthStub(channel)

    yield _start
    for process, channel in started:
        channel.close()
        process.drain()


def status(stub, service=""):
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def test_not_serving_until_every_check_passes_and_again_when_one_fails(start):
    reasons = {"index": "no index is loaded", "catalog": None}
    process, stub = start(ready={"index": lambda: reasons["index"], "catalog": lambda: reasons["catalog"]})
    assert [status(stub), status(stub, SERVICE)] == [NOT_SERVING, NOT_SERVING]
    reasons["index"] = None
    process.health.refresh()
    assert [status(stub), status(stub, SERVICE)] == [SERVING, SERVING]
    reasons["catalog"] = "Kafka was last heard 40 s ago"
    process.health.refresh()
    assert [status(stub), status(stub, SERVICE)] == [NOT_SERVING, NOT_SERVING]


def test_a_service_that_is_not_here_is_not_found(start):
    _, stub = start()
    with pytest.raises(grpc.RpcError) as error:
        status(stub, "vitrine.api.ann.v1.AnnService")
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_watch_tells_each_change_without_being_asked(start):
    ready = threading.Event()
    process, stub = start(ready=lambda: ready.is_set() or "still loading")
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=30)
    assert next(watch).status == NOT_SERVING
    ready.set()  # the process's own thread finds out
    assert next(watch).status == SERVING
    process.health.drain()
    assert [answer.status for answer in watch] == [NOT_SERVING], "and the stream ends"


def test_many_watchers_leave_the_workers_free(start):
    _, stub = start()
    watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(40)]
    assert {next(watch).status for watch in watches} == {SERVING}
    assert status(stub) == SERVING
    for watch in watches:
        watch.cancel()


def test_watchers_that_hang_up_while_the_status_changes_hold_up_nobody(start):
    ready = [True]
    process, stub = start(ready=lambda: ready[0])

    def change():
        for _ in range(20):
            watches = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=30) for _ in range(10)]
            for watch in watches:
                next(watch)
            hang_up = threading.Thread(target=lambda: [watch.cancel() for watch in watches])  # noqa: B023
            hang_up.start()
            ready[0] = not ready[0]
            process.health.refresh()
            hang_up.join()

    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    changing.join(60)
    assert not changing.is_alive(), "a change of status and a caller that hung up wait for each other"


def test_a_check_that_raises_counts_as_failed(start):
    def broken():
        raise OSError("disk gone")

    _, stub = start(ready={"disk": broken})
    assert status(stub) == NOT_SERVING


def test_degraded_shows_and_serves_on(start):
    lost = {"reason": "Redis does not answer"}
    process, stub = start(degraded={"redis": lambda: lost["reason"]})
    assert status(stub) == SERVING
    assert metrics.REGISTRY.get_sample_value("vitrine_degraded", {"reason": "redis"}) == 1
    lost["reason"] = None
    process.health.refresh()
    assert metrics.REGISTRY.get_sample_value("vitrine_degraded", {"reason": "redis"}) == 0


def test_after_drain_no_check_brings_it_back():
    health = Health({"always": lambda: None})
    assert health.refresh()
    health.drain()
    assert not health.refresh()
    assert not health.serving
