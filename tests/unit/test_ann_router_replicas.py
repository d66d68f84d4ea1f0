"""Which replica the router asks, and what becomes of a call when one fails; replicas answer as told."""

import threading
import time
from types import SimpleNamespace

import grpc
import pytest

from services.ann.router import addresses
from services.ann.router import shards as fleets
from services.ann.router.addresses import Target, targets_of
from services.ann.router.fanout import CallerGoneError, Leg, fan_out
from services.ann.router.settings import parse_shards
from services.ann.router.shards import Fleet, Replica, Shard
from vitrine.api.ann.v1 import ann_pb2

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


def test_shards_are_lists_of_replicas():
    assert parse_shards("a:1,b:2; [::1]:3 ;dns:///c:4") == (("a:1", "b:2"), ("[::1]:3",), ("dns:///c:4",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:1;;b:2", "shard 1: '' should be host:port"),
        ("a:1,b", "shard 0: 'b' should be host:port"),
        ("a:1 b:2", "shard 0: 'a:1 b:2' should be host:port"),
        ("a:1;b:2,a:1", "shard 1: 'a:1' is of shard 0 already"),
    ],
)
def test_a_list_that_is_wrong_is_refused_with_the_shard(text, said):
    with pytest.raises(ValueError, match=said):
        parse_shards(text)


class Ended:
    """grpc's future of a call that has ended."""

    def __init__(self, code, version="v1"):
        self._code, self._version = code, version

    def code(self):
        return self._code

    def result(self):
        return SimpleNamespace(version=self._version)

    def details(self):
        return "it is out"

    def trailing_metadata(self):
        return (("grpc-status-details-bin", b"d"), ("other", b"x"))


class Scripted:
    """A replica that answers as told: statuses in turn, the last one for ever; None is no answer at all."""

    def __init__(self, name, *codes, version="v1"):
        self.address, self.codes = name, list(codes)
        self.usable, self.misplaced, self.in_flight = True, "", 0
        self.versions = {"": version}
        self.version = version
        self.asked, self.cancelled = 0, 0

    def begin(self, method, request, timeout_s, done):
        self.asked += 1
        code = self.codes.pop(0) if len(self.codes) > 1 else self.codes[0]
        if code is not None:
            threading.Timer(0.001, lambda: done(Ended(code, self.version))).start()
        return self

    def cancel(self):
        self.cancelled += 1


class Scripts(Fleet):
    """A fleet of scripted replicas, which nobody looks after."""

    def __init__(self, *shards):
        names = [[replica.address for replica in replicas] for replicas in shards]
        self.shards = tuple(Shard(i, len(shards), names[i], None) for i in range(len(shards)))
        self._names = {"": None}
        for shard, replicas in zip(self.shards, shards, strict=True):
            shard.replicas = replicas
            shard.note()


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch):
    monkeypatch.setattr(fleets, "_GRACE_S", 0.1)


def call(fleet, left_s=5.0, **options):
    legs = [Leg(shard, ann_pb2.SearchRequest()) for shard in fleet.shards]
    fan_out(fleet, "Search", legs, left_s, **options)
    return legs


def test_the_least_busy_replica_that_takes_calls_is_asked():
    busy, idle, away = Scripted("busy", OK), Scripted("idle", OK), Scripted("away", OK)
    busy.in_flight, idle.in_flight, away.usable = 3, 1, False
    call(Scripts((busy, idle, away)))
    assert [each.asked for each in (busy, idle, away)] == [0, 1, 0]


def test_a_replica_that_cannot_answer_is_passed_over_for_another():
    out, well = Scripted("out", UNAVAILABLE), Scripted("well", OK)
    well.in_flight = 5
    (leg,) = call(Scripts((out, well)))
    assert leg.failure is None
    assert [out.asked, well.asked] == [1, 1]


def test_where_all_replicas_fail_the_failure_names_the_shard_and_the_replica():
    one, two = Scripted("one", UNAVAILABLE), Scripted("two", UNAVAILABLE)
    good, bad = call(Scripts((Scripted("good", OK),), (one, two)))
    assert good.failure is None
    assert bad.failure.code is UNAVAILABLE
    assert "shard 1 of 2 (one, two): " in bad.failure.message
    assert bad.failure.message.endswith(": it is out")
    assert one.asked + two.asked == 3, "each is tried, and one of them once more"


def test_what_the_caller_did_wrong_is_tried_once_and_told_in_the_shards_words():
    wrong, other = Scripted("one", grpc.StatusCode.INVALID_ARGUMENT), Scripted("two", OK)
    other.in_flight = 1
    (leg,) = call(Scripts((wrong, other)))
    assert (leg.failure.code, leg.failure.message) == (grpc.StatusCode.INVALID_ARGUMENT, "it is out")
    assert leg.failure.metadata == (("grpc-status-details-bin", b"d"),)
    assert [wrong.asked, other.asked] == [1, 0]


def test_a_shard_that_has_just_lost_its_last_replica_is_waited_for():
    coming = Scripted("coming", OK)
    fleet = Scripts((coming,))
    coming.usable = False
    fleet.shards[0].note()
    threading.Timer(0.04, lambda: setattr(coming, "usable", True)).start()
    (leg,) = call(fleet)
    assert leg.failure is None


