"""One GET over a connection that each thread keeps: all of Redis that GetMatches needs.

A redis-py client takes a connection from its pool, wraps the command in retries and callbacks, and puts it back:
52 us of CPU a GET where this takes 14 (docs/decisions/0012-load.md).
"""

import threading
from collections.abc import Callable
from typing import Any

import redis


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
