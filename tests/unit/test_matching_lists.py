"""Lists brought up to date by increments against all eligible pairs, whatever users and the market do meanwhile."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matching_increments import USERS, World, contents

from vitrine.matching import lists
from vitrine.matching.lists import Before, Work

EVENTS = ("join", "leave", "view", "click", "impression", "block", "unblock", "wait", "refresh")
CHANGES = ("define", "define", "state", "gate", "tombstone", "fold")

numbers = st.integers(0, 200)
steps = st.one_of(
    st.tuples(st.just("event"), st.sampled_from(USERS), st.sampled_from(EVENTS), numbers),
    st.tuples(st.just("change"), st.sampled_from(CHANGES), numbers, numbers),
    st.tuples(st.just("bring"), st.lists(st.sampled_from(USERS), unique=True, min_size=1)),
)


def run(world: World, todo) -> World:
    for kind, *step in todo:
        getattr(world, kind)(*step)
    world.bring()
    return world


@given(st.lists(steps, max_size=25), st.sampled_from([(8, 4), (3, 1), (100, 4)]), st.sampled_from([0, 0, 1, 2]))
@settings(max_examples=300, deadline=None)
def test_a_list_holds_all_that_is_at_or_above_its_floor_after_any_changes(todo, sizes, advertiser_cap):
    run(World(*sizes, advertiser_cap=advertiser_cap), todo)
