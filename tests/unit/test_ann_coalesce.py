"""The coalescer: calls that wait for the same are searched as one, and none suffers by another."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from services.ann.coalesce import Coalescer
from tests.waiting import wait_for


class Caller:
    """Waits for ever, unless told otherwise. A caller who is gone has its call ended by GoneError."""

    def __init__(self, left_s=None):
        self.left_s, self.gone, self.stages = left_s, False, []

    def took(self, stage):
        self.stages.append(stage)

    def end(self, stage):
        self.took(stage)
        if self.gone or (self.left_s is not None and stage == "wait"):
            raise GoneError


class GoneError(Exception):
    pass


class Search:
    """Gives each row's double; notes its batches, and stays in each until it is let go."""

    def __init__(self):
        self.batches, self.go_on, self.at_a_time, self.most = [], threading.Semaphore(0), 0, 0
        self._lock = threading.Lock()

    def __call__(self, rows, between):
        with self._lock:
            self.at_a_time += 1
            self.most = max(self.most, self.at_a_time)
            self.batches.append(rows.tolist())
        try:
            assert self.go_on.acquire(timeout=30)
            between("graph")
            if (rows < 0).any():
                raise ValueError(f"{rows.tolist()} has a negative row")
            return [2 * row for row in rows.tolist()]
        finally:
            with self._lock:
                self.at_a_time -= 1


def split(found, sizes):
    ends = np.cumsum([0, *sizes]).tolist()
    return [found[begin:end] for begin, end in pairwise(ends)]


class Running:
    """A coalescer, a search, and calls to it on threads of their own."""

    def __init__(self, batches=1):
        self.search, self.coalescer = Search(), Coalescer(batches)
        self.pool = ThreadPoolExecutor(64)

    def call(self, *rows, alike="same", caller=None):
        asked = np.array(rows)
        return self.pool.submit(self.coalescer.run, alike, asked, self.search, split, caller or Caller())

    def wait_searching(self, batches):
        wait_for(lambda: len(self.search.batches) == batches, 30)

    def wait_waiting(self, calls):
        wait_for(lambda: len(self.coalescer._waiting) == calls, 30)

    def let_go(self, batches=1):
        for _ in range(batches):
            self.search.go_on.release()


@pytest.fixture
def running():
    made = Running()
    yield made
    made.let_go(100)
    made.pool.shutdown()


def test_a_call_that_comes_alone_is_searched_at_once(running):
    running.let_go(2)
    caller = Caller()
    assert running.call(3, 4, caller=caller).result(30) == [6, 8]
    assert running.call(5).result(30) == [10]
    assert running.search.batches == [[3, 4], [5]]
    assert caller.stages == ["graph"], "nobody waits while there is a place"


def test_those_who_come_during_a_search_are_one_batch_and_get_their_own(running):
    first = running.call(1)
    running.wait_searching(1)
    later = []
    for i in range(5):
        later.append(running.call(10 * i, 10 * i + 1))
        running.wait_waiting(i + 1)
    running.let_go(2)
    assert first.result(30) == [2]
    assert [call.result(30) for call in later] == [[20 * i, 20 * i + 2] for i in range(5)]
    assert running.search.batches == [[1], [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]]


def test_what_is_not_alike_is_searched_apart_in_the_order_it_came(running):
    calls = [running.call(0)]
    running.wait_searching(1)
    for i, alike in enumerate(("a", "b", "a", "b"), 1):
        calls.append(running.call(i, alike=alike))
        running.wait_waiting(i)
    running.let_go(3)
    assert [call.result(30) for call in calls] == [[0], [2], [4], [6], [8]]
    assert running.search.batches == [[0], [1, 3], [2, 4]]


def test_a_batch_has_no_more_rows_than_one_call_may_have(running):
    calls = [running.call(0)]
    running.wait_searching(1)
    for i in range(3):
        calls.append(running.call(*range(100)))
        running.wait_waiting(i + 1)
    running.let_go(3)
    assert all(call.result(30) for call in calls)
    assert [len(rows) for rows in running.search.batches] == [1, 200, 100]


def test_a_wrong_call_fails_alone(running):
    first = running.call(1)
    running.wait_searching(1)
    later = []
    for i, row in enumerate((5, -7, 6)):
        later.append(running.call(row))
        running.wait_waiting(i + 1)
    running.let_go(5)  # the first, the batch, and each of it by itself
    assert first.result(30) == [2]
    assert later[0].result(30) == [10]
    assert later[2].result(30) == [12]
    with pytest.raises(ValueError, match=r"\[-7\] has"):
        later[1].result(30)
    running.let_go()
    assert running.call(8).result(30) == [16], "the place is free again"


