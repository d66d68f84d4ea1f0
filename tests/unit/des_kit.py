"""Small random markets, and what the tests of trainers/des say about them the slow way."""

from pathlib import Path

import numpy as np

from vitrine.data.market import MarketWriter

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
COLUMNS = ("user_id", "time_ms", "kind", "item_id", "crowd_id", "ad_id")


def write_market(folder: Path, *, users=40, items=60, crowds=12, seed=0, kinds=None, most_events=30) -> Path:
    """A market of random events; users like items of their own group, so that there is something to learn.

    kinds: probability of each kind of event
    """
    rng = np.random.default_rng(seed)
    kinds = kinds or {"purchase": 0.6, "view": 0.2, "join": 0.1, "leave": 0.1}
    item_ids = np.arange(1, items + 1) * 3
    crowd_ids = np.arange(1, crowds + 1) * 7
    ad_of = {int(i): 1000 + int(i) for i in item_ids}
    rows, held = [], []
    for user in range(1, users + 1):
        group, time_ms = rng.integers(3), START_MS
        for _ in range(rng.integers(2, most_events)):
            time_ms += int(rng.integers(0, 5) * DAY_MS // 2)
            item = int(rng.choice(item_ids[group::3]))
            kind = str(rng.choice(list(kinds), p=list(kinds.values())))
            named = {
                "item_id": item if kind in ("view", "purchase") else None,
                "crowd_id": int(rng.choice(crowd_ids)) if kind in ("join", "leave") else None,
                "ad_id": ad_of[item] if kind in ("impression", "click") else None,
            }
            rows.append({"user_id": user, "time_ms": time_ms, "kind": kind, **named})
        item = int(rng.choice(item_ids[group::3]))
        held.append(
            {"user_id": user, "time_ms": time_ms + DAY_MS, "kind": "purchase", "item_id": item, "crowd_id": None,
             "ad_id": ad_of[item]}
        )  # fmt: skip
    crowd_lists = [sorted(rng.choice(crowd_ids, rng.integers(1, 4), replace=False).tolist()) for _ in item_ids]
    with MarketWriter(folder, {"name": "small", "seed": seed}) as market:
        market.write("users", user_id=np.arange(1, users + 1))
        market.write("crowds", crowd_id=crowd_ids, name=[f"crowd {c}" for c in crowd_ids])
        market.write("items", item_id=item_ids, crowd_ids=crowd_lists, title=[f"item {i}" for i in item_ids])
        market.write(
            "ads", ad_id=list(ad_of.values()), advertiser_id=[1] * items, item_id=item_ids,
            title=[f"ad {i}" for i in item_ids],
        )  # fmt: skip
        bidding = [(c[0], ad_of[int(i)]) for i, c in zip(item_ids, crowd_lists, strict=True)]
        market.write("bids", crowd_id=[c for c, _ in bidding], ad_id=[a for _, a in bidding], bid=np.ones(items))
        for name, table in (("events", rows), ("holdout", held)):
            market.write(name, **{column: [row[column] for row in table] for column in COLUMNS})
    return folder
