"""TLS on every port but the health port: who is let in, what is refused at the start, and rotation."""

import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest

from tests.security_kit import Authority
from tests.small_ctr_server import SmallCtr
from tests.waiting import wait_for
from vitrine import channels
from vitrine.api.ctr.v1 import ctr_pb2_grpc
from vitrine.client import CtrClient, DeadlineExceededError, Security, UnavailableError, UserContext
from vitrine.runtime.health import is_serving
from vitrine.runtime.http import HttpFront
from vitrine.runtime.lifecycle import Lifecycle
from vitrine.runtime.server import Process
from vitrine.runtime.settings import Settings
from vitrine.runtime.tls import ServerTls, TlsError

NOBODY = UserContext(np.empty(0, np.uint64), np.empty(0, np.float32))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def start(capsys):
    started = []

    def _start(**options):
        small = SmallCtr()
        process = Process(
            Settings(**options), "ctr", lambda to: ctr_pb2_grpc.add_CtrServiceServicer_to_server(small, to)
        )
        process.start()
        process.calls = small.calls
        started.append(process)
        return process

    yield _start
    for process in started:
        process.drain()


def score(process, security, timeout_s=10.0):
    with CtrClient(process.address, security=security, timeout_s=timeout_s) as ctr:
        return ctr.score(NOBODY, [2]).pctrs.tolist()


def page(process, authority, own=None):
    context = ssl.create_default_context(cafile=authority.cert)
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    with urllib.request.urlopen(
        f"https://{process.metrics_address}/metrics", context=context, timeout=10
    ) as answer:
        return answer.read().decode()


def test_calls_and_the_metrics_page_go_over_tls_and_health_stays_open(start, authority):
    own = authority.server()
    process = start(tls_cert=own.cert, tls_key=own.key)
    assert score(process, Security(ca=str(authority.cert))) == [0.5]
    assert "grpc_server_started_total" in page(process, authority)
    assert is_serving(process.health_address)


def test_plaintext_and_another_authoritys_servers_are_not_talked_to(start, authority, tmp_path):
    own = authority.server()
    process = start(tls_cert=own.cert, tls_key=own.key)
    for security in (None, Security(ca=str(Authority(tmp_path, "stranger").cert))):
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            score(process, security, timeout_s=1)
    with pytest.raises((urllib.error.URLError, OSError)):
        urllib.request.urlopen(f"http://{process.metrics_address}/metrics", timeout=10)
    assert process.calls == []


def test_with_a_callers_authority_its_own_certificates_alone_are_let_in(start, authority, tmp_path):
    own = authority.server()
    process = start(tls_cert=own.cert, tls_key=own.key, tls_client_ca=authority.cert)
    ca, good, gone = str(authority.cert), authority.client(), authority.expired_client()
    strange = Authority(tmp_path, "stranger").client()
    for pair in (gone, strange, None):
        named = {} if pair is None else {"cert": str(pair.cert), "key": str(pair.key)}
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            score(process, Security(ca=ca, **named), timeout_s=2)
        with pytest.raises((urllib.error.URLError, OSError)):
            page(process, authority, pair)
    assert process.calls == [], "no call reaches the service"
    assert score(process, Security(ca=ca, cert=str(good.cert), key=str(good.key))) == [0.5]
    assert "vitrine_serving" in page(process, authority, good)
    assert is_serving(process.health_address)


def test_a_caller_who_says_nothing_does_not_hold_up_the_metrics_page(start, authority):
    own = authority.server()
    process = start(tls_cert=own.cert, tls_key=own.key)
    host, port = process.metrics_address.split(":")
    with socket.create_connection((host, int(port))):
        assert "vitrine_serving" in page(process, authority)


def serial_of(address):
    host, port = address.split(":")
    return ssl.get_server_certificate((host, int(port)))


