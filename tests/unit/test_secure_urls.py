"""Kafka and Redis URLs with TLS and users: what clients are given, what is refused, and that no password shows."""

import io
import json
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.security_kit import Authority
from vitrine.errors import FieldError
from vitrine.runtime import audit, logs
from vitrine.runtime.kafka import parse_url
from vitrine.runtime.redis import check_url, connect
from vitrine.runtime.settings import Settings, redact_url


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def test_a_kafka_url_says_all_that_a_client_needs(authority, tmp_path):
    mine, secret = authority.client(), tmp_path / "password"
    secret.write_text("pass word\n")
    url = (
        f"kafkas://al%40ice@a:9093,b:9093?sasl=SCRAM-SHA-512&password_file={secret}"
        f"&ca={authority.cert}&cert={mine.cert}&key={mine.key}"
    )
    config = parse_url(url)
    given = config.kwargs()
    assert {
        "bootstrap_servers": ["a:9093", "b:9093"],
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(authority.cert),
        "ssl_certfile": str(mine.cert),
        "ssl_keyfile": str(mine.key),
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "al@ice",
        "sasl_plain_password": "pass word",
    }.items() <= given.items()
    assert config.librdkafka() == {
        "bootstrap.servers": "a:9093,b:9093",
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(authority.cert),
        "ssl.certificate.location": str(mine.cert),
        "ssl.key.location": str(mine.key),
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "al@ice",
        "sasl.password": "pass word",
    }
    assert "pass word" not in repr(config)


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("kafka://a:1", None),
        ("kafka://u:p@a:1?sasl=PLAIN", "SASL_PLAINTEXT"),
        ("kafkas://a:1", "SSL"),
        ("kafkas://u:p@a:1/?sasl=SCRAM-SHA-256", "SASL_SSL"),
    ],
)
def test_the_scheme_and_sasl_choose_the_protocol(url, protocol):
    assert parse_url(url).kwargs().get("security_protocol") == protocol


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafkas://a:1?sasl=GSSAPI", "sasl: should be one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, not 'GSSAPI'"),
        ("kafkas://u:p@a:1", "sasl: say how the user is proved"),
        ("kafkas://a:1?sasl=PLAIN", "sasl: needs a user"),
        ("kafkas://u@a:1?sasl=PLAIN", "the user has no password"),
        ("kafkas://u:p@a:1?sasl=PLAIN&password_file=/x", "password_file: goes with a user, and in place of"),
        (
            "kafkas://u@a:1?sasl=PLAIN&password_file=/no/such",
            "password_file: /no/such cannot be read (No such file",
        ),
        ("kafka://a:1?ca=/x", "ca: is for TLS; write kafkas://"),
        ("kafkas://a:1?ca=/no/such", "ca: /no/such cannot be read"),
        ("kafkas://a:1?ca={key}", "ca: {key} holds no PEM certificate"),
        ("kafkas://a:1?cert={cert}", "cert, key: give both"),
        ("kafkas://a:1?cert={cert}&key={other}", "cert, key: {cert} and {other} are not a pair"),
        ("kafkas://a:1?cafile=/x", "cafile: unknown; parameters are sasl, password_file, ca, cert and key"),
        ("kafkas://a:1?ca=/x&ca=/y", "ca: given twice"),
        ("kafkas://a:1?ca=", "ca: is empty"),
        ("memory://u:p@a:1", "takes neither user nor parameters"),
    ],
)
def test_a_kafka_url_that_cannot_work_names_the_parameter(authority, url, says):
    mine, other = authority.client(), authority.client("other")
    names = {"cert": mine.cert, "key": mine.key, "other": other.key}
    with pytest.raises(FieldError) as error:
        parse_url(url.format(**names))
    assert error.value.field == "kafka_url"
    assert says.format(**names) in str(error.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://a:1?ssl_ca_certs=/x", "ssl_ca_certs: is for TLS; write rediss://"),
        ("rediss://a:1?ssl_ca_certs=/no/such", "ssl_ca_certs: /no/such cannot be read"),
        ("rediss://a:1?ssl_ca_certs={key}", "ssl_ca_certs: {key} holds no PEM certificate"),
        ("rediss://a:1?ssl_certfile={cert}", "ssl_certfile, ssl_keyfile: give both"),
        ("rediss://a:1?ssl_certfile={cert}&ssl_keyfile={other}", "are not a pair of PEM files"),
        ("rediss://a:1?ssl_cert_reqs=none", "ssl_cert_reqs: unknown; parameters are ssl_ca_certs,"),
        ("rediss://a:1?ssl_ca_cert=/x", "ssl_ca_cert: unknown"),
        ("redis://user:se/cret@a:1", "percent-encode what is special"),
        ("redis://a:1,b:2", "several hosts are a cluster's; add ?cluster=true"),
        ("redis://user:se/cret@a:1,b:2?cluster=true", "percent-encode what is special"),
        ("redis://a:1,b:x?cluster=true", "no host:port"),
        ("redis://a:1?cluster=yes", "cluster: write cluster=true"),
        ("redis://a:1/3?cluster=true", "cluster: a cluster has TCP nodes and the database 0 alone"),
        ("unix:///run/redis?cluster=true", "cluster: a cluster has TCP nodes"),
    ],
)
def test_a_redis_url_that_cannot_work_names_the_parameter(authority, url, says):
    mine, other = authority.client(), authority.client("other")
    names = {"cert": mine.cert, "key": mine.key, "other": other.key}
    with pytest.raises(FieldError) as error:
        connect(url.format(**names))
    assert error.value.field == "redis_url"
    assert says.format(**names) in str(error.value)
    assert not re.search(r"\bse\b|cret", str(error.value))


