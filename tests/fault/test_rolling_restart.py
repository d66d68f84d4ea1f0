"""Servers and workers restarted in turn under load: no call fails, no event is lost or counted twice."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np

from loadtest import engine
from tests.matching_live import live
from tests.small_ctr_server import SmallCtr, running
from vitrine.api.ctr.v1 import ctr_pb2_grpc
from vitrine.client import CtrClient, UserContext
from vitrine.runtime.server import Process
from vitrine.runtime.settings import Settings

NOBODY = UserContext(np.empty(0, np.uint64), np.empty(0, np.float32))
RATE = 150.0  # calls a second
DRAIN = ("--drain-delay-ms", "500")


class Scores:
    """Calls of the client library, as the engine drives them; the server takes 5 ms for each."""

    def __init__(self, target: str) -> None:
        self._client = CtrClient(target, timeout_s=5)
        self._pool = ThreadPoolExecutor(32)

    def send(self, number):
        return self._pool.submit(self._client.score, NOBODY, [2, 1_000_005])

    def wrong(self, number, scores):
        return None if scores.pctrs[0] == 0.5 else f"wrong answer: {scores.pctrs}"


class Load:
    """An open loop in a thread, until `end`."""

    def __init__(self, target: str) -> None:
        self._stopped, self._found = threading.Event(), []
        self._thread = threading.Thread(target=self._run, args=(Scores(target),))
        self._thread.start()

    def _run(self, calls: Scores) -> None:
        self._found.append(engine.open_loop(calls, RATE, 120, stopped=self._stopped.is_set))

    def end(self):
        self._stopped.set()
        self._thread.join()
        return self._found[0]


def test_servers_restarted_in_turn_fail_no_call(tmp_path):
    with ExitStack() as ending:
        replicas = [ending.enter_context(running(tmp_path, *DRAIN)) for _ in range(2)]
        load = Load("ipv4:" + ",".join(replica.address for replica in replicas))
        ending.callback(load.end)
        time.sleep(0.5)
        for replica in replicas:
            replica.process.terminate()
            assert replica.process.wait(30) == 0
            port = replica.address.rsplit(":", 1)[1]
            again = ending.enter_context(running(tmp_path, *DRAIN, "--port", port))
            assert again.address == replica.address
            time.sleep(1.0)  # clients come back within half a second
            assert again.sample("grpc_server_handled_total", grpc_code="OK") > 0
        seen = load.end()
    assert seen.failures == {}
    assert seen.sent > RATE


def test_a_client_leaves_a_server_that_says_not_serving_before_it_stops():
    servicers = [SmallCtr(), SmallCtr()]
    servers = [
        Process(Settings(), "ctr", lambda to, s=s: ctr_pb2_grpc.add_CtrServiceServicer_to_server(s, to))
        for s in servicers
    ]
    for server in servers:
        server.start()
    try:
        target = "ipv4:" + ",".join(server.address for server in servers)
        with CtrClient(target, timeout_s=5, wait_for_ready=True) as client:
            while not all(servicer.calls for servicer in servicers):
                client.score(NOBODY, [2])
            servers[0].health.drain()  # it would still answer
            time.sleep(0.5)
            before = len(servicers[0].calls)
            for _ in range(20):
                client.score(NOBODY, [2])
            assert len(servicers[0].calls) == before
    finally:
        for server in servers:
            server.drain()


def test_workers_restarted_in_turn_lose_and_double_no_event(stack, namespace, tmp_path):
    with live(stack, namespace, tmp_path) as run:
        workers = {name: run.worker(name) for name in ("first", "second")}
        for worker in workers.values():
            worker.wait_serving()
        ended, rng = threading.Event(), np.random.default_rng(5)

        def send() -> None:
            while not ended.is_set():
                run.send_random(rng, 50)
                time.sleep(0.05)

        sending = threading.Thread(target=send)
        sending.start()
        try:
            for name in workers:
                workers[name].process.terminate()
                assert workers[name].wait_end() == 0
                before = run.store.applied()
                workers[name] = run.worker(name).wait_serving()
                assert run.store.applied() > before, "events flow on while a worker is away"
        finally:
            ended.set()
            sending.join()
        run.check()