def test_replaced_files_serve_new_connections_and_half_a_rotation_keeps_the_old(tmp_path, authority):
    own, next_one = Authority(tmp_path / "a").server(), authority.server("next")
    tls = ServerTls(own.cert, own.key, every_s=0.02)
    old = tls.context()
    next_key = next_one.key.read_bytes()
    own.cert.write_bytes(next_one.cert.read_bytes())
    wait_for(lambda: tls.refusal is not None)
    assert str(own.key) in tls.refusal
    own.key.write_bytes(next_key[: len(next_key) // 2])
    time.sleep(0.1)
    assert tls.refusal is not None
    assert tls.context() is old
    own.key.write_bytes(next_key)
    wait_for(lambda: tls.refusal is None)
    assert tls.context() is not old
    tls.close()


def test_grpc_is_given_certificates_once_a_change(tmp_path, authority, monkeypatch):
    """Given the same ones at every handshake, as it may be, grpcio 1.85.1 ends with SIGSEGV under many at once."""
    asked = []
    monkeypatch.setattr(grpc, "dynamic_ssl_server_credentials", lambda first, ask, **_: asked.append(ask))
    own = Authority(tmp_path / "before").server()
    tls = ServerTls(own.cert, own.key, every_s=0.02)
    tls.grpc_credentials()
    (ask,) = asked
    assert [ask(), ask()] == [None, None]
    old = tls.context()
    own.replace_by(authority.server("after"))
    wait_for(lambda: tls.context() is not old and tls.refusal is None)
    assert isinstance(ask(), grpc.ServerCertificateConfiguration)
    assert ask() is None
    tls.close()


def test_grpc_metrics_and_http_show_the_new_certificate_without_a_restart(start, authority, tmp_path, capsys):
    own = Authority(tmp_path / "before").server()
    process = start(tls_cert=own.cert, tls_key=own.key)

    async def app(scope, receive, send):
        while scope["type"] == "lifespan":
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"console"})

    settings = Settings(tls_cert=own.cert, tls_key=own.key)
    console = Lifecycle(settings, "console", HttpFront(settings, app))
    console.start()
    ports = (process.address, process.metrics_address, console.address, console.metrics_address)
    before = {serial_of(port) for port in ports}
    assert before == {own.cert.read_text()}
    own.replace_by(authority.server("after"))
    wait_for(lambda: {serial_of(port) for port in ports} == {own.cert.read_text()})
    context = ssl.create_default_context(cafile=authority.cert)
    with urllib.request.urlopen(f"https://{console.address}/", context=context, timeout=10) as answer:
        assert answer.read() == b"console"
    console.drain()


