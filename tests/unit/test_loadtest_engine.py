"""The generator and the stair: what is timed from when, what counts as a failure, where the knee is put."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest import cores, engine
from loadtest.measured import Measured, merge
from loadtest.stair import HALVINGS, STEP, Stair, climb_together, holds
from loadtest.timed import Stopwatch


class Calls:
    """Answers at once, unless told otherwise by the call's number."""

    def __init__(self, stall=None, error=None, answer="fine", silent=()):
        self.stall, self.error, self.answer, self.silent = stall or {}, error or {}, answer, silent
        self.numbers = []

    def send(self, number):
        self.numbers.append(number)
        time.sleep(self.stall.get(number, 0))
        done = Future()
        if number in self.error:
            done.set_exception(self.error[number])
        elif number not in self.silent:
            done.set_result(self.answer)
        return done

    def wrong(self, number, answer):
        return None if answer == "fine" else f"wrong answer: {answer}"


def test_arrivals_are_a_poisson_process_that_a_seed_repeats():
    due = engine.arrivals(1_000, 60, seed=7)
    assert np.array_equal(due, engine.arrivals(1_000, 60, seed=7))
    assert not np.array_equal(due, engine.arrivals(1_000, 60, seed=8))
    gaps = np.diff(due)
    assert (gaps >= 0).all()
    # Exponential gaps: mean and standard deviation alike; counts: variance alike to the mean.
    assert np.mean(gaps) == pytest.approx(1e-3, rel=0.05)
    assert np.std(gaps) == pytest.approx(1e-3, rel=0.05)
    counts = np.histogram(due, bins=600, range=(0, 60))[0]
    assert np.var(counts) == pytest.approx(np.mean(counts), rel=0.25)


def test_calls_that_were_due_during_a_stall_have_waited_for_it():
    calls = Calls(stall={20: 0.4})
    seen = engine.open_loop(calls, 200, 1.0, seed=3)
    due = engine.arrivals(200, 1.0, seed=3)
    waited = ((due > due[20]) & (due < due[20] + 0.2)).sum()  # each for more than 0.2 s
    assert waited > 10
    assert slow_of(seen) >= waited, "a closed loop would have seen one slow call"
    assert seen.failed == 0


def slow_of(seen, over_us=199_000):
    return sum(
        item.count_added_in_this_iter_step
        for item in seen.histogram.get_recorded_iterator()
        if item.value_iterated_to > over_us
    )


class RefusedError(Exception):
    def code(self):
        return type("Code", (), {"name": "RESOURCE_EXHAUSTED"})


def test_failures_are_counted_by_what_went_wrong(monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE_S", 0.05)
    refused = engine.open_loop(
        Calls(error={0: RefusedError(), 2: RefusedError(), 3: ValueError("x")}, silent=(1,)), 100, 0.3
    )
    assert refused.failures == {"RESOURCE_EXHAUSTED": 2, "ValueError('x')": 1, "no answer": 1}
    assert refused.answered == refused.sent - 4
    wrong = engine.open_loop(Calls(answer="nonsense"), 50, 0.2)
    assert wrong.failures == {"wrong answer: nonsense": wrong.sent}
    assert not holds(wrong)


def test_the_warm_up_is_sent_and_not_measured():
    calls = Calls(error={0: RefusedError()})
    seen = engine.open_loop(calls, 200, 0.3, seed=1, warm_s=0.2)
    due = engine.arrivals(200, 0.5, seed=1)
    assert len(calls.numbers) == len(due)
    assert seen.sent == (due >= 0.2).sum()
    assert seen.failed == 0


def test_a_step_that_is_stopped_measures_what_it_sent():
    stopped = threading.Event()
    threading.Timer(0.2, stopped.set).start()
    calls = Calls()
    seen = engine.open_loop(calls, 300, 60, stopped=stopped.is_set)
    assert seen.sent == len(calls.numbers) == seen.answered
    assert seen.seconds < 60


def test_a_closed_loop_keeps_as_many_calls_in_flight_as_it_has_callers():
    flying, most, lock = 0, 0, threading.Lock()
    pool = ThreadPoolExecutor(64)

    class Counted(Calls):
        def send(self, number):
            def run():
                nonlocal flying, most
                with lock:
                    flying += 1
                    most = max(most, flying)
                time.sleep(0.002)
                with lock:
                    flying -= 1
                return "fine"

            return pool.submit(run)

    seen = engine.closed_loop(Counted(), 8, 0.2)
    assert most == 8
    assert seen.failed == 0
    assert seen.sent > 8


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=200), st.lists(st.floats(1, 1e6), max_size=200))
def test_generators_that_share_a_rate_measure_what_one_would_have(one, other):
    parts = []
    for latencies in (one, other):
        part = Measured(rate=50, seconds=2, sent=len(latencies), answered=len(latencies))
        part.record(np.array(latencies))
        part.failures["UNAVAILABLE"] += 1
        parts.append(Measured.from_json(part.to_json()))
    both = merge(parts)
    whole = Measured(rate=100, seconds=2, sent=len(one) + len(other))
    whole.record(np.array(one + other))
    assert (both.rate, both.sent, both.failed) == (100, whole.sent, 2)
    for percentile in (50, 99, 99.9):
        assert both.ms(percentile) == whole.ms(percentile)


