"""Who may call: the file's rules, tokens, methods, rates, refusals that leak nothing, and changes while serving."""

import hashlib
import json
import re
import threading
import time

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.small_ctr_server import SERVICE, SmallCtr
from tests.waiting import wait_for
from vitrine import channels
from vitrine.api.ctr.v1 import ctr_pb2, ctr_pb2_grpc
from vitrine.cli import app
from vitrine.client import (
    CtrClient,
    PermissionDeniedError,
    ResourceExhaustedError,
    Security,
    UnauthenticatedError,
    UserContext,
)
from vitrine.runtime import callers as callers_module
from vitrine.runtime import metrics
from vitrine.runtime.callers import Bucket, Callers, Refused, parse
from vitrine.runtime.files import FileError
from vitrine.runtime.server import Process
from vitrine.runtime.settings import Settings

NOBODY = UserContext(np.empty(0, np.uint64), np.empty(0, np.float32))
REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def entry(name, token=None, methods=(f"{SERVICE}/Score",), **fields):
    digest = hashlib.sha256((token or f"token-of-{name}").encode()).hexdigest()
    lines = [f'name = "{name}"', f'token_sha256 = "{digest}"', f"methods = {json.dumps(list(methods))}"]
    return "\n".join(["[[callers]]", *lines, *(f"{k} = {json.dumps(v)}" for k, v in fields.items()), ""])


@pytest.fixture
def start(tmp_path):
    started = []

    def _start(*entries, **options):
        file = tmp_path / "callers.toml"
        file.write_text("\n".join(entries))
        small = SmallCtr()
        process = Process(
            Settings(callers=file, **options),
            "ctr",
            lambda to: ctr_pb2_grpc.add_CtrServiceServicer_to_server(small, to),
        )
        process.file, process.calls = file, small.calls
        process.start()
        started.append(process)
        return process

    yield _start
    for process in started:
        process.drain()


def score(process, token, ads=(2,)):
    with CtrClient(process.address, security=Security(token=token), timeout_s=10) as ctr:
        return ctr.score(NOBODY, list(ads)).pctrs.tolist()


def refusals(**labels):
    found = metrics.REGISTRY.get_sample_value("vitrine_calls_refused_total", labels)
    return found or 0.0


def started_calls():
    labels = {"grpc_service": SERVICE, "grpc_method": "Score"}
    return metrics.REGISTRY.get_sample_value("grpc_server_started_total", labels) or 0.0


def test_a_caller_is_known_by_its_token_and_may_call_its_methods(start):
    process = start(entry("one"), entry("two", methods=[f"{SERVICE}/*"]))
    assert score(process, "token-of-one") == [0.5]
    assert score(process, "token-of-two") == [0.5]


@pytest.mark.parametrize(
    ("security", "error", "caller", "reason"),
    [
        (None, UnauthenticatedError, "", "no_token"),
        (Security(token="token-of-nobody"), UnauthenticatedError, "", "wrong_token"),  # noqa: S106
        (Security(token="token-of-reader"), PermissionDeniedError, "reader", "method"),  # noqa: S106
    ],
)
def test_a_refusal_is_a_clear_status_counted_and_reaches_no_service(start, security, error, caller, reason):
    process = start(entry("one"), entry("reader", methods=["console/read"]))
    before, begun = refusals(caller=caller, reason=reason), started_calls()
    with CtrClient(process.address, security=security, timeout_s=10) as ctr, pytest.raises(error) as refused:
        ctr.score(NOBODY, [2])
    assert refusals(caller=caller, reason=reason) == before + 1
    assert (process.calls, started_calls()) == ([], begun)
    assert not re.search(r"one|reader|token-of|callers\.toml|/", refused.value.message)


def test_a_refusal_does_not_tell_whether_the_method_exists(start):
    process = start(entry("reader", methods=["console/read"]))

    def answer(method, metadata):
        with grpc.insecure_channel(process.address) as channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(method)(b"", metadata=metadata, timeout=10)
        return error.value.code(), error.value.details(), error.value.trailing_metadata()

    for metadata in (
        (),
        (("authorization", "Bearer guessed"),),
        (("authorization", "Basic dXNlcjpwYXNz"),),
        (("authorization", "Bearer token-of-reader"),),
    ):
        assert answer(f"/{SERVICE}/Score", metadata) == answer("/no.such.Service/AtAll", metadata)


def test_a_refused_call_is_not_even_parsed(start):
    process = start(entry("one"))
    with grpc.insecure_channel(process.address) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(f"/{SERVICE}/Score")(b"\xff" * 40, timeout=10)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_streams_need_a_permission_like_any_method_and_health_is_open(start):
    process = start(entry("one"), entry("looker", methods=[REFLECTION]), reflection=True)
    with grpc.insecure_channel(process.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        for token, code in ((None, "UNAUTHENTICATED"), ("one", "PERMISSION_DENIED")):
            metadata = (("authorization", f"Bearer token-of-{token}"),) if token else None
            call = channel.stream_stream(f"/{REFLECTION}")(iter([]), metadata=metadata, timeout=10)
            with pytest.raises(grpc.RpcError) as error:
                next(call)
            assert error.value.code().name == code
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            ProtoReflectionDescriptorDatabase(channel).get_services()

        class Bearer(grpc.StreamStreamClientInterceptor):
            def intercept_stream_stream(self, continuation, details, requests):
                named = details._replace(metadata=[("authorization", "Bearer token-of-looker")])
                return continuation(named, requests)

        shown = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, Bearer())).get_services()
        assert SERVICE in shown