def test_a_client_takes_up_a_renewed_certificate_between_calls(start, authority, tmp_path, monkeypatch):
    monkeypatch.setattr(channels, "_LOOK_EVERY_S", 0.0)
    own = authority.server()
    process = start(tls_cert=own.cert, tls_key=own.key, tls_client_ca=authority.cert)
    mine = authority.expired_client("mine")
    security = Security(ca=str(authority.cert), cert=str(mine.cert), key=str(mine.key))
    with CtrClient(process.address, security=security, timeout_s=2) as ctr:
        with pytest.raises((UnavailableError, DeadlineExceededError)):
            ctr.score(NOBODY, [2])
        mine.replace_by(authority.client("renewed"))
        assert ctr.score(NOBODY, [2], timeout_s=10).pctrs.tolist() == [0.5]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--tls-cert", "{server.cert}"), "--tls-key (or VITRINE_TLS_KEY): is required with the certificate"),
        (("--tls-key", "{server.key}"), "--tls-cert (or VITRINE_TLS_CERT): is required with a key"),
        (("--tls-client-ca", "{ca}"), "--tls-cert (or VITRINE_TLS_CERT): is required with a key or a callers' CA"),
        (
            ("--tls-cert", "{folder}/none.pem", "--tls-key", "{server.key}"),
            "--tls-cert (or VITRINE_TLS_CERT): {folder}/none.pem cannot be read (No such file or directory)",
        ),
        (
            ("--tls-cert", "{server.cert}", "--tls-key", "{folder}"),
            "--tls-key (or VITRINE_TLS_KEY): {folder} cannot be read (Is a directory)",
        ),
        (
            ("--tls-cert", "{server.cert}", "--tls-key", "{other.key}"),
            "--tls-key (or VITRINE_TLS_KEY): {other.key} is not the key of the certificate {server.cert}",
        ),
        (
            ("--tls-cert", "{server.key}", "--tls-key", "{server.key}"),
            "--tls-cert (or VITRINE_TLS_CERT): {server.key} holds no PEM certificate",
        ),
        (
            ("--tls-cert", "{server.cert}", "--tls-key", "{server.key}", "--tls-client-ca", "{server.key}"),
            "--tls-client-ca (or VITRINE_TLS_CLIENT_CA): {server.key} holds no PEM certificate",
        ),
    ],
)
def test_settings_that_cannot_work_are_one_line_naming_the_flag_and_status_2(authority, tmp_path, flags, says):
    names = {
        "server": authority.server(),
        "other": authority.server("other"),
        "ca": authority.cert,
        "folder": tmp_path,
    }
    script = "from vitrine.runtime import settings; settings.load(settings.Settings, prog='vitrine ctr')"
    ended = subprocess.run(
        [sys.executable, "-c", script, *[flag.format(**names) for flag in flags]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"vitrine ctr: {says.format(**names)}")


def test_a_key_behind_a_password_is_refused_rather_than_asked_for(authority, tmp_path):
    from cryptography.hazmat.primitives import serialization

    own = authority.server()
    key = serialization.load_pem_private_key(own.key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    kind = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kind))
    with pytest.raises(TlsError, match="without a password") as error:
        ServerTls(own.cert, locked)
    assert error.value.field == "tls_key"
    theirs = Security(ca=str(authority.cert), cert=str(own.cert), key=str(locked))
    with pytest.raises(ValueError, match=r"cert, key: .* are not a pair of PEM files without a password"):
        CtrClient("127.0.0.1:1", security=theirs)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cert": "a"}, "cert and key: give both"),
        ({"key": "a"}, "cert and key: give both"),
        ({"cert": "a", "key": "b"}, "ca: a client certificate is for TLS"),
        ({"token": "a", "token_file": "b"}, "give one of them"),
        ({"token": "se cret"}, "printable ASCII"),
        ({"ca": "/nowhere/ca.pem"}, "ca: /nowhere/ca.pem cannot be read"),
        ({"token_file": "/nowhere/token"}, "token_file: /nowhere/token cannot be read"),
    ],
)
def test_a_clients_security_that_cannot_work_names_the_field(given, says):
    with pytest.raises(ValueError, match=says) as error:
        CtrClient("127.0.0.1:1", security=Security(**given))
    assert "se cret" not in str(error.value)


def test_security_comes_from_the_environment_and_never_shows_its_token(tmp_path):
    assert Security.from_environment({}) is None
    assert Security.from_environment({"VITRINE_CLIENT_CA": ""}) is None
    given = {"VITRINE_CLIENT_CA": "a", "VITRINE_CLIENT_TOKEN_FILE": "t"}
    assert Security.from_environment(given) == Security(ca="a", token_file="t")  # noqa: S106
    with pytest.raises(ValueError, match="VITRINE_CLIENT_CA, _CERT, _KEY, _TOKEN_FILE: cert and key"):
        Security.from_environment({"VITRINE_CLIENT_KEY": "a"})
    assert "hunter2" not in repr(Security(token="hunter2"))  # noqa: S106


def test_clients_of_one_target_and_security_share_a_channel(start, authority):
    own = authority.server()
    process = start(tls_cert=own.cert, tls_key=own.key)
    security = Security(ca=str(authority.cert))
    with CtrClient(process.address, security=security) as a, CtrClient(process.address, security=security) as b:
        assert a._channel is b._channel
        with CtrClient(process.address, security=Security(ca=str(authority.cert), token="x")) as c:  # noqa: S106
            assert c._channel is not a._channel
