"""A Redis (or Valkey) client with bounds on every wait; every process that needs one gets it here."""

import time

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from vitrine.errors import FieldError, UnavailableError
from vitrine.runtime.redact import redact_url

# What redis-py raises while the server is away, starting (BusyLoadingError) or too slow.
AWAY: tuple[type[redis.RedisError], ...] = (redis.ConnectionError, redis.TimeoutError)


def connect(
    url: str, *, timeout_s: float = 2.0, connect_timeout_s: float = 1.0, retries: int = 1, max_connections: int = 64
) -> "redis.Redis":
    """A thread-safe client of `redis://[user:password@]host:port[/db]` (or rediss://, unix://); bytes in and out.

    Connects when first used. A broken connection is retried `retries` times, which a server's restart needs; a
    command that got no answer in `timeout_s` is not, since it may have been carried out. Raises
    FieldError("redis_url").
    """
    if url.split("://", 1)[0] not in ("redis", "rediss", "unix"):
        raise FieldError("redis_url", f"{redact_url(url)!r} is not a Redis URL; write redis://host:port")
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=connect_timeout_s,
            socket_keepalive=True,
            health_check_interval=15,
            max_connections=max_connections,
            retry=Retry(ExponentialBackoff(cap=0.1, base=0.01), retries, supported_errors=(redis.ConnectionError,)),
        )
    except ValueError as error:
        raise FieldError("redis_url", f"{redact_url(url)!r}: {error}") from error


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
