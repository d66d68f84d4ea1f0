"""Audit: every mutation is one line with who, what and how it ended; reads leave none; JSON output stays JSON."""

import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from typer.testing import CliRunner

from tests.small_ctr_server import SERVICE, SmallCtr
from tests.unit.test_callers import entry
from vitrine.api.ann.v1 import ann_pb2
from vitrine.api.ctr.v1 import ctr_pb2, ctr_pb2_grpc
from vitrine.api.matching.v1 import matching_pb2
from vitrine.artifacts import ArtifactStore
from vitrine.cli import app
from vitrine.errors import FieldError
from vitrine.runtime import audit, logs
from vitrine.runtime.server import Process
from vitrine.runtime.settings import Settings

STORE = "vitrine.test.v1.StoreService"


def _store_request():
    """A service that no proto of ours has, one of whose methods says that it only reads."""
    file = descriptor_pb2.FileDescriptorProto(name="test_store.proto", package="vitrine.test.v1", syntax="proto3")
    request = file.message_type.add(name="StoreRequest")
    for number, (name, kind) in enumerate((("user_id", 4), ("note", 9), ("vector", 12)), start=1):
        request.field.add(name=name, number=number, type=kind, label=1)
    service = file.service.add(name="StoreService")
    for name in ("Put", "Get"):
        method = service.method.add(name=name, input_type=".vitrine.test.v1.StoreRequest")
        method.output_type = ".vitrine.test.v1.StoreRequest"
        if name == "Get":
            method.options.idempotency_level = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vitrine.test.v1.StoreRequest"))


StoreRequest = _store_request()


def lines(text):
    found = [json.loads(row) for row in text.splitlines() if row.startswith("{")]
    return [line for line in found if line.get("audit") is True]


def put(request, context):
    if request.note == "bad":
        raise FieldError("note", "is bad")
    if request.note == "abort":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")
    return request


@pytest.fixture
def store(tmp_path):
    """A server of that service, and a function that calls it as its caller."""
    file = tmp_path / "callers.toml"
    file.write_text(entry("writer", methods=[f"{STORE}/*", f"{SERVICE}/*", "vitrine.test.v1.Streams/*"]))
    codecs = {
        "request_deserializer": StoreRequest.FromString,
        "response_serializer": StoreRequest.SerializeToString,
    }

    def register(server):
        ctr_pb2_grpc.add_CtrServiceServicer_to_server(SmallCtr(), server)
        unary = grpc.unary_unary_rpc_method_handler(put, **codecs)
        stream = grpc.unary_stream_rpc_method_handler(lambda request, _: iter([request, request]), **codecs)
        server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(STORE, {"Put": unary, "Get": unary}),
                grpc.method_handlers_generic_handler("vitrine.test.v1.Streams", {"Send": stream}),
            ]
        )

    process = Process(Settings(callers=file, log_level="error"), "store", register)
    log = io.StringIO()
    logs.setup("error", "store", log)
    process.start()
    with grpc.insecure_channel(process.address) as channel:

        def call(method, kind="unary_unary", **fields):
            made = getattr(channel, kind)(
                method,
                request_serializer=StoreRequest.SerializeToString,
                response_deserializer=StoreRequest.FromString,
            )
            return made(StoreRequest(**fields), timeout=10, metadata=[("authorization", "Bearer token-of-writer")])

        call.channel = channel
        call.recorded = lambda: lines(log.getvalue())
        yield call
    process.drain()


def test_a_method_that_does_not_say_that_it_only_reads_is_recorded_with_its_caller(store):
    store(f"/{STORE}/Put", user_id=17, note="x", vector=b"long" * 99)
    store(f"/{STORE}/Get", user_id=17)
    stub = ctr_pb2_grpc.CtrServiceStub(store.channel)
    stub.Score(ctr_pb2.ScoreRequest(ad_ids=[2]), timeout=10, metadata=[("authorization", "Bearer token-of-writer")])
    (line,) = store.recorded()
    assert {name: line[name] for name in ("action", "target", "caller", "outcome", "service", "level")} == {
        "action": f"{STORE}/Put",
        "target": "user_id=17 note=x",
        "caller": "writer",
        "outcome": "ok",
        "service": "store",
        "level": "info",
    }
    assert line["peer"].startswith("ipv4:127.0.0.1:")


