"""The simulated market: the same from the same seed, true to its click probability, in bounded memory."""

import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vitrine.data import draws
from vitrine.data.market import Market
from vitrine.data.pictures import CATEGORIES, SIZE, draw
from vitrine.data.schemas import EVENT_KINDS, TABLES
from vitrine.data.simulator import simulate_users, write_market
from vitrine.data.validate import validate
from vitrine.data.world import FIRST_AD_ID, World, affinity, click_probability

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world():
    return World.build(3, ads=300, items=350, crowds=60)


@pytest.fixture(scope="module")
def history(world):
    """Events of many users, as arrays, and what was held out."""
    return simulate_users(world, np.arange(1, 6001, dtype=np.uint64), 16.0)


def kinds(events, *names):
    return np.isin(events.kind, [list(EVENT_KINDS).index(name) for name in names])


def test_the_default_market_is_sound_and_of_the_default_sizes(tmp_path):
    stages = {}
    write_market(tmp_path, seed=1, progress=lambda stage, fraction: stages.__setitem__(stage, fraction))
    validate(tmp_path)
    sizes = Market(tmp_path).meta["sizes"]
    assert (sizes["users"], sizes["ads"], sizes["crowds"], sizes["images"]) == (5000, 2000, 400, 3000)
    assert 60_000 <= sizes["events"] <= 100_000
    assert stages == {"world": 1.0, "users": 1.0, "pictures": 1.0}


@pytest.mark.parametrize(
    "sizes",
    [
        {"users": 1, "ads": 1, "crowds": 1, "pictures": 0},
        {"users": 3, "ads": 2, "crowds": 500, "pictures": 1, "events_per_user": 1.0},
        {"users": 50, "ads": 40, "crowds": 3, "pictures": 60, "events_per_user": 90.0},
    ],
)
def test_markets_of_odd_sizes_are_sound(tmp_path, sizes):
    write_market(tmp_path, **sizes)
    validate(tmp_path)


def test_sizes_below_one_are_refused(tmp_path):
    for wrong in ({"users": 0}, {"ads": 0}, {"crowds": 0}, {"events_per_user": 0.5}, {"events_per_user": np.nan}):
        with pytest.raises(ValueError, match="must be 1 or more"):
            write_market(tmp_path, **wrong)


def tables(folder):
    market = Market(folder)
    return {name: market.table(name) for name in TABLES}


def test_chunks_do_not_show_in_what_is_written(tmp_path):
    sizes = {"users": 300, "ads": 50, "crowds": 20, "pictures": 5, "seed": 9}
    for chunk in (1, 64, 4096):
        write_market(tmp_path / str(chunk), **sizes, chunk_users=chunk)
    whole = tables(tmp_path / "4096")
    assert tables(tmp_path / "1") == whole
    assert tables(tmp_path / "64") == whole


def test_another_seed_is_another_market(tmp_path):
    for seed in (1, 2):
        write_market(tmp_path / str(seed), users=20, ads=20, crowds=10, pictures=2, seed=seed)
    one, two = tables(tmp_path / "1"), tables(tmp_path / "2")
    assert all(one[name] != two[name] for name in ("crowds", "items", "bids", "events", "holdout", "images"))


