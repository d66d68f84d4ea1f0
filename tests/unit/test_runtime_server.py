"""The gRPC process: statuses, bounds, deadlines, metrics and drain, against real servers over TCP."""

import concurrent.futures
import json
import signal
import socket
import subprocess
import sys
import threading

import grpc
import pytest
import redis.exceptions
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from tests.small_ctr_server import SERVICE, SmallCtr, running
from tests.waiting import wait_for
from vitrine.api.ctr.v1 import ctr_pb2, ctr_pb2_grpc
from vitrine.runtime import errors, metrics
from vitrine.runtime.server import Process, StartError
from vitrine.runtime.settings import Settings

MIB = 2**20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server"), "--max-request-mb", "1", "--namespace", "eu") as up:
        yield up


@pytest.fixture
def ctr(server):
    with grpc.insecure_channel(server.address) as channel:
        yield ctr_pb2_grpc.CtrServiceStub(channel)


def score(stub, *ads, timeout=10):
    return stub.Score(ctr_pb2.ScoreRequest(ad_ids=ads), timeout=timeout)


def refusal(stub, *ads):
    with pytest.raises(grpc.RpcError) as error:
        score(stub, *ads)
    return error.value


def test_a_bad_field_is_invalid_argument_with_the_field_in_the_details(ctr):
    error = refusal(ctr, 5, 0)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "ad_ids[1]: 0 is reserved; ids are 1 or more"
    (detail,) = rpc_status.from_call(error).details
    bad = error_details_pb2.BadRequest()
    assert detail.Unpack(bad)
    assert [(v.field, v.description) for v in bad.field_violations] == [
        ("ad_ids[1]", "0 is reserved; ids are 1 or more")
    ]


@pytest.mark.parametrize(
    ("ad", "code", "message"),
    [
        (404, grpc.StatusCode.NOT_FOUND, "no ad 404"),
        (503, grpc.StatusCode.UNAVAILABLE, "no model is loaded yet"),
    ],
)
def test_domain_errors_keep_their_message(ctr, ad, code, message):
    error = refusal(ctr, ad)
    assert (error.code(), error.details()) == (code, message)


def test_a_bug_is_internal_leaks_nothing_and_is_in_the_log_under_its_reference(ctr, server):
    error = refusal(ctr, 500)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details() + str(error.trailing_metadata())
    reference = error.details().rpartition("reference ")[2].rstrip(")")
    (line,) = [json.loads(row) for row in server.log.read_text().splitlines() if reference in row]
    assert "RuntimeError: secret of the house" in line["exception"]
    assert list(score(ctr, 2).pctrs) == [0.5], "the server serves on"


@pytest.mark.parametrize(
    "error", [redis.exceptions.ConnectionError("cache:6379"), redis.exceptions.TimeoutError("x")]
)
def test_redis_lost_is_unavailable_and_does_not_tell_where_it_was(error):
    status = errors.to_status(error)
    assert status.code is grpc.StatusCode.UNAVAILABLE
    assert "cache" not in status.details


