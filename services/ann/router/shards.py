"""The shards and their replicas: which of them takes calls, how busy it is, which version it answers from."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, cast

import grpc

from services.ann.router.addresses import Target, targets_of
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.channels import Channel, Security
from vitrine.runtime import logs
from vitrine.runtime.readings import Readings

_GRACE_S = 1.0  # a shard that lost its last replica is waited for so long: in a restart the next comes in less
_START_S = 10.0  # a router that starts beside its shards waits so long for all of them
_MOST_NAMES = 64  # of indexes whose versions are watched

_log = logs.get_logger(__name__)

in_flight = Readings("vitrine_ann_router_in_flight", "Calls to a shard's replicas under way.", "shard")
ready_replicas = Readings("vitrine_ann_router_ready_replicas", "Replicas of a shard that take calls.", "shard")


class Replica:
    """One server of a shard.

    name:      the address of the settings that it stands behind; several servers may
    ready:     connected, and its health says SERVING: grpc's channel watches that (vitrine/channels.py)
    in_flight: calls of this router that it has not answered
    versions:  by index name as asked for, the version that it answered from last
    misplaced: why it cannot be this shard; empty where it can
    """

    def __init__(self, shard: Shard, name: str, target: Target, security: Security | None) -> None:
        self.name, self.address = name, target.target
        self.ready = False
        self.in_flight = 0
        self.versions: dict[str, str] = {}
        self.misplaced = ""
        self._shard = shard
        self._channel = Channel(target.target, security, retries=False, certified_as=target.certified_as)
        self._stub = ann_pb2_grpc.AnnServiceStub(cast(grpc.Channel, self._channel))
        self._watched: grpc.Channel | None = None
        self.watch()

    @property
    def usable(self) -> bool:
        return self.ready and not self.misplaced

    def begin(self, method: str, request: Any, timeout_s: float, done: Callable[[Any], None]) -> Any:
        """Begins a call; `done` gets grpc's future when it has ended, on a thread of grpc's."""

        def ended(future: Any) -> None:
            self._shard.count(self, -1)
            done(future)

        self._shard.count(self, 1)
        try:
            future = getattr(self._stub, method).future(request, timeout=timeout_s)
        except BaseException:
            self._shard.count(self, -1)
            raise
        future.add_done_callback(ended)
        return future

    def watch(self) -> None:
        """Listens to the channel's state; again where new certificates have made another channel."""
        if self._watched is not self._channel.current:
            if self._watched is not None:
                self._watched.unsubscribe(self._note)
            self._watched = self._channel.current
            self._watched.subscribe(self._note, try_to_connect=True)

    def look(self, names: Collection[str], timeout_s: float) -> None:
        """Asks which version of these indexes it serves, and which shard it is; does not wait for the answer."""
        self.watch()
        if self.ready:
            for name in names:
                future = self._stub.Stats.future(ann_pb2.StatsRequest(index=name), timeout=timeout_s)
                future.add_done_callback(partial(self._learn, name))

    def close(self) -> None:
        self._channel.close()

    def _note(self, state: grpc.ChannelConnectivity) -> None:
        self.ready = state is grpc.ChannelConnectivity.READY
        self._shard.note()

    def _learn(self, name: str, ended: Any) -> None:
        if ended.cancelled() or ended.code() is not grpc.StatusCode.OK:
            self.versions.pop(name, None)  # another one is asked while it does not know
            return
        stats = ended.result()
        self.versions[name] = stats.version
        number, of = self._shard.number, self._shard.of
        wrong = ""
        if stats.shards and (stats.shard, stats.shards) != (number, of):
            wrong = (
                f"{self.address} is shard {stats.shard} of {stats.shards}, here it is listed as {number} of {of}"
            )
        if wrong != self.misplaced:
            self.misplaced = wrong
            if wrong:
                _log.error("a replica is in the wrong place and gets no calls", shard=number, reason=wrong)
        self._shard.note()


