"""A Redis Cluster of three real nodes on loopback ports, for tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.waiting import wait_for
from vitrine.runtime.local_servers import Valkey

SLOTS = 16_384


class Node(Valkey):
    """One node; the second port is the cluster's bus."""

    ports_needed = 2

    def command(self) -> list[str]:
        port = str(self.ports[1])
        return [
            *super().command(),
            *("--cluster-enabled", "yes", "--cluster-port", port, "--cluster-node-timeout", "2000"),
        ]

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.ports[0], socket_timeout=5)


class Nodes(list[Node]):
    """The three primaries."""

    @property
    def url(self) -> str:
        """By two of them: the third is learned from these."""
        return f"redis://127.0.0.1:{self[0].ports[0]},127.0.0.1:{self[1].ports[0]}?cluster=true"

    def owner_of(self, slot: int) -> int:
        """Which of them serves a slot."""
        (at,) = [n for n, node in enumerate(self) if f"{slot}" in _served(node, slot)]
        return at

    def move(self, slot: int, to: int) -> None:
        """Moves a slot with all its keys, and returns once its new owner answers for it."""
        here, there = self[self.owner_of(slot)], self[to]
        name = there.client.execute_command("CLUSTER MYID").decode()
        here.client.execute_command("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", name)
        wait_for(lambda: bool(_served(there, slot)), 20)


@contextlib.contextmanager
def redis_cluster(folder: Path) -> Iterator[Nodes]:
    nodes = Nodes(Node(folder / f"node-{n}") for n in range(3))
    try:
        for node in nodes:
            node.begin()
        for node in nodes:
            node.finish()
        for n, node in enumerate(nodes):
            first, last = SLOTS * n // 3, SLOTS * (n + 1) // 3 - 1
            node.client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            node.client.execute_command("CLUSTER SET-CONFIG-EPOCH", n + 1)
            if n:
                nodes[0].client.execute_command("CLUSTER MEET", "127.0.0.1", *node.ports)
        wait_for(lambda: all(_whole(node) for node in nodes), 30)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def _whole(node: Node) -> bool:
    info = node.client.execute_command("CLUSTER INFO")
    return info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3"


def _served(node: Node, slot: int) -> set[str]:
    """{slot} where the node says that it serves it."""
    try:
        node.client.execute_command("CLUSTER COUNTKEYSINSLOT", slot)
        mine = node.client.execute_command("CLUSTER MYID").decode()
        for first, last, primary, *_ in node.client.execute_command("CLUSTER SLOTS"):
            if first <= slot <= last and primary[2].decode() == mine:
                return {f"{slot}"}
    except redis.ConnectionError:
        pass
    return set()