def test_a_caller_over_its_rate_is_told_when_to_come_back_and_holds_up_nobody_else(start):
    process = start(entry("fast"), entry("slow", rate_per_s=0.001, burst=2))
    before = refusals(caller="slow", reason="rate")
    assert [score(process, "token-of-slow") for _ in range(2)] == [[0.5], [0.5]]
    with pytest.raises(ResourceExhaustedError, match="over its rate") as refused:
        score(process, "token-of-slow")
    assert refused.value.retry_after_s == pytest.approx(1000, rel=0.1)
    assert refusals(caller="slow", reason="rate") == before + 1, "the client does not try again by itself"
    assert score(process, "token-of-fast") == [0.5]
    with grpc.insecure_channel(process.address) as channel:
        stub, metadata = ctr_pb2_grpc.CtrServiceStub(channel), [("authorization", "Bearer token-of-slow")]
        with pytest.raises(grpc.RpcError) as error:
            stub.Score(ctr_pb2.ScoreRequest(ad_ids=[2]), timeout=10, metadata=metadata)
    (detail,) = rpc_status.from_call(error.value).details
    info = error_details_pb2.RetryInfo()
    assert detail.Unpack(info)
    assert info.retry_delay.seconds > 900


def test_a_refusal_waits_for_no_worker(start):
    process = start(entry("one"), max_workers=1)
    busy = threading.Thread(target=lambda: score(process, "token-of-one", [1_001_000]))
    busy.start()
    deadline = time.monotonic() + 20
    while not process.in_flight:
        assert time.monotonic() < deadline
    with pytest.raises(UnauthenticatedError):
        score(process, "wrong")
    assert process.in_flight == 1, "the only worker is busy still"
    busy.join()


def test_the_behaviour_knows_its_caller(start, tmp_path):
    seen = []

    class Asks(SmallCtr):
        def Score(self, request, context):  # noqa: N802
            seen.append(callers_module.current.get())
            return super().Score(request, context)

    file = tmp_path / "two.toml"
    file.write_text(entry("one") + entry("two"))
    process = Process(
        Settings(callers=file), "ctr", lambda to: ctr_pb2_grpc.add_CtrServiceServicer_to_server(Asks(), to)
    )
    process.start()
    score(process, "token-of-one")
    score(process, "token-of-two")
    process.drain()
    assert seen == ["one", "two"]


def test_the_file_is_read_again_and_a_bad_version_is_refused_with_the_reason_shown(start):
    def degraded():
        return metrics.REGISTRY.get_sample_value("vitrine_degraded", {"reason": "callers"})

    process = start(entry("one"))
    process.file.write_text(entry("one") + entry("two"))

    def known(token):
        try:
            return score(process, token) == [0.5]
        except UnauthenticatedError:
            return False

    wait_for(lambda: known("token-of-two"))
    for bad in ("", entry("three", rate_per_s=-1)):
        process.file.write_text(bad)
        wait_for(lambda: degraded() == 1)
        assert known("token-of-two"), "the version before is used on"
        process.file.write_text(entry("two"))
        wait_for(lambda: degraded() == 0)
    wait_for(lambda: not known("token-of-one"))


def test_a_new_version_of_the_file_does_not_fill_a_bucket(tmp_path):
    file = tmp_path / "callers.toml"
    file.write_text(entry("slow", rate_per_s=0.001, burst=1))
    callers = Callers(file, every_s=3600)
    header = "Bearer token-of-slow"
    assert callers.admit(header, f"{SERVICE}/Score").name == "slow"
    file.write_text(entry("other") + entry("slow", rate_per_s=0.001, burst=1))
    callers._file.look()
    with pytest.raises(Refused) as refused:
        callers.admit(header, f"{SERVICE}/Score")
    assert refused.value.reason == "rate"
    callers.close()