@pytest.mark.parametrize(
    ("note", "code", "told"),
    [
        ("bad", "INVALID_ARGUMENT", {"reason": "note: is bad"}),
        ("abort", "FAILED_PRECONDITION", {"status": "FAILED_PRECONDITION"}),
    ],
)
def test_one_that_fails_is_recorded_as_failed(store, note, code, told):
    with pytest.raises(grpc.RpcError) as error:
        store(f"/{STORE}/Put", note=note)
    assert error.value.code().name == code
    (line,) = store.recorded()
    assert line["outcome"] == "failed"
    assert told.items() <= line.items()


def test_a_stream_of_no_known_service_is_recorded(store):
    assert len(list(store("/vitrine.test.v1.Streams/Send", kind="unary_stream", user_id=3))) == 2
    (line,) = store.recorded()
    assert (line["action"], line["target"]) == ("vitrine.test.v1.Streams/Send", "user_id=3")


def test_the_methods_that_change_something_are_audited_and_the_others_say_that_they_only_read():
    services = [s for file in (ann_pb2, matching_pb2, ctr_pb2) for s in file.DESCRIPTOR.services_by_name.values()]
    methods = [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]
    assert len(methods) >= 5
    changing = [method.rpartition("/")[2] for method in methods if not audit.only_reads(method)]
    assert changing == ["Upsert", "Delete", "Rematch"]
    assert not audit.only_reads("/no.such.Service/AtAll")
    assert audit.only_reads("/grpc.health.v1.Health/Check")


def test_lines_from_many_threads_are_whole(capsys):
    logs.setup("error", "test")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: audit.record("test", str(n), caller="x"), range(200)))
    assert {line["target"] for line in lines(capsys.readouterr().err)} == {str(n) for n in range(200)}


def run(*arguments):
    return CliRunner().invoke(app, arguments)


def test_the_command_lines_mutations_are_recorded_apart_from_its_output(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("a")
    store = ArtifactStore(str(tmp_path / "store"))
    first, _ = (store.publish("towers", tmp_path / "files", schema=1).version for _ in range(2))
    where = ("--store", str(tmp_path / "store"))

    done = run("artifacts", "rollback", "towers", *where)
    assert done.stdout == f"towers: stable is {first}\n"
    (line,) = lines(done.stderr)
    assert (line["action"], line["target"], line["version"]) == ("artifacts.rollback", "towers stable", first)
    assert line["caller"].startswith("cli:")

    refused = run("artifacts", "rollback", "towers", "--to", "nothing", *where)
    assert refused.exit_code == 1
    (line,) = lines(refused.stderr)
    assert line["outcome"] == "failed"
    assert "nothing" in line["reason"]

    assert lines(run("artifacts", "prune", "towers", "--keep", "0", "--dry-run", *where).stderr) == []
    (line,) = lines(run("artifacts", "prune", "towers", "--keep", "0", *where).stderr)
    assert (line["action"], len(line["removed"])) == ("artifacts.prune", 1)

    listed = run("artifacts", "ls", "--json", *where)
    json.loads(listed.stdout)
    assert lines(listed.stderr) == []

    made = run("callers", "new", "x", "--method", f"{SERVICE}/Score", "--file", str(tmp_path / "callers.toml"))
    (line,) = lines(made.stderr)
    assert (line["action"], line["target"]) == ("callers.new", "x")
    assert made.stdout.strip() not in made.stderr


def test_a_trainers_publish_is_recorded_and_its_last_line_stays_json():
    script = "from trainers.runtime.progress import result; result('bdg', {'binary-index': 'v1'}, {'edges': 3})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert json.loads(done.stdout)["artifacts"] == {"binary-index": "v1"}
    (line,) = lines(done.stderr)
    assert (line["action"], line["target"], line["job"]) == ("artifacts.publish", "binary-index v1", "bdg")