class Shard:
    """The replicas that hold the same items."""

    def __init__(self, number: int, of: int, addresses: Sequence[str], security: Security | None) -> None:
        self.number, self.of = number, of
        self.addresses = tuple(addresses)
        self.seen = False  # whether it has ever had a replica that takes calls
        self.replicas: tuple[Replica, ...] = ()
        self._security = security
        self._lock = threading.Lock()
        self._lost_at = -_GRACE_S
        self._leaving: list[Replica] = []

    @property
    def usable(self) -> bool:
        return any(replica.usable for replica in self.replicas)

    @property
    def comes_back(self) -> bool:
        """Whether a replica that takes calls is there, or was a moment ago."""
        return self.usable or time.monotonic() < self._lost_at + _GRACE_S

    @property
    def name(self) -> str:
        return f"shard {self.number} of {self.of} ({', '.join(self.addresses)})"

    @property
    def trouble(self) -> str | None:
        """Why no replica takes calls; None where one does."""
        if self.usable:
            return None
        wrong = [replica.misplaced for replica in self.replicas if replica.misplaced]
        return f"{self.name}: no replica takes calls" + "".join(f"; {each}" for each in wrong)

    def pick(self, name: str, version: str | None, tried: Collection[Replica]) -> Replica | None:
        """The least busy of the replicas that take calls: one that was not tried, and of this version, if there is.

        None where none takes calls.
        """
        usable = [replica for replica in self.replicas if replica.usable]
        fresh = [replica for replica in usable if replica not in tried] or usable
        if version is not None:
            fresh = [replica for replica in fresh if replica.versions.get(name) == version] or fresh
        return min(fresh, key=lambda replica: (replica.in_flight, random.random()), default=None)

    def look_up(self) -> None:
        """Replicas of the servers that the addresses' names have now; those that are gone get no more calls.

        While a name cannot be looked up, its servers stay: what ends is known by their health.
        """
        known = {(replica.name, replica.address): replica for replica in self.replicas}
        now: list[Replica] = []
        for name in self.addresses:
            targets = targets_of(name)
            if targets is None:
                now += [replica for replica in self.replicas if replica.name == name]
                continue
            for target in targets:
                now.append(known.get((name, target.target)) or Replica(self, name, target, self._security))
        self._leaving += [replica for replica in self.replicas if replica not in now]
        self.replicas = tuple(now)
        for replica in [each for each in self._leaving if each.in_flight == 0]:
            replica.close()
            self._leaving.remove(replica)

    def count(self, replica: Replica, change: int) -> None:
        with self._lock:
            replica.in_flight += change

    def note(self) -> None:
        """A replica's state may have changed."""
        if self.usable:
            self.seen = True
            self._lost_at = float("inf")
        elif self._lost_at == float("inf"):
            self._lost_at = time.monotonic()

    def close(self) -> None:
        for replica in (*self.replicas, *self._leaving):
            replica.close()


class Fleet:
    """All shards, and a thread that keeps their replicas and the versions of these known until `close`."""

    def __init__(
        self, addresses: Sequence[Sequence[str]], security: Security | None, *, look_s: float = 1.0
    ) -> None:
        self.shards = tuple(Shard(i, len(addresses), each, security) for i, each in enumerate(addresses))
        self._names: dict[str, None] = {"": None}
        self._look_s = look_s
        self._since = time.monotonic()
        self._closed = threading.Event()
        self._readings: list[tuple[Readings, Callable[[], Mapping[str, float]]]] = [
            (in_flight, lambda: self._by_shard(lambda replica: replica.in_flight)),
            (ready_replicas, lambda: self._by_shard(lambda replica: replica.usable)),
        ]
        for readings, read in self._readings:
            readings.add(read)
        self._thread = threading.Thread(target=self._run, name="router-look", daemon=True)
        self._thread.start()

    @property
    def why_not_ready(self) -> str | None:
        """None once every shard has been seen, or once the wait for the last of them is over and one is there."""
        missing = [shard for shard in self.shards if not shard.seen]
        if not missing:
            return None
        if time.monotonic() > self._since + _START_S and any(shard.usable for shard in self.shards):
            return None
        return f"{missing[0].name} has not been reached yet"

    @property
    def degraded(self) -> str | None:
        """Which shards answer nothing now."""
        return "; ".join(filter(None, (shard.trouble for shard in self.shards))) or None

    def version(self, name: str) -> str | None:
        """The version of an index that most shards can answer from, then most replicas, then the newest.

        None where there is no choice.
        """
        if name not in self._names and len(self._names) < _MOST_NAMES:
            self._names[name] = None
        shards, replicas = Tally[str](), Tally[str]()
        for shard in self.shards:
            known = [each.versions[name] for each in shard.replicas if each.usable and name in each.versions]
            shards.update(set(known))
            replicas.update(known)
        if len(shards) < 2:
            return None
        return max(shards, key=lambda version: (shards[version], replicas[version], version))

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        for readings, read in self._readings:
            readings.remove(read)
        for shard in self.shards:
            shard.close()

    def _by_shard(self, value: Callable[[Replica], float]) -> dict[str, float]:
        return {str(shard.number): float(sum(map(value, shard.replicas))) for shard in self.shards}

    def _run(self) -> None:
        while True:
            for shard in self.shards:
                shard.look_up()
                for replica in shard.replicas:
                    replica.look(tuple(self._names), self._look_s)
            if self._closed.wait(self._look_s):
                return
