"""The health port: health and nothing else, open when the rest is not, in gRPC and HTTP processes alike."""

import json
import threading
import time
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.small_ctr_server import SERVICE, SmallCtr
from vitrine.api.ctr.v1 import ctr_pb2, ctr_pb2_grpc
from vitrine.runtime.health import LIVE, is_serving
from vitrine.runtime.http import HttpFront
from vitrine.runtime.lifecycle import Lifecycle
from vitrine.runtime.server import Process
from vitrine.runtime.settings import Settings


@pytest.fixture
def process(capsys):
    ready = {"model": "still loading"}
    started = Process(
        Settings(),
        "ctr",
        lambda to: ctr_pb2_grpc.add_CtrServiceServicer_to_server(SmallCtr(), to),
        ready={"model": lambda: ready["model"]},
    )
    started.start()
    started.ready = ready
    started.said = json.loads(capsys.readouterr().out)
    yield started
    started.drain()


def test_its_address_is_announced_and_it_says_what_the_checks_say(process):
    health = process.said["health"]
    assert len({health, process.said["address"], process.said["metrics"]}) == 3
    assert not is_serving(health)
    process.ready["model"] = None
    process.health.refresh()
    assert is_serving(health)
    assert is_serving(health, SERVICE)


def test_it_answers_nothing_but_health(process):
    with grpc.insecure_channel(process.health_address) as channel, pytest.raises(grpc.RpcError) as error:
        ctr_pb2_grpc.CtrServiceStub(channel).Score(ctr_pb2.ScoreRequest(ad_ids=[1]), timeout=10)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_liveness_holds_while_loading_and_through_the_drain(process):
    assert is_serving(process.health_address, LIVE)
    with grpc.insecure_channel(process.health_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        process.health.drain()
        answer = stub.Check(health_pb2.HealthCheckRequest(service=LIVE), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert not is_serving(process.health_address)


def test_an_http_process_has_health_metrics_and_a_drain_that_waits(capsys):
    begun, release = threading.Event(), threading.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": message["type"] + ".complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        begun.set()
        import asyncio

        await asyncio.to_thread(release.wait, 20)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})

    settings = Settings()
    process = Lifecycle(settings, "console", HttpFront(settings, app))
    process.start()
    said = json.loads(capsys.readouterr().out)
    assert is_serving(said["health"])
    with urllib.request.urlopen(f"http://{said['metrics']}/metrics", timeout=10) as answer:
        assert b"vitrine_serving" in answer.read()

    answers, statuses = [], []

    def ask():
        with urllib.request.urlopen(f"http://{said['address']}/", timeout=30) as answer:
            answers.append(answer.read())

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(20)
    assert process.in_flight == 1
    draining = threading.Thread(target=lambda: statuses.append(process.drain()))
    draining.start()
    deadline = time.monotonic() + 20
    while is_serving(said["health"]):
        assert time.monotonic() < deadline
    release.set()
    asking.join(20)
    draining.join(20)
    assert (answers, statuses) == ([b"whole"], [0])
