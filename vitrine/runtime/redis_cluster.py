"""A Redis Cluster behind the calls of one Redis: connected when first used, and again after all of it was away."""

import threading
from types import TracebackType
from typing import Any, Self

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException


class Cluster:
    """redis-py's client of a cluster, made when something is first asked of it; safe for threads.

    It follows moved slots and failovers, by itself. Keys of one call, and of one transaction, share a hash tag.

    nodes:   (host, port) of some of the nodes; the others are learned from whichever answers
    options: redis-py's
    """

    is_cluster = True

    def __init__(self, nodes: list[tuple[str, int]], options: dict[str, Any]) -> None:
        self._nodes = nodes
        self._options = options
        self._lock = threading.Lock()
        self._client: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()

    def __getattr__(self, name: str) -> Any:
        with self._lock:
            if self._client is None:
                node: Any = ClusterNode
                try:
                    self._client = RedisCluster(
                        startup_nodes=[node(*each) for each in self._nodes], **self._options
                    )
                except RedisClusterException as error:  # no node answered, or slots are not served yet
                    raise redis.ConnectionError(f"no node of the cluster answers: {error}") from error
        return getattr(self._client, name)