def test_a_shard_without_replicas_for_a_while_fails_at_once():
    gone = Scripted("gone", OK)
    fleet = Scripts((gone,))
    gone.usable = False
    fleet.shards[0].note()
    time.sleep(0.11)  # past the grace
    (leg,) = call(fleet)
    assert (leg.failure.code, gone.asked) == (UNAVAILABLE, 0)
    assert "shard 0 of 1 (gone): no replica takes calls" in leg.failure.message


def test_a_slow_replica_is_hedged_and_then_left():
    silent, well = Scripted("silent", None), Scripted("well", OK)
    well.in_flight = 1
    (leg,) = call(Scripts((silent, well)), hedge_s=0.01)
    assert leg.failure is None
    assert [silent.asked, silent.cancelled, well.asked] == [1, 1, 1]


def test_a_replica_that_never_answers_costs_no_more_than_the_deadline():
    legs = call(Scripts((Scripted("silent", None),), (Scripted("well", OK),)), left_s=0.05)
    assert legs[0].failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "shard 0 of 2" in legs[0].failure.message
    assert legs[1].failure is None


def test_replicas_of_the_version_that_most_shards_have_are_preferred():
    old, new = Scripted("old", OK), Scripted("new", OK, version="v2")
    old.in_flight = 9
    fleet = Scripts((old, new), (Scripted("other", OK),))
    assert fleet.version("") == "v1"
    assert {leg.answer.version for leg in call(fleet)} == {"v1"}
    fleet.shards[1].replicas[0].versions[""] = "v2"
    assert fleet.version("") == "v2", "of equals, what more shards have; then the newest"


def test_nobody_waits_for_a_caller_who_has_gone():
    class Context:
        def add_callback(self, gone):
            threading.Timer(0.01, gone).start()
            return True

    silent = Scripted("silent", None)
    with pytest.raises(CallerGoneError):
        call(Scripts((silent,)), context=Context())
    assert silent.cancelled == 1


# Addresses.


def test_a_name_stands_for_every_server_that_dns_has_and_numbers_for_themselves(monkeypatch):
    rows = [(None, None, None, "", (ip, 7001)) for ip in ("10.0.0.2", "10.0.0.1", "10.0.0.2", "fd00::1")]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda host, port, type: rows)
    assert targets_of("ann-shard-0:7001") == [
        Target(target, "ann-shard-0") for target in ("10.0.0.1:7001", "10.0.0.2:7001", "[fd00::1]:7001")
    ]
    for plain in ("10.0.0.1:7001", "[::1]:7001", "dns:///ann:7001"):
        assert targets_of(plain) == [Target(plain)]


def test_replicas_come_and_go_with_the_name_and_stay_while_it_cannot_be_looked_up(monkeypatch):
    found = {"ann:1": [Target("127.0.0.1:9"), Target("127.0.0.2:9")]}
    monkeypatch.setattr(fleets, "targets_of", found.get)
    shard = Shard(0, 1, ["ann:1"], None)
    try:
        shard.look_up()
        first, second = shard.replicas
        found["ann:1"] = [Target("127.0.0.2:9"), Target("127.0.0.3:9")]
        first.in_flight = 1
        shard.look_up()
        assert shard.replicas[0] is second
        assert [replica.address for replica in shard.replicas] == ["127.0.0.2:9", "127.0.0.3:9"]
        assert shard._leaving == [first], "it is not closed under a call"
        first.in_flight = 0
        del found["ann:1"]
        shard.look_up()
        assert shard._leaving == []
        assert shard.replicas[0] is second
        assert len(shard.replicas) == 2
    finally:
        shard.close()


class Stats(Ended):
    """The answer to a look at a replica."""

    def __init__(self, code=OK, **stats):
        super().__init__(code)
        self._stats = ann_pb2.StatsResponse(**stats)

    def cancelled(self):
        return False

    def result(self):
        return self._stats


def test_a_replica_in_the_wrong_place_gets_no_calls_until_it_is_in_the_right_one(monkeypatch):
    monkeypatch.setattr(Replica, "_note", lambda *_: None)  # nobody listens there, which grpc would say meanwhile
    shard = Shard(0, 2, ["127.0.0.1:9"], None)
    try:
        shard.look_up()
        (replica,) = shard.replicas
        replica.ready = True
        replica._learn("", Stats(version="v1", shard=0, shards=2))
        assert (replica.usable, replica.versions, shard.trouble) == (True, {"": "v1"}, None)
        replica._learn("", Stats(version="v1", shard=1, shards=2))
        assert shard.pick("", None, ()) is None
        assert "127.0.0.1:9 is shard 1 of 2, here it is listed as 0 of 2" in shard.trouble
        replica._learn("", Stats(version="v2", shard=0, shards=2))
        assert replica.usable
        replica._learn("", Stats(UNAVAILABLE))
        assert replica.versions == {}, "it is of no known version, and another is preferred"
    finally:
        shard.close()
