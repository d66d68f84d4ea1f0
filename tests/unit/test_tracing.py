"""Traces: nothing without an endpoint, one trace across a call, and no harm from what is malformed or away."""

import io
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests import small_ctr_server
from vitrine import trace_context
from vitrine.client import CtrClient, UserContext
from vitrine.runtime import logs, tracing

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MALFORMED = (
    "",
    "00",
    "nonsense",
    SAMPLED[:-1],
    SAMPLED + "0",
    SAMPLED.upper(),
    SAMPLED.replace("-", "_"),
    "ff" + SAMPLED[2:],
    f"00-{'0' * 32}-b7ad6b7169203331-01",
    f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333g-01",
)


def spans(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def trace_id(span: dict) -> str:
    return span["context"]["trace_id"].removeprefix("0x")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Traces of this process, into a file."""
    tracing.setup(f"file://{tmp_path}/spans.jsonl", 1.0, "test", "blue")
    yield tmp_path / "spans.jsonl"
    tracing.close()


def test_without_an_endpoint_no_tracer_is_imported():
    script = """
import sys
import vitrine.client
from services.ctr import server
from services.matching import server, worker
from vitrine import trace_context
from vitrine.runtime import tracing
tracing.setup("", 1.0, "test")
assert tracing.parent([("traceparent", b"x")]) is None
with tracing.span("s") as trace_id:
    assert trace_id == "" and trace_context.headers() == [] and trace_context.ids() == {}
def call(data, context): pass
assert tracing.around(call, "/a.b/C") is call
# redis-py brings in the names and the metrics of the OpenTelemetry that it finds.
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert ended.stdout.strip() == "[]", ended.stderr


def test_a_call_and_its_log_lines_are_in_the_callers_trace(file: Path, tmp_path: Path):
    endpoint = f"file://{tmp_path}/server.jsonl"
    with small_ctr_server.running(tmp_path, "--otlp-endpoint", endpoint, "--trace-ratio", "0") as server:
        with CtrClient(server.address, timeout_s=10) as ctr:
            with tracing.span("page") as page:
                ctr.score(UserContext([], []), [1, 2])
            with tracing.span("broken page") as broken, pytest.raises(Exception, match="INTERNAL"):
                ctr.score(UserContext([], []), [500])
            ctr.score(UserContext([], []), [3])  # in no trace, and the server begins none
        log = server.log
    tracing.close()
    page_span, broken_span = spans(file)
    assert page_span["resource"]["attributes"]["service.name"] == "test"
    assert page_span["resource"]["attributes"]["vitrine.namespace"] == "blue"
    good, bad = spans(tmp_path / "server.jsonl")
    assert (trace_id(good), trace_id(bad)) == (page, broken)
    assert good["name"] == "vitrine.api.ctr.v1.CtrService/Score"
    assert good["kind"] == "SpanKind.SERVER"
    assert good["parent_id"] == page_span["context"]["span_id"]
    assert good["status"]["status_code"] == "UNSET"
    assert bad["parent_id"] == broken_span["context"]["span_id"]
    assert bad["attributes"]["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert bad["status"]["status_code"] == "ERROR"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (failure,) = [line for line in lines if line["level"] == "error"]
    assert failure["trace_id"] == broken
    assert failure["span_id"] == bad["context"]["span_id"].removeprefix("0x")
    assert all("trace_id" not in line for line in lines if line["level"] == "info")


def test_the_ratio_decides_over_traces_that_begin_here(tmp_path: Path):
    endpoint = f"file://{tmp_path}/server.jsonl"
    with (
        small_ctr_server.running(tmp_path, "--otlp-endpoint", endpoint) as server,
        CtrClient(server.address, timeout_s=10) as ctr,
    ):
        ctr.score(UserContext([], []), [1])
    (begun,) = spans(tmp_path / "server.jsonl")
    assert begun["parent_id"] is None


def test_whom_an_unrecorded_trace_calls_is_told(file: Path, tmp_path: Path):
    tracing.setup(f"file://{file}", 0.0, "test")
    with (
        small_ctr_server.running(tmp_path, "--otlp-endpoint", f"file://{tmp_path}/server.jsonl") as server,
        CtrClient(server.address, timeout_s=10) as ctr,
        tracing.span("page") as page,
        tracing.span("part of it") as part,
    ):
        ((_, header),) = trace_context.headers()
        ctr.score(UserContext([], []), [1])
    tracing.close()
    assert part == page == header.decode().split("-")[1]
    assert header.endswith(b"-00")
    assert spans(file) == spans(tmp_path / "server.jsonl") == []


@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_traceparent_is_no_parent(file: Path, value: str):
    assert tracing.parent([("traceparent", value.encode())]) is None
    assert tracing.parent([("traceparent", b"\xff\xfe" + value.encode())]) is None


def test_a_record_is_followed_where_its_producer_says_so(file: Path):
    assert tracing.parent([("other", b"x"), ("traceparent", SAMPLED.encode())]) is not None
    assert tracing.parent([("traceparent", (SAMPLED[:-1] + "0").encode())]) is None
    assert tracing.parent([("traceparent", None)]) is None
    assert tracing.parent([]) is None


def test_the_current_span_travels_in_headers_and_stands_in_log_lines(file: Path):
    written = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.setup("info", "test", written)
    try:
        with tracing.span("one") as trace:
            ((key, value),) = trace_context.headers()
            assert key == "traceparent"
            assert value.decode().split("-")[1] == trace
            assert trace_context.metadata() == (("traceparent", value.decode()),)
            logs.get_logger("a").info("within")
            logging.getLogger("b").warning("of another library")
        logs.get_logger("a").info("outside")
    finally:
        root.handlers[:], root.level = before
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line.get("trace_id") for line in lines] == [trace, trace, None]


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans over OTLP, as a collector does."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def Export(self, request, context):  # noqa: N802
        self.names += [s.name for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_collector_gets_every_span_by_the_end():
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        tracing.setup(f"http://127.0.0.1:{port}", 1.0, "test")
        for n in range(700):  # more than one batch
            with tracing.span(f"span {n}"):
                pass
        tracing.close(timeout_s=30)
    finally:
        server.stop(None)
    assert sorted(collector.names) == sorted(f"span {n}" for n in range(700))


FLOOD = """
import sys, time
from vitrine.runtime import logs, tracing
logs.setup("info", "test")
tracing.setup(sys.argv[1], 1.0, "test")
for _ in range(3_000):  # more than the queue holds
    with tracing.span("lost"):
        pass
while sys.argv[1].startswith("file") and not tracing.export_failures._value.get():
    time.sleep(0.01)
tracing.close(timeout_s=0.5)
"""


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:{closed}", "http://no-such-host.invalid:4317", "file:///no/such/folder/spans"]
)
def test_an_endpoint_that_takes_nothing_holds_nobody_up_and_is_told_once(endpoint: str):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        command = [sys.executable, "-c", FLOOD, endpoint.format(closed=taken.getsockname()[1])]
        # The exporter by itself would try for half a minute, at the end as well.
        ended = subprocess.run(command, capture_output=True, text=True, timeout=25)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["event"] for line in lines] in (["spans are lost"], [])
    assert lines or not endpoint.startswith("file"), "a file's failure is there at once"


def test_an_endpoint_that_is_no_url_is_refused_by_name(tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.small_ctr_server", "--otlp-endpoint", "collector:4317"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert "--otlp-endpoint: should be http://host:4317" in ended.stderr