def server(capacity, hiccups=()):
    """What a server of this capacity does at a rate; at the calls numbered in `hiccups` it does not keep up."""
    number = -1

    def drive(_name, rate):
        nonlocal number
        number += 1
        fine = rate <= capacity and number not in hiccups
        step = Measured(rate, 1, sent=1_000, answered=1_000 if fine else 900)
        step.record(np.full(1_000, 2_000.0))
        return step

    return drive


@settings(deadline=None)
@given(st.floats(10, 10_000), st.floats(0.2, 3))
def test_the_knee_is_the_highest_rate_that_held_and_close_to_the_capacity(capacity, start):
    stair = Stair(start * capacity)
    climb_together({"x": stair}, server(capacity), lambda name, stair: None)
    assert capacity / STEP ** (1 / 2**HALVINGS) / 1.2 <= stair.knee <= capacity
    if start <= 1:
        assert stair.knee >= capacity / STEP ** (1 / 2**HALVINGS) * 0.999


def test_one_hiccup_does_not_end_the_climb():
    stair = Stair(100)
    climb_together({"x": stair}, server(500, hiccups=(1,)), lambda name, stair: None)
    assert stair.knee > 450


def test_a_server_that_never_holds_has_no_knee():
    stair = Stair(100)
    climb_together({"x": stair}, server(0), lambda name, stair: None)
    assert stair.knee == 0


def test_what_is_slow_fails_or_falls_behind_does_not_hold():
    def step(answered=100, failures=0, latency_us=1_000.0):
        made = Measured(100, 1, sent=100, answered=answered)
        made.failures["UNAVAILABLE"] += failures
        made.record(np.full(100, latency_us))
        return made

    assert holds(step(98))
    assert not holds(step(97))
    assert not holds(step(failures=1))
    assert not holds(step(latency_us=51_000.0))
    assert not holds(Measured(100, 1))


def test_stairs_take_turns():
    order = []

    def drive(name, rate):
        order.append(name)
        return server(rate * 10)(name, rate) if len(order) < 9 else server(0)(name, rate)

    climb_together({"a": Stair(1_000), "b": Stair(1_000)}, drive, lambda name, stair: None)
    assert order[:8] == ["a", "b"] * 4


def test_servers_and_generators_get_cores_apart_where_there_are_two(monkeypatch):
    for available, servers, clients in (({0, 1}, (1,), (0,)), ({2, 3, 5, 7}, (7,), (2, 3, 5)), ({4}, (4,), (4,))):
        monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _, a=available: a)
        split = cores.split(1)
        assert (split.servers, split.clients) == (servers, clients)
        assert split.apart == (len(available) > 1)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert cores.split(9).clients == (0,), "the generator keeps one"


def test_a_stopwatch_adds_up_what_ran_under_it(tmp_path):
    watch = Stopwatch()

    def work(x, *, y):
        return x + y

    timed = watch.around("work", work)
    assert timed(1, y=2) == timed(2, y=1) == 3
    with pytest.raises(TypeError):
        timed()
    watch.write(tmp_path / "times.json")
    assert '"calls": {"work": 3}' in (tmp_path / "times.json").read_text()
