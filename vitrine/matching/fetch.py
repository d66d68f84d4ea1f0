"""One GET over a connection that each thread keeps: all of Redis that GetMatches needs.

A redis-py client takes a connection from its pool, wraps the command in retries and callbacks, and puts it back:
52 us of CPU a GET where this takes 14 (docs/decisions/0012-load.md).
"""

import threading
from collections.abc import Callable
from typing import Any

import redis
from redis.exceptions import AskError, ClusterDownError, TryAgainError


def fetcher(client: redis.Redis) -> "Fetcher | ClusterFetcher":
    """What fetches from `client`, one Redis or a cluster."""
    return ClusterFetcher(client) if getattr(client, "is_cluster", False) else Fetcher(client)


class Fetcher:
    """GETs with the settings of `client`: its address, TLS, user and timeouts. Safe for threads."""

    def __init__(self, client: redis.Redis) -> None:
        pool: Any = client.connection_pool
        self._open: Callable[[], Any] = lambda: pool.connection_class(**pool.connection_kwargs)
        self._own = threading.local()

    def get(self, key: str) -> bytes | None:
        """A string's value. A connection that broke is opened anew, once: Redis restarts, and closes idle ones.

        Raises redis.ConnectionError or TimeoutError where Redis is away, ResponseError where it holds no string.
        """
        name = key.encode()
        command = [b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name)]
        try:
            return self._ask(command)
        except redis.ConnectionError:
            return self._ask(command)

    def _ask(self, command: list[bytes]) -> bytes | None:
        connection: Any = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._open()
        try:
            # Connects where it is not, and pings where it was idle for long.
            connection.send_packed_command(command)
            return connection.read_response()  # type: ignore[no-any-return]
        except redis.ResponseError:
            raise  # an answer: the connection is in order
        except BaseException:
            connection.disconnect()  # else its next answer would be to this question
            raise


class ClusterFetcher:
    """`Fetcher` of a cluster: a connection a thread and node. What a node refuses is the client's to find."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._fetchers: dict[str, Fetcher] = {}

    def get(self, key: str) -> bytes | None:
        """A string's value; raises as `Fetcher.get` does, and what redis-py says of a cluster without that slot."""
        node = self._client.get_node_from_key(key)
        fetcher = self._fetchers.get(node.name)
        if fetcher is None:
            fetcher = self._fetchers[node.name] = Fetcher(self._client.get_redis_connection(node))
        try:
            return fetcher.get(key)
        except (redis.ConnectionError, AskError, TryAgainError, ClusterDownError):
            # A slot that moved, or a node that is gone: this learns where the slot is.
            return self._client.get(key)  # type: ignore[no-any-return]