def test_a_request_over_the_bound_is_refused_and_one_under_it_is_not(ctr):
    wide = 2**63  # ten bytes as a varint
    assert len(score(ctr, *[wide] * (MIB // 10 - 10)).pctrs) == MIB // 10 - 10
    error = refusal(ctr, *[wide] * (MIB // 10 + 1))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert list(score(ctr, 4).pctrs) == [0.25], "the server serves on"


def test_calls_show_on_the_metrics_page_under_the_namespace(ctr, server):
    labels = {"grpc_service": SERVICE, "grpc_method": "Score", "namespace": "eu"}
    started = server.sample("grpc_server_started_total", **labels)
    ok = server.sample("grpc_server_handled_total", grpc_code="OK", **labels)
    bad = server.sample("grpc_server_handled_total", grpc_code="INVALID_ARGUMENT", **labels)
    timed = server.sample("grpc_server_handling_seconds_count", **labels)
    score(ctr, 2)
    refusal(ctr, 0)
    wait_for(lambda: server.sample("grpc_server_handling_seconds_count", **labels) == timed + 2)
    assert server.sample("grpc_server_started_total", **labels) == started + 2
    assert server.sample("grpc_server_handled_total", grpc_code="OK", **labels) == ok + 1
    assert server.sample("grpc_server_handled_total", grpc_code="INVALID_ARGUMENT", **labels) == bad + 1
    assert server.sample("vitrine_serving", namespace="eu") == 1


def test_bytes_that_are_no_message_are_refused_and_counted_like_any_bad_request(ctr, server):
    labels = {"grpc_service": SERVICE, "grpc_method": "Score", "grpc_code": "INVALID_ARGUMENT", "namespace": "eu"}
    bad = server.sample("grpc_server_handled_total", **labels)
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(f"/{SERVICE}/Score")(b"\xff" * 40, timeout=10)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "ScoreRequest" in error.value.details()
    wait_for(lambda: server.sample("grpc_server_handled_total", **labels) == bad + 1)
    assert list(score(ctr, 2).pctrs) == [0.5], "the server serves on"


def test_reflection_is_off_unless_asked_for(server):
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as error:
        ProtoReflectionDescriptorDatabase(channel).get_services()
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_artifact_version_replaces_the_one_before_it_on_the_page():
    metrics.artifact_served("test-model", "v1")
    metrics.artifact_served("test-model", "v2")
    rows = {
        sample.labels["version"]
        for metric in metrics.REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "vitrine_artifact_info" and sample.labels["name"] == "test-model"
    }
    assert rows == {"v2"}


class Gate(SmallCtr):
    """Holds every call at the gate until it is opened."""

    def __init__(self):
        super().__init__()
        self.began, self.open = threading.Semaphore(0), threading.Event()

    def Score(self, request, context):  # noqa: N802
        self.began.release()
        self.open.wait()
        return super().Score(request, context)


@pytest.fixture
def gated():
    """Starts an in-process server with these settings: its servicer, behind a gate, and a stub for it."""
    ends = []

    def _start(**options):
        gate = Gate()
        process = Process(
            Settings(**options), "ctr", lambda to: ctr_pb2_grpc.add_CtrServiceServicer_to_server(gate, to)
        )
        process.start()
        channel = grpc.insecure_channel(process.address)
        ends.append((gate, channel, process))
        return gate, ctr_pb2_grpc.CtrServiceStub(channel), process

    yield _start
    for gate, channel, process in ends:
        gate.open.set()
        channel.close()
        process.drain()


def test_a_call_whose_deadline_passed_in_the_queue_is_not_begun(gated):
    gate, stub, _ = gated(max_workers=1)
    first = stub.Score.future(ctr_pb2.ScoreRequest(ad_ids=[1]), timeout=30)
    gate.began.acquire()
    late = stub.Score.future(ctr_pb2.ScoreRequest(ad_ids=[2]), timeout=0.05)
    assert late.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    gate.open.set()
    score(stub, 3)
    assert first.result().version == "small-1"
    assert gate.calls == [[1], [3]]


def test_a_call_whose_caller_went_away_in_the_queue_is_not_begun(gated):
    gate, stub, _ = gated(max_workers=1)
    first = stub.Score.future(ctr_pb2.ScoreRequest(ad_ids=[1]), timeout=30)
    gate.began.acquire()
    gone = stub.Score.future(ctr_pb2.ScoreRequest(ad_ids=[2]), timeout=30)
    queued = stub.Score.future(ctr_pb2.ScoreRequest(ad_ids=[3]), timeout=0.2)
    assert queued.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED  # so that `gone` is in the queue by now
    gone.cancel()
    gate.open.set()
    score(stub, 4)
    assert first.result().version == "small-1"
    assert gate.calls == [[1], [4]]


def test_calls_over_the_concurrency_bound_are_refused_at_once(gated):
    gate, stub, _ = gated(max_workers=2, max_concurrent_rpcs=2)
    held = [stub.Score.future(ctr_pb2.ScoreRequest(ad_ids=[1]), timeout=30) for _ in range(2)]
    for _ in held:
        gate.began.acquire()
    assert refusal(stub, 2).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    gate.open.set()
    assert [call.result().version for call in held] == ["small-1", "small-1"]


class Aborts(SmallCtr):
    def Score(self, request, context):  # noqa: N802
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")


def test_a_status_that_the_handler_aborts_with_is_kept():
    process = Process(Settings(), "ctr", lambda to: ctr_pb2_grpc.add_CtrServiceServicer_to_server(Aborts(), to))
    process.start()
    with grpc.insecure_channel(process.address) as channel:
        error = refusal(ctr_pb2_grpc.CtrServiceStub(channel), 1)
    process.drain()
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not today")


def test_sigterm_lets_the_call_in_flight_finish_takes_no_new_one_and_exits_0(tmp_path):
    address_file = tmp_path / "address.json"
    flags = ("--address-file", str(address_file), "--reflection", "--drain-delay-ms", "300")
    with running(tmp_path, *flags) as server, grpc.insecure_channel(server.address) as channel:
        assert json.loads(address_file.read_text())["address"] == server.address
        assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()
        stub, health = ctr_pb2_grpc.CtrServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        slow = stub.Score.future(ctr_pb2.ScoreRequest(ad_ids=[1_002_000]), timeout=30)
        wait_for(lambda: server.sample("grpc_server_in_flight") == 1)
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert list(score(stub, 2).pctrs) == [0.5], "still answering in the time that balancers need to notice"
        wait_for(lambda: refused_as_gone(stub))
        assert slow.result().version == "small-1"
        assert server.process.wait(30) == 0
        assert not address_file.exists()


def refused_as_gone(stub):
    try:
        score(stub, 2)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE
    return False


def test_a_call_that_never_ends_does_not_hold_the_exit_up(tmp_path):
    with running(tmp_path, "--drain-s", "0.2") as server, grpc.insecure_channel(server.address) as channel:
        stub = ctr_pb2_grpc.CtrServiceStub(channel)
        endless = stub.Score.future(ctr_pb2.ScoreRequest(ad_ids=[1_600_000]), timeout=900)
        wait_for(lambda: server.sample("grpc_server_in_flight") == 1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 1
        assert endless.exception() is not None
    assert "calls did not end in time" in server.log.read_text()


def test_not_serving_while_loading_and_serving_after_it(tmp_path):
    with running(tmp_path, "--load-ms", "1500") as server, grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


@pytest.mark.parametrize(
    ("flag", "variable"),
    [
        ("--port", "VITRINE_PORT"),
        ("--metrics-port", "VITRINE_METRICS_PORT"),
        ("--health-port", "VITRINE_HEALTH_PORT"),
    ],
)
def test_a_port_in_use_is_one_line_that_says_what_to_change(flag, variable):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "tests.small_ctr_server", flag, str(port)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        f"vitrine ctr: cannot listen on 127.0.0.1:{port} (Address already in use); "
        f"give another {flag} (or {variable}), or 0 for a free one\n"
    )


def test_a_fixed_port_is_refused_to_a_second_server_of_ours(gated):
    _, _, first = gated()
    port = int(first.address.rpartition(":")[2])
    with pytest.raises(StartError, match="give another --port"):
        Process(Settings(port=port), "ctr").start()


def test_a_process_that_cannot_start_still_ends_its_parts(gated, capsys):
    _, _, first = gated()
    ended = []
    port = int(first.address.rpartition(":")[2])
    assert Process(Settings(port=port), "worker", on_drain=[lambda: ended.append(True)]).run() == 2
    assert ended == [True]
    assert "cannot listen" in capsys.readouterr().err


def test_a_drain_step_that_fails_shows_in_the_status_and_the_others_run():
    ran = []

    def fails():
        ran.append("first")
        raise OSError("disk gone")

    process = Process(Settings(), "worker", on_drain=[fails, lambda: ran.append("second")])
    process.start()
    assert process.drain() == 1
    assert ran == ["first", "second"]


def test_any_thread_can_end_the_process_with_a_status():
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    process = Process(Settings(), "worker")
    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            pool.submit(process.stop, 3)
            assert process.run() == 3
    finally:
        signal.signal(signal.SIGTERM, handlers[0])
        signal.signal(signal.SIGINT, handlers[1])
