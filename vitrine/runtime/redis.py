"""A Redis (or Valkey) client with bounds on every wait; every process that needs one gets it here."""

import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlencode, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from vitrine.errors import FieldError, UnavailableError
from vitrine.runtime.redact import redact_url
from vitrine.runtime.redis_cluster import Cluster

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

# What redis-py raises while the server is away, starting (BusyLoadingError) or too slow.
AWAY: tuple[type[redis.RedisError], ...] = (redis.ConnectionError, redis.TimeoutError)


def connect(
    url: str, *, timeout_s: float = 2.0, connect_timeout_s: float = 1.0, retries: int = 1, max_connections: int = 64
) -> "redis.Redis":
    """A thread-safe client of `redis://[user:password@]host:port[/db]`, rediss:// (TLS), unix://; bytes in and out.

    `redis://[user:password@]host:port,host:port?cluster=true` is a Redis Cluster by some of its nodes.

    rediss:// takes ?ssl_ca_certs=PATH, else the system's CAs are trusted, and &ssl_certfile=PATH&ssl_keyfile=PATH,
    the client's own certificate. The server's certificate and name are always verified.

    Connects when first used. A broken connection is retried `retries` times, which a server's restart needs; a
    command that got no answer in `timeout_s` is not, since it may have been carried out. Raises
    FieldError("redis_url").
    """
    check_url(url)
    settings: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": 15,
        "max_connections": max_connections,
        "retry": Retry(ExponentialBackoff(cap=0.1, base=0.01), retries, supported_errors=(redis.ConnectionError,)),
    }
    try:
        if not _is_cluster(url):
            return redis.Redis.from_url(url, **settings)
        # redis-py has one type for each; what is called here, both have.
        return cast(redis.Redis, Cluster(_nodes(url), _cluster_options(url) | settings))
    except ValueError as error:
        raise _wrong(url, "the parameters are not as redis-py takes them") from error


def primaries(client: "redis.Redis") -> "list[redis.Redis]":
    """The server itself, or every primary of a cluster."""
    if not getattr(client, "is_cluster", False):
        return [client]
    cluster: Any = client
    return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]


def check_url(url: str) -> None:
    """Raises FieldError("redis_url") naming the part or parameter that is wrong, and what would be right."""
    scheme = url.split("://", 1)[0]
    if scheme not in ("redis", "rediss", "unix"):
        raise FieldError("redis_url", f"{redact_url(url)!r} is not a Redis URL; write redis://host:port")
    try:
        parts = urlsplit(url)
        nodes = _nodes(url) if scheme != "unix" else [("", 1)]
        whole = all((host or scheme == "unix") and port for host, port in nodes)
    except ValueError:  # its message may hold a piece of the password
        raise _wrong(url, "no host:port; percent-encode what is special in user and password") from None
    if not whole or "@" in parts.path + parts.query + parts.fragment:
        raise _wrong(url, "no host:port; percent-encode what is special in user and password")
    given = parse_qs(parts.query, keep_blank_values=True)
    for name, values in given.items():
        if name not in (*_FILES, "db", "cluster"):
            raise _wrong(url, f"{name}: unknown; parameters are {', '.join(_FILES)}, db and cluster")
        if len(values) > 1 or not values[0]:
            raise _wrong(url, f"{name}: give one value")
        if name == "cluster" and values != ["true"]:
            raise _wrong(url, "cluster: write cluster=true, or leave it out")
        if name in _FILES and scheme != "rediss":
            raise _wrong(url, f"{name}: is for TLS; write rediss://")
    if ("ssl_certfile" in given) != ("ssl_keyfile" in given):
        raise _wrong(url, "ssl_certfile, ssl_keyfile: give both, or neither")
    if not _is_cluster(url):
        if len(nodes) > 1:
            raise _wrong(url, "several hosts are a cluster's; add ?cluster=true, or name one")
    elif scheme == "unix" or "db" in given or parts.path.strip("/") not in ("", "0"):
        raise _wrong(url, "cluster: a cluster has TCP nodes and the database 0 alone")
    _check_files(url, {name: given[name][0] for name in _FILES if name in given})


def _is_cluster(url: str) -> bool:
    return "cluster" in parse_qs(urlsplit(url).query, keep_blank_values=True)


def _nodes(url: str) -> list[tuple[str, int]]:
    """(host, port) of each host of the URL; ValueError where a port is no number."""
    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    each = [urlsplit(f"//{host}") for host in hosts]
    return [(parts.hostname or "", 6379 if parts.port is None else parts.port) for parts in each]


def _cluster_options(url: str) -> dict[str, Any]:
    """User, password and TLS of the URL, as RedisCluster takes them."""
    parts = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(parts.query).items() if name in _FILES}
    login = "".join(parts.netloc.rpartition("@")[:2])
    one = f"{parts.scheme}://{login}host?{urlencode(query)}"
    parse: Any = redis.connection.parse_url
    options = parse(one)
    found = {
        name: value for name, value in options.items() if name not in ("host", "port", "db", "connection_class")
    }
    return found | ({"ssl": True} if parts.scheme == "rediss" else {})


def _check_files(url: str, files: Mapping[str, str]) -> None:
    """Raises FieldError where a file cannot be used; redis-py would only say that the server is away."""
    for name, path in files.items():
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise _wrong(url, f"{name}: {path} cannot be read ({error.strerror})") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if "ssl_ca_certs" in files:
            context.load_verify_locations(files["ssl_ca_certs"])
    except ssl.SSLError as error:
        raise _wrong(url, f"ssl_ca_certs: {files['ssl_ca_certs']} holds no PEM certificate") from error
    try:
        if "ssl_certfile" in files:
            context.load_cert_chain(files["ssl_certfile"], files["ssl_keyfile"], password="")
    except ssl.SSLError as error:
        raise _wrong(url, "ssl_certfile, ssl_keyfile: are not a pair of PEM files") from error


def _wrong(url: str, message: str) -> FieldError:
    return FieldError("redis_url", f"{redact_url(url)!r}: {message}")


def wait_ready(client: "redis.Redis", *, timeout_s: float = 30.0) -> None:
    """Returns once it answers PING. Raises UnavailableError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            client.ping()
            return
        except AWAY as error:
            if time.monotonic() >= deadline:
                raise UnavailableError(f"Redis was not ready after {timeout_s:.0f} s: {error}") from error
            time.sleep(0.05)