@given(st.sets(st.integers(1, 2**40), min_size=1, max_size=20), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_a_user_is_the_same_whoever_else_is_drawn(world, users, mean):
    together = np.array(sorted(users), np.uint64)
    events, held_out = simulate_users(world, together, float(mean))
    for row, user in enumerate(together):
        alone, next_click = simulate_users(world, together[row : row + 1], float(mean))
        mine = events.take(np.flatnonzero(events.user_id == user))
        for name in ("user_id", "time_ms", "kind", "item_id", "crowd_id", "ad_id"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(alone, name))
            assert getattr(held_out, name)[row] == getattr(next_click, name)[0]


def test_clicks_happen_as_often_as_their_probability_says(world, history):
    events, _ = history
    shown = np.flatnonzero(kinds(events, "impression"))
    clicked = np.append(kinds(events, "click"), False)[shown + 1]
    ads = events.ad_id[shown].astype(int) - FIRST_AD_ID
    p = click_probability(world.tastes(events.user_id[shown]), world.items[ads], world.quality[ads])
    # Reliability in ten bins of predicted probability: within 5 standard errors each.
    edges = np.quantile(p, np.linspace(0, 1, 11))
    for low, high in itertools.pairwise(edges):
        inside = (p >= low) & (p <= high)
        error = np.sqrt((p[inside] * (1 - p[inside])).sum())
        assert abs(clicked[inside].sum() - p[inside].sum()) <= 5 * error + 1e-9
    assert 0.03 < clicked.mean() < 0.4


def test_a_click_follows_its_impression_of_the_same_ad(history):
    events, _ = history
    at = np.flatnonzero(kinds(events, "click"))
    assert len(at) > 1000
    assert kinds(events, "impression")[at - 1].all()
    for name in ("user_id", "ad_id"):
        np.testing.assert_array_equal(getattr(events, name)[at], getattr(events, name)[at - 1])
    assert (np.diff(events.time_ms)[at - 1] >= 0).all()
    assert (np.diff(events.time_ms)[at - 1] <= 30_000).all()


def test_whoever_leaves_a_crowd_has_joined_it(history):
    events, _ = history
    joined = set(zip(*(x[kinds(events, "join")].tolist() for x in (events.user_id, events.crowd_id)), strict=True))
    left = list(zip(*(x[kinds(events, "leave")].tolist() for x in (events.user_id, events.crowd_id)), strict=True))
    assert left
    assert joined.issuperset(left)


def test_the_held_out_click_is_after_all_of_the_users_history(history):
    events, held_out = history
    last = np.zeros(len(held_out.user_id) + 1, np.int64)
    np.maximum.at(last, events.user_id.astype(int), events.time_ms)
    assert (held_out.time_ms > last[held_out.user_id.astype(int)]).all()
    np.testing.assert_array_equal(held_out.item_id + FIRST_AD_ID - 1, held_out.ad_id)


def test_crowds_are_long_tailed_in_users_and_in_ads(world, history):
    events, _ = history
    joins = np.bincount(events.crowd_id[kinds(events, "join")].astype(int), minlength=61)[1:]
    assert joins.max() > 8 * np.median(joins)
    ads = np.bincount(world.item_crowds, minlength=60)
    assert ads.max() > 5 * np.median(ads)


def test_taste_tells_the_next_click_from_a_popular_ad(world, history):
    events, held_out = history
    clicks = np.bincount(events.ad_id[kinds(events, "click")].astype(int) - FIRST_AD_ID, minlength=world.ads)
    popular = np.random.default_rng(0).choice(world.ads, len(held_out.ad_id), p=clicks / clicks.sum())
    tastes = world.tastes(held_out.user_id)
    next_ad = held_out.ad_id.astype(int) - FIRST_AD_ID
    liked, other = affinity(tastes, world.items[next_ad]), affinity(tastes, world.items[popular])
    assert 0.8 < (liked[:, None] > other[None, ::7]).mean() < 0.97


def test_bids_are_lognormal(tmp_path):
    write_market(tmp_path, users=1, ads=3000, crowds=100, pictures=0, seed=4)
    logs = np.log(Market(tmp_path).column("bids", "bid"))
    standard = (logs - logs.mean()) / logs.std()
    assert abs((standard**3).mean()) < 0.1
    assert abs((standard**4).mean() - 3) < 0.2


def test_a_markets_world_is_made_again_from_its_meta(tmp_path):
    write_market(tmp_path, users=30, ads=20, crowds=10, pictures=25, seed=6)
    market = Market(tmp_path)
    world = World.of_market(market.meta)
    lists = market.table("items")["crowd_ids"].to_pylist()
    assert lists == [(world.item_crowds[a:b] + 1).tolist() for a, b in itertools.pairwise(world.item_indptr)]


def test_a_picture_shows_its_items_category(tmp_path):
    write_market(tmp_path, users=1, ads=5, crowds=5, pictures=60, seed=2)
    market = Market(tmp_path)
    titles = dict(zip(market.column("items", "item_id"), market.column("items", "title"), strict=True))
    for row in market.table("images").to_pylist():
        assert f" {row['category']} " in titles[row["item_id"]]
        assert Image.open(io.BytesIO(row["image"])).size == (SIZE, SIZE)


def test_pictures_of_one_category_differ_and_are_drawn_again_alike():
    for category in CATEGORIES:
        assert draw(1, 1, category) != draw(1, 2, category)
        assert draw(1, 1, category) == draw(1, 1, category)


def test_an_outline_tells_a_category_where_pixels_do_not(tmp_path):
    """Nearest by the outline (edges, folded left to right) is far more often right than nearest by pixels."""
    items = np.arange(600)
    labels = items % len(CATEGORIES)
    pictures = [draw(5, int(i) + 1, CATEGORIES[c]) for i, c in zip(items, labels, strict=True)]
    rgb = np.stack([np.asarray(Image.open(io.BytesIO(p)), np.float32) / 255 for p in pictures])
    ground = np.median(rgb[:, [0, -1]], axis=(1, 2))  # the first and last rows show background
    mask = (np.abs(rgb - ground[:, None, None]).sum(3) > 0.45).astype(np.float32)
    small = mask.reshape(len(mask), 16, SIZE // 16, 16, SIZE // 16).mean((2, 4))
    by_outline = same_at_1((small + small[:, :, ::-1]).reshape(len(items), -1), labels)
    by_pixels = same_at_1(rgb.reshape(len(items), -1), labels)
    assert by_pixels < 0.5
    assert by_outline > by_pixels + 0.2


def same_at_1(x, labels):
    distances = (x**2).sum(1)[:, None] + (x**2).sum(1)[None] - 2 * x @ x.T
    np.fill_diagonal(distances, np.inf)
    return (labels[distances.argmin(1)] == labels).mean()


@given(st.integers(0, 2**31), st.lists(st.integers(0, 2**62), min_size=1, max_size=30))
def test_draws_do_not_depend_on_the_batch(seed, counters):
    batch = draws.uniform(seed, "stream", counters)
    assert batch.tolist() == [float(draws.uniform(seed, "stream", c)[0]) for c in counters]
    assert ((batch > 0) & (batch < 1)).all()


def test_draws_are_even_and_streams_do_not_agree():
    n = 200_000
    u = draws.uniform(1, "a", np.arange(n))
    assert np.abs(np.histogram(u, 100, (0, 1))[0] - n / 100).max() < 5 * np.sqrt(n / 100)
    for other in (draws.uniform(1, "b", np.arange(n)), draws.uniform(2, "a", np.arange(n)), np.roll(u, 1)):
        assert abs(np.corrcoef(u, other)[0, 1]) < 0.015
    z = draws.normal(1, "a", np.arange(n))
    assert abs(z.mean()) < 0.02
    assert abs(z.std() - 1) < 0.02


def peak_mb(folder, users, events_per_user):
    """Peak resident memory of a process that writes a market of so many users."""
    script = (
        "import resource, sys; from vitrine.data.simulator import write_market;"
        f"write_market(sys.argv[1], users={users}, ads=500, pictures=0, events_per_user={events_per_user});"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = [sys.executable, "-c", script, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    return int(done.stdout) / 1024


def test_peak_memory_does_not_grow_with_users(tmp_path):
    assert peak_mb(tmp_path / "many", 60_000, 4.0) <= 1.2 * peak_mb(tmp_path / "few", 10_000, 4.0)


@pytest.mark.slow
def test_peak_memory_at_a_million_users_is_that_at_ten_thousand(tmp_path):
    assert peak_mb(tmp_path / "many", 1_000_000, 8.0) <= 1.2 * peak_mb(tmp_path / "few", 10_000, 8.0)