def test_a_caller_may_have_two_tokens_while_it_changes_them(tmp_path):
    digests = [hashlib.sha256(t).hexdigest() for t in (b"old", b"new")]
    table = parse(f'[[callers]]\nname="x"\ntoken_sha256={json.dumps(digests)}\nmethods=["a.B/C"]'.encode(), "f")
    assert {caller.name for caller in table.values()} == {"x"}
    assert len(table) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "f: no [[callers]], so nobody could call; `vitrine callers new` prints one"),
        ("callers = 3", "f: no [[callers]]"),
        ("[[callers]", "f is not TOML: "),
        ("limit = 3\n" + entry("a"), "f: limit: unknown; the file holds [[callers]] alone"),
        ("callers = [1]", "f: callers, entry 1: should be a table"),
        (entry("a") + entry("a", token="b"), "f: callers, entry 2 ('a'): name: already taken"),  # noqa: S106
        (entry("a") + entry("b", token="token-of-a"), "f: callers, entry 2 ('b'): token_sha256: is 'a''s"),  # noqa: S106
        (entry("a b"), "f: callers, entry 1 ('a b'): name: should be 1 to 64"),
        ('[[callers]]\nmethods=["a.B/C"]', "f: callers, entry 1: name: should be"),
        (entry("a", rate=3), "f: callers, entry 1 ('a'): rate: unknown; fields are burst, methods,"),
        (entry("a", methods=[]), "('a'): methods: should be a list of"),
        (entry("a", methods=["*"]), "('a'): methods: should be \"package.Service/Method\" or"),
        (entry("a", methods=["/a.B/C"]), "not '/a.B/C'"),
        (entry("a", methods=["a.B/*/*"]), "not 'a.B/*/*'"),
        (entry("a", rate_per_s=0), "('a'): rate_per_s: should be a number above 0, calls a second, not 0"),
        (entry("a", rate_per_s="9"), "('a'): rate_per_s: should be a number above 0, calls a second, not '9'"),
        (entry("a", rate_per_s=True), "rate_per_s: should be a number"),
        (entry("a", rate_per_s=5, burst=0), "('a'): burst: should be 1 or more calls at once, not 0"),
        (entry("a", burst=5), "('a'): burst: needs rate_per_s beside it"),
    ],
)
def test_a_bad_file_is_refused_naming_entry_field_and_way_out(text, says):
    with pytest.raises(FileError) as error:
        parse(text.encode(), "f")
    assert says in str(error.value)


def test_a_token_in_the_hashs_place_is_refused_without_being_repeated():
    with pytest.raises(FileError, match="never the token") as error:
        parse(b'[[callers]]\nname="a"\ntoken_sha256="hunter2"\nmethods=["a.B/C"]', "f")
    assert "hunter2" not in str(error.value)


@given(st.floats(0.5, 50), st.integers(1, 20), st.lists(st.floats(0, 3), min_size=1, max_size=60))
def test_a_bucket_lets_through_burst_plus_rate_and_no_more_whatever_the_arrivals(rate, burst, gaps):
    now = 0.0
    bucket = Bucket(rate, burst, clock=lambda: now)
    taken = []
    for gap in gaps:
        now += gap
        wait = bucket.take()
        if wait:
            now += wait * (1 + 1e-9) + 1e-9  # as long as it said, and one may go on
            assert bucket.take() == 0
        taken.append(now)
    for first, begin in enumerate(taken):  # in every window, so that idle time is worth no more than a burst
        for last, end in enumerate(taken[first:], start=first):
            assert last - first + 1 <= burst + rate * (end - begin) + 1e-6


def run(*arguments):
    return CliRunner().invoke(app, ["callers", *arguments])


def test_a_client_takes_up_a_new_token_between_calls(start, tmp_path, monkeypatch):
    monkeypatch.setattr(channels, "_LOOK_EVERY_S", 0.0)
    process, file = start(entry("one")), tmp_path / "token"
    file.write_text("stale\n")
    with CtrClient(process.address, security=Security(token_file=str(file)), timeout_s=10) as ctr:
        with pytest.raises(UnauthenticatedError):
            ctr.score(NOBODY, [2])
        file.write_text("token-of-one\n")
        assert ctr.score(NOBODY, [2]).pctrs.tolist() == [0.5]
        file.write_text("")  # half a rotation: the token before is used on
        assert ctr.score(NOBODY, [2]).pctrs.tolist() == [0.5]


def test_new_prints_the_token_once_and_its_entry_lets_it_in(start, tmp_path):
    file = tmp_path / "made.toml"
    file.write_text(entry("before"))
    made = run("new", "front", "--method", f"{SERVICE}/Score", "--rate-per-s", "5", "--file", str(file))
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()
    assert token not in file.read_text()
    process = start(file.read_text())
    assert score(process, token) == [0.5]
    shown = run("check", str(file))
    assert (shown.exit_code, shown.stdout.splitlines()[1]) == (0, f"front: 5/s, 5 at once: {SERVICE}/Score")
    again = run("new", "front", "--method", f"{SERVICE}/Score", "--file", str(file))
    assert again.exit_code == 2
    assert "name: already taken" in again.stderr


def test_new_without_a_file_prints_the_entry_apart_from_the_token():
    made = run("new", "front", "--method", "vitrine.api.ctr.v1.CtrService/Scor")
    token, text = made.stdout.strip(), made.stderr
    assert "this version knows no method vitrine.api.ctr.v1.CtrService/Scor" in text
    entry_text = text[text.index("[[callers]]") :]
    assert list(parse(entry_text.encode(), "f")) == [hashlib.sha256(token.encode()).digest()]


def test_check_names_what_a_server_would_refuse(tmp_path):
    file = tmp_path / "callers.toml"
    file.write_text(entry("a", methods=["CtrService"]))
    refused = run("check", str(file))
    assert refused.exit_code == 1
    assert f"vitrine callers check: {file}: callers, entry 1 ('a'): methods: should be" in refused.stderr
    assert run("check", str(tmp_path / "none")).exit_code == 1
