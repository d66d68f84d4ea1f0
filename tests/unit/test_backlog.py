"""The backlog's age, against a plain simulation that knows when every record was appended."""

from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrine.runtime.backlog import Backlog


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backlog(clock: Clock) -> Backlog:
    return Backlog(clock)


def test_nothing_unread_has_no_age(backlog: Backlog, clock: Clock):
    backlog.placed(3, 7)
    clock.now += 3_600
    backlog.ends({3: 7}, clock.now)
    assert backlog.records() == {3: 0}
    assert backlog.ages() == {3: 0.0}


def test_a_record_in_hand_grows_old_until_it_is_applied(backlog: Backlog, clock: Clock):
    backlog.placed(0, 5)
    backlog.offered(0, 940_000, 7)
    assert backlog.records() == {0: 2}
    assert backlog.ages() == {0: 60.0}
    clock.now += 10
    assert backlog.ages() == {0: 70.0}
    backlog.applied(0, 941_000, 7)
    assert backlog.ages() == {0: 0.0}
    assert backlog.records() == {0: 0}


def test_a_record_that_comes_after_a_quiet_hour_is_young(backlog: Backlog, clock: Clock):
    backlog.placed(0, 0)
    backlog.offered(0, 999_000, 1)
    backlog.applied(0, 999_000, 1)
    clock.now += 3_600
    backlog.ends({0: 1}, clock.now)
    backlog.ends({0: 2}, clock.now + 1)
    clock.now += 1
    assert backlog.ages() == {0: 1.0}  # and not an hour, the age of the record before it


def test_a_batch_that_failed_keeps_its_age_while_the_handler_is_away(backlog: Backlog, clock: Clock):
    backlog.placed(0, 5)
    backlog.offered(0, 990_000, 8)
    clock.now += 30
    backlog.ends({0: 20}, clock.now)
    assert backlog.ages() == {0: 40.0}
    backlog.placed(0, 5)  # the handler is back, and reads on from the same place
    assert backlog.ages() == {0: 40.0}
    assert backlog.records() == {0: 15}


def test_a_seek_within_a_batch_is_not_undone_by_its_end(backlog: Backlog):
    backlog.placed(0, 0)
    backlog.offered(0, 999_000, 10)
    backlog.placed(0, 4)
    backlog.applied(0, 999_500, 10)
    assert backlog.records() == {0: 6}
    assert backlog.ages() == {}  # the record at 4 was appended who knows when
    backlog.offered(0, 999_100, 10)
    assert backlog.ages() == {0: pytest.approx(0.9)}


def test_a_partition_that_is_gone_has_no_sample_and_does_not_come_back(backlog: Backlog, clock: Clock):
    for partition in (1, 2):
        backlog.placed(partition, 0)
        backlog.offered(partition, 999_000, 1)
    backlog.gone([1])
    backlog.applied(1, 999_000, 1)  # the batch in hand ends after the rebalance
    backlog.ends({1: 9, 2: 9}, clock.now)
    backlog.passed(1, 9)
    assert set(backlog.records()) == set(backlog.ages()) == {2}


def test_offsets_without_records_are_no_backlog(backlog: Backlog, clock: Clock):
    backlog.placed(0, 3)
    backlog.passed(0, 5)  # what a transaction leaves behind
    backlog.ends({0: 5}, clock.now)
    assert backlog.records() == {0: 0}
    assert backlog.ages() == {0: 0.0}


@given(
    st.lists(st.floats(0.001, 50), min_size=1, max_size=40),
    st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 6), st.booleans()), min_size=1, max_size=30),
)
def test_the_age_is_never_too_young_and_off_by_one_gap_at_most(gaps, steps):
    """steps: (seconds that pass, records then applied, whether the ends are asked for)."""
    appended = [1_000 + sum(gaps[: n + 1]) for n in range(len(gaps))]
    clock, position = Clock(), 0
    backlog = Backlog(clock)
    backlog.placed(0, 0)
    backlog.ends({0: 0}, clock.now)
    last_look = clock.now
    for seconds, count, asked in steps:
        clock.now += seconds
        end = bisect_right(appended, clock.now)
        taken = min(count, end - position)
        if taken:
            backlog.offered(0, int(appended[position] * 1000), position + taken)
            position += taken
            backlog.applied(0, int(appended[position - 1] * 1000), position)
        if not asked:
            continue
        backlog.ends({0: end}, clock.now)
        (age,) = backlog.ages().values()
        if position == end:
            last_look = clock.now
            assert age == 0
        else:
            known_since = max(last_look, appended[position - 1] if position else 0)
            truth, gap = clock.now - appended[position], appended[position] - known_since
            assert truth - 1e-6 <= age <= truth + gap + 0.002
