"""Bad callers of a real server process: a clear status each, nothing learnt, all counted; good ones go on."""

import hashlib
import json
import re
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.security_kit import Authority
from tests.small_ctr_server import SERVICE, running
from tests.waiting import wait_for
from vitrine.api.ctr.v1 import ctr_pb2, ctr_pb2_grpc
from vitrine.client import (
    CtrClient,
    PermissionDeniedError,
    ResourceExhaustedError,
    Security,
    UnauthenticatedError,
    UnavailableError,
    UserContext,
    VitrineError,
)
from vitrine.runtime.health import is_serving

NOBODY = UserContext(np.empty(0, np.uint64), np.empty(0, np.float32))
LABELS = {"grpc_service": SERVICE, "grpc_method": "Score"}


def entry(name, methods=f"{SERVICE}/Score", more=""):
    digest = hashlib.sha256(f"token-of-{name}".encode()).hexdigest()
    return f'[[callers]]\nname = "{name}"\ntoken_sha256 = "{digest}"\nmethods = ["{methods}"]\n{more}\n'


CALLERS = entry("front") + entry("reader", "console/read") + entry("eager", more="rate_per_s = 0.01\nburst = 3\n")


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def callers(tmp_path):
    file = tmp_path / "callers.toml"
    file.write_text(CALLERS)
    return file


@pytest.fixture
def secured(tmp_path, authority, callers):
    """A server with TLS and callers."""
    own = authority.server()
    with running(
        tmp_path, "--tls-cert", str(own.cert), "--tls-key", str(own.key), "--callers", str(callers)
    ) as server:
        server.tls = ssl.create_default_context(cafile=authority.cert)
        server.own = own
        yield server


def score(server, security, timeout_s=20.0):
    with CtrClient(server.address, security=security, timeout_s=timeout_s) as ctr:
        return ctr.score(NOBODY, [2]).pctrs.tolist()


def call_on_a_fresh_connection(address, authority, token):
    credentials = grpc.ssl_channel_credentials(authority.cert.read_bytes())
    own = [("grpc.use_local_subchannel_pool", 1)]  # else channels of a process share connections
    with grpc.secure_channel(address, credentials, own) as channel:
        metadata = [("authorization", f"Bearer {token}")]
        ctr_pb2_grpc.CtrServiceStub(channel).Score(ctr_pb2.ScoreRequest(ad_ids=[2]), timeout=20, metadata=metadata)


def test_each_bad_caller_gets_its_status_learns_nothing_and_is_counted(secured, authority, callers):
    def as_(token):
        return Security(ca=str(authority.cert), token=token)

    assert score(secured, as_("token-of-front")) == [0.5]
    begun = secured.sample("grpc_server_started_total", **LABELS)
    for token, error, code, caller, reason in (
        ("", UnauthenticatedError, "UNAUTHENTICATED", "", "no_token"),
        ("token-of-stranger", UnauthenticatedError, "UNAUTHENTICATED", "", "wrong_token"),
        ("token-of-reader", PermissionDeniedError, "PERMISSION_DENIED", "reader", "method"),
    ):
        with pytest.raises(error) as refused:
            score(secured, as_(token))
        assert refused.value.code.name == code
        assert not re.search(r"token-of|front|reader|eager|callers\.toml|/|\\", refused.value.message)
        assert secured.sample("vitrine_calls_refused_total", caller=caller, reason=reason) == 1
    for _ in range(3):
        assert score(secured, as_("token-of-eager")) == [0.5]
    for _ in range(30):
        with pytest.raises(ResourceExhaustedError, match="over its rate") as refused:
            score(secured, as_("token-of-eager"))
        assert 0 < refused.value.retry_after_s <= 100
    assert secured.sample("vitrine_calls_refused_total", caller="eager", reason="rate") == 30
    assert secured.sample("grpc_server_started_total", **LABELS) == begun + 3
    assert score(secured, as_("token-of-front")) == [0.5], "the server serves on"
    said = secured.log.read_text() + secured.page()
    assert "token-of" not in said
    assert str(callers) not in secured.page()


