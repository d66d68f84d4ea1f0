"""Amazon Beauty and the clothing photos as a market: an item is an ad, an attribute a crowd (shared data README).

What the source lacks is drawn with a seed: bids. Advertiser, times and names are made by rule. Each user's last
purchase is the hold-out.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitrine.data import draws
from vitrine.data.market import MarketWriter
from vitrine.data.schemas import DataError

INTERACTIONS = "amazon_beauty_interactions.parquet"
ATTRIBUTES = "amazon_beauty_attributes.parquet"
PHOTOS = "clothing.parquet"

IMAGE_ID_BASE = 1_000_000_001
"""item_id of the photo with image_id 0: the photos are a catalogue apart from Beauty's items."""

START_MS = 1_704_067_200_000  # 2024-01-01 UTC; the source knows order in time, not time
DAY_MS = 86_400_000

Progress = Callable[[str, float], None]
Ids = NDArray[np.uint64]


def recognise(folder: Path | str) -> bool:
    """Whether the folder holds the Beauty tables and the clothing photos."""
    return all((Path(folder) / name).is_file() for name in (INTERACTIONS, ATTRIBUTES, PHOTOS))


def convert(
    folder: Path | str, out: Path | str, seed: int = 0, progress: Progress = lambda stage, fraction: None
) -> None:
    """Write the market folder `out` from the shared data in `folder`, which is only read.

    progress(stage, fraction of it) is called around every stage. Raises DataError where `recognise` is false.
    """
    folder = Path(folder)
    if not recognise(folder):
        raise DataError([f"{folder}: not the Beauty data; wanted are {INTERACTIONS}, {ATTRIBUTES} and {PHOTOS}"])
    with MarketWriter(out, {"name": "Amazon Beauty", "seed": seed, "source": "beauty"}) as market:
        for stage, write in _STAGES.items():
            progress(stage, 0.0)
            write(folder, market, seed)
            progress(stage, 1.0)


def _item_attributes(folder: Path) -> tuple[Ids, Ids, Ids]:
    """(items, items of the pairs, attributes of the pairs), ascending; some pairs are twice in the source."""
    table = pq.read_table(folder / ATTRIBUTES)
    items = table["item_id"].to_numpy().astype(np.uint64)
    lists = table["attribute_ids"].combine_chunks()
    pairs = np.stack(
        [np.repeat(items, lists.value_lengths().to_numpy()), lists.flatten().to_numpy().astype(np.uint64)]
    )
    return np.sort(items), *np.unique(pairs, axis=1)


def _write_items(folder: Path, market: MarketWriter, seed: int) -> None:
    items, owners, attributes = _item_attributes(folder)
    starts = np.searchsorted(owners, items)
    crowds, counts = np.unique(attributes, return_counts=True)

    # Brands are rarer than categories: an item's rarest attribute stands for who sells it; ties: the lower id.
    rarest_first = np.lexsort((attributes, counts[np.searchsorted(crowds, attributes)], owners))
    advertisers = attributes[rarest_first[starts]]

    titles = [f"item {i}" for i in items]
    lists = pa.ListArray.from_arrays(pa.array(np.append(starts, len(owners)), pa.int32()), pa.array(attributes))
    market.write("items", item_id=items, crowd_ids=lists, title=titles)
    market.write("ads", ad_id=items, advertiser_id=advertisers, item_id=items, title=titles)
    market.write("crowds", crowd_id=crowds, name=[f"attribute {c}" for c in crowds])


def _write_bids(folder: Path, market: MarketWriter, seed: int) -> None:
    """Each ad bids on each of its attributes: lognormal, median 0.37, drawn by (ad, crowd)."""
    _, ads, crowds = _item_attributes(folder)
    order = np.lexsort((ads, crowds))
    ads, crowds = ads[order], crowds[order]
    bids = np.exp(-1.0 + 0.8 * draws.normal(seed, "bid", ads, crowds)).astype(np.float32)
    market.write("bids", crowd_id=crowds, ad_id=ads, bid=bids)


def _write_events(folder: Path, market: MarketWriter, seed: int) -> None:
    """Purchases, one day apart by position; the hold-out names the item and the ad, which are the same id."""
    table = pq.read_table(folder / INTERACTIONS)
    users = table["user_id"].to_numpy().astype(np.uint64)
    positions = table["position"].to_numpy().astype(np.int64)
    items = table["item_id"].to_numpy().astype(np.uint64)
    order = np.lexsort((positions, users))
    users, positions, items = users[order], positions[order], items[order]
    last = np.append(users[1:] != users[:-1], True)
    market.write("users", user_id=users[last])
    for name, rows in (("events", ~last), ("holdout", last)):
        n = int(rows.sum())
        market.write(
            name,
            user_id=users[rows],
            time_ms=START_MS + positions[rows] * DAY_MS,
            kind=pa.repeat("purchase", n),
            item_id=items[rows],
            crowd_id=pa.nulls(n, pa.uint64()),
            ad_id=items[rows] if name == "holdout" else pa.nulls(n, pa.uint64()),
        )


def _write_images(folder: Path, market: MarketWriter, seed: int) -> None:
    with pq.ParquetFile(folder / PHOTOS) as photos:
        for batch in photos.iter_batches(batch_size=512, columns=["image_id", "split", "category", "image"]):
            market.write(
                "images",
                item_id=pc.add(batch["image_id"], IMAGE_ID_BASE),
                split=batch["split"],
                category=batch["category"],
                image=batch["image"],
            )


_STAGES: dict[str, Callable[[Path, MarketWriter, int], None]] = {
    "items": _write_items,
    "bids": _write_bids,
    "events": _write_events,
    "images": _write_images,
}