def test_a_redis_url_reaches_the_client_whole(authority):
    mine = authority.client()
    url = (
        f"rediss://al%40ice:p%2Fw@a:1/3?ssl_ca_certs={authority.cert}"
        f"&ssl_certfile={mine.cert}&ssl_keyfile={mine.key}"
    )
    with connect(url) as client:
        given = client.connection_pool.connection_kwargs
        assert (given["username"], given["password"], given["db"]) == ("al@ice", "p/w", 3)
        made = client.connection_pool.make_connection()
        assert made.check_hostname is True
        assert made.cert_reqs.name == "CERT_REQUIRED"
        assert made.ca_certs == str(authority.cert)


def test_a_clusters_url_reaches_the_client_whole(authority):
    url = f"rediss://al%40ice:p%2Fw@a:1,[::1]:2?cluster=true&ssl_ca_certs={authority.cert}"
    cluster = connect(url)
    assert cluster._nodes == [("a", 1), ("::1", 2)]
    given = cluster._options
    assert (given["username"], given["password"], given["ssl"]) == ("al@ice", "p/w", True)
    assert given["ssl_ca_certs"] == str(authority.cert)


def test_a_bad_url_in_the_settings_is_refused_at_the_start(monkeypatch, capsys):
    from vitrine.runtime import settings

    monkeypatch.setenv("VITRINE_KAFKA_URL", "kafkas://u:hunter2@a:1?sasl=SCRAM")
    with pytest.raises(SystemExit):
        settings.load(Settings, [], prog="vitrine ctr")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "vitrine ctr: VITRINE_KAFKA_URL: 'kafkas://u:***@a:1?sasl=SCRAM': sasl: should be one of"
    )


# Marked all through, so that a piece of one is known where it shows.
_passwords = st.lists(st.text(max_size=3), min_size=1, max_size=8).map(lambda parts: "Zq9".join(["", *parts, ""]))
_schemes = st.sampled_from(["kafka", "kafkas", "redis", "rediss"])


def shown_everywhere(url: str) -> str:
    """All that this code ever shows of a URL: redaction, logs, audit, `repr` and `str` of settings, errors."""
    shown = [redact_url(url), redact_url(f"lost {url}, and {url}"), redact_url(f"'{url}'")]
    stream = io.StringIO()
    logs.setup("debug", "test", stream)
    logs.get_logger().info("looks", url=url, urls=[url, {"deep": url}])
    audit.record("test", url, caller="x", kafka=[url])
    shown.append(stream.getvalue())
    for parse in (parse_url, check_url, connect):
        try:
            shown.append(repr(parse(url)))
        except FieldError as error:
            shown.append(f"{error} {error!r}")
    for field in ("kafka_url", "redis_url"):
        try:
            made = Settings(**{field: url})
            shown.append(f"{made!r} {made}")
        except ValidationError as error:
            from vitrine.runtime.settings import _explain

            shown += [_explain(Settings, details, []) for details in error.errors(include_url=False)]
    return "\n".join(shown)


@given(_schemes, _passwords, st.sampled_from(["", "user", "us.er-1"]), st.sampled_from(["", "?sasl=PLAIN", "/0"]))
@example("kafkas", "Zq9:@/?#Zq9", "user", "?sasl=PLAIN")
def test_no_password_of_a_url_is_shown_by_anything(scheme, password, user, rest):
    encoded = quote(password, safe="")
    text = shown_everywhere(f"{scheme}://{user}:{encoded}@host:9092{rest}")
    assert encoded not in text
    assert password not in text
    assert "Zq9" not in text


@given(_schemes, st.from_regex(r"(Zq9[!-~]{0,2}){1,8}Zq9", fullmatch=True))
@example("redis", "Zq9/x@yZq9")
@example("redis", "12?Zq9=Zq9")
def test_nor_one_that_should_have_been_encoded_and_was_not(scheme, password):
    assert "Zq9" not in shown_everywhere(f"{scheme}://user:{password}@host:9092")


@given(_passwords)
def test_nor_what_a_password_file_holds(tmp_path_factory, password):
    assume("\n" not in password and "\r" not in password)
    file = Path(tmp_path_factory.mktemp("secret")) / "password"
    file.write_bytes(password.encode("utf-8", "surrogatepass"))
    text = shown_everywhere(f"kafkas://user@host:9092?sasl=PLAIN&password_file={file}")
    assert "Zq9" not in text


def test_log_lines_stay_json_when_something_is_redacted():
    stream = io.StringIO()
    logs.setup("info", "test", stream)
    logs.get_logger().info("looks", urls={"a": "redis://:hunter2@host:1"})
    assert json.loads(stream.getvalue())["urls"] == {"a": "redis://:***@host:1"}