def test_a_bad_certificate_is_unavailable_and_no_call_reaches_the_service(tmp_path, authority):
    own, good = authority.server(), authority.client()
    strange = Authority(tmp_path / "elsewhere", "stranger").client()
    flags = ("--tls-cert", own.cert, "--tls-key", own.key, "--tls-client-ca", authority.cert)
    with running(tmp_path, *map(str, flags)) as server:
        server.tls = ssl.create_default_context(cafile=authority.cert)
        server.tls.load_cert_chain(good.cert, good.key)

        def with_(pair):
            mine = {} if pair is None else {"cert": str(pair.cert), "key": str(pair.key)}
            return Security(ca=str(authority.cert), **mine)

        assert score(server, with_(good)) == [0.5]
        begun = server.sample("grpc_server_started_total", **LABELS)
        for pair in (authority.expired_client(), strange, None):
            with pytest.raises(UnavailableError) as refused:
                score(server, with_(pair))
            assert str(tmp_path) not in refused.value.message
        assert server.sample("grpc_server_started_total", **LABELS) == begun == 1
        assert is_serving(server.health), "probes have no certificate"
        assert score(server, with_(good)) == [0.5]


def test_certificates_and_callers_are_replaced_under_load_without_a_failed_call(secured, authority, callers):
    """Old and new overlap, as a rotation should have it: the CA stays, a caller has both tokens for a while."""
    security = Security(ca=str(authority.cert), token="token-of-front")  # noqa: S106
    done, failures, calls = threading.Event(), [], [0, 0]

    def keep_calling(kind):
        with CtrClient(secured.address, security=security, timeout_s=20) as kept:
            while not done.is_set():
                try:
                    if kind == 0:  # on one connection
                        kept.score(NOBODY, [2])
                    else:
                        call_on_a_fresh_connection(secured.address, authority, security.token)
                    calls[kind] += 1
                except (VitrineError, grpc.RpcError) as error:
                    failures.append(error)

    def serial():
        host, port = secured.address.split(":")
        return ssl.get_server_certificate((host, int(port)))

    callers_at_work = [threading.Thread(target=keep_calling, args=(kind,)) for kind in (0, 1, 1, 1)]
    for thread in callers_at_work:
        thread.start()
    try:
        for turn in range(2):
            secured.own.replace_by(authority.server(f"turn{turn}"))
            callers.write_text(CALLERS + entry(f"newcomer{turn}"))
            wait_for(lambda: serial() == secured.own.cert.read_text())
            newcomer = Security(ca=security.ca, token=f"token-of-newcomer{turn}")

            def known(newcomer=newcomer):
                try:
                    return score(secured, newcomer) == [0.5]
                except UnauthenticatedError:
                    return False

            wait_for(known)
            callers.write_text("[[callers]]\nname =")  # a slip: refused, and the version before is used on
            wait_for(lambda: secured.sample("vitrine_degraded", reason="callers") == 1)
            assert known()
            callers.write_text(CALLERS)
            wait_for(lambda: secured.sample("vitrine_degraded", reason="callers") == 0)
    finally:
        done.set()
        for thread in callers_at_work:
            thread.join()
    assert failures == []
    assert min(calls) > 20
    refusals = [json.loads(row) for row in secured.log.read_text().splitlines() if "refused" in row]
    assert any(line["level"] == "error" and str(callers) in line["reason"] for line in refusals)


def test_a_file_of_callers_that_cannot_be_used_ends_the_start_with_one_line(tmp_path):
    file = tmp_path / "callers.toml"
    file.write_text(entry("front", methods="Score"))
    ended = subprocess.run(
        [sys.executable, "-m", "tests.small_ctr_server", "--callers", str(file)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(
        f"small-ctr: --callers (or VITRINE_CALLERS): {file}: callers, entry 1 ('front'): methods: "
    )


def test_plaintext_to_a_tls_port_is_no_way_in(secured):
    begun = secured.sample("grpc_server_started_total", **LABELS)
    with grpc.insecure_channel(secured.address) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(f"/{SERVICE}/Score")(b"", timeout=10)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert secured.sample("grpc_server_started_total", **LABELS) == begun