def test_a_wrong_call_by_itself_gives_its_place_back(running):
    running.let_go(2)
    with pytest.raises(ValueError, match="negative"):
        running.call(-1).result(30)
    assert running.call(8).result(30) == [16]


def test_a_leader_whose_caller_leaves_searches_on_for_the_others(running):
    running.call(1)
    running.wait_searching(1)
    leader, follower = Caller(), Caller()
    led = running.call(2, caller=leader)
    running.wait_waiting(1)
    followed = running.call(3, caller=follower)
    running.wait_waiting(2)
    running.let_go()
    running.wait_searching(2)
    leader.gone = True
    running.let_go()
    assert followed.result(30) == [6]
    assert led.result(30) == [4], "which grpc throws away"
    assert follower.stages == ["wait"]
    assert leader.stages == ["wait", "graph"]


def test_a_batch_ends_once_all_its_callers_have_left(running):
    running.call(1)
    running.wait_searching(1)
    callers = [Caller(), Caller()]
    calls = []
    for i, caller in enumerate(callers):
        calls.append(running.call(2 + i, caller=caller))
        running.wait_waiting(i + 1)
    running.let_go()
    running.wait_searching(2)
    for caller in callers:
        caller.gone = True
    running.let_go()
    for call in calls:
        with pytest.raises(GoneError):
            call.result(30)
    running.let_go()
    assert running.call(8).result(30) == [16]


def test_who_waits_past_the_deadline_leaves_and_is_not_searched_for(running):
    first = running.call(1)
    running.wait_searching(1)
    late = running.call(2, caller=Caller(left_s=0.01))
    with pytest.raises(GoneError):
        late.result(30)
    running.let_go()
    assert first.result(30) == [2]
    assert running.search.batches == [[1]]


def test_who_left_while_waiting_is_passed_over(running):
    first = running.call(1)
    running.wait_searching(1)
    gone = Caller()
    left = running.call(2, caller=gone)
    running.wait_waiting(1)
    stays = running.call(3)
    running.wait_waiting(2)
    gone.gone = True
    running.let_go(2)
    assert stays.result(30) == [6]
    assert first.result(30) == [2]
    with pytest.raises(GoneError):
        left.result(30)
    assert running.search.batches == [[1], [3]]


def test_no_more_searches_go_on_at_a_time_than_told():
    running = Running(batches=2)
    calls = [running.call(0), running.call(1)]
    running.wait_searching(2)
    for i in range(6):
        calls.append(running.call(2 + i))
        running.wait_waiting(i + 1)
    running.let_go(3)
    assert [call.result(30) for call in calls] == [[2 * i] for i in range(8)]
    assert running.search.most == 2
    running.pool.shutdown()


def test_without_batches_each_call_is_searched_by_itself_and_at_once():
    running = Running(batches=0)
    calls = [running.call(i) for i in range(5)]
    running.wait_searching(5)
    running.let_go(5)
    assert [call.result(30) for call in calls] == [[2 * i] for i in range(5)]
    running.pool.shutdown()


def test_a_storm_of_calls_with_wrong_and_impatient_ones_among_them_answers_all_the_others():
    coalescer, pool, rng = Coalescer(2), ThreadPoolExecutor(48), np.random.default_rng(0)

    def search(rows, between):
        time.sleep(0.0005)
        between("graph")
        if (rows < 0).any():
            raise ValueError("negative")
        return [2 * row for row in rows.tolist()]

    def call(i):
        wrong = i % 17 == 0
        caller = Caller(left_s=0.0001 if i % 13 == 0 else None)
        rows = np.array([i, -1 if wrong else i + 1])
        time.sleep(float(rng.random()) * 0.002)
        try:
            assert coalescer.run(i % 3, rows, search, split, caller) == [2 * i, 2 * i + 2]
            return "answered"
        except ValueError:
            assert wrong
            return "wrong"
        except GoneError:
            assert i % 13 == 0
            return "late"

    outcomes = Counter(pool.map(call, range(2000)))
    assert outcomes["answered"] >= 2000 - len(range(0, 2000, 17)) - len(range(0, 2000, 13))
    assert (coalescer._free, len(coalescer._waiting)) == (2, 0)
    pool.shutdown()
