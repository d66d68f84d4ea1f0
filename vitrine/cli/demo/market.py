"""What the demo reads of the market folder: names to show, held-out events to send, photos to search with."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vitrine.api.events.v1.events_pb2 import UserEvent
from vitrine.data.replay import user_event, user_events


@dataclass(frozen=True)
class Photo:
    """A product picture: its item, its category, and the JPEG or PNG bytes."""

    item_id: int
    category: str
    image: bytes


@dataclass(frozen=True)
class MarketView:
    """Names by id, and what was held out of training.

    purchases: one a user: the held-out purchase, or that of the item whose ad the held-out click was on
    queries:   test photos, which neither the encoder nor the index has seen
    photos:    the indexed photos by item
    """

    titles: dict[int, str]
    items: dict[int, str]
    crowds: dict[int, str]
    purchases: list[UserEvent]
    queries: list[Photo]
    photos: dict[int, Photo]

    def ad(self, ad_id: int) -> str:
        """An ad's title, or its id."""
        return self.titles.get(ad_id) or f"ad {ad_id}"

    def item(self, item_id: int) -> str:
        """An item's title, or its id."""
        return self.items.get(item_id) or f"item {item_id}"

    def crowd(self, crowd_id: int) -> str:
        """A crowd's name, or its id."""
        return self.crowds.get(crowd_id) or f"crowd {crowd_id}"


def open_view(folder: Path, seed: int) -> MarketView:
    """Read the view; purchases and test photos come shuffled by `seed`."""
    ads = pq.read_table(folder / "ads.parquet", columns=["ad_id", "item_id", "title"])
    items = pq.read_table(folder / "items.parquet", columns=["item_id", "title"])
    crowds = pq.read_table(folder / "crowds.parquet", columns=["crowd_id", "name"])
    table = pq.read_table(folder / "images.parquet")
    columns = (table[name].to_pylist() for name in ("item_id", "split", "category", "image"))
    photos = [(split, Photo(item, category, image)) for item, split, category, image in zip(*columns, strict=True)]
    item_of = dict(zip(ads["ad_id"].to_pylist(), ads["item_id"].to_pylist(), strict=True))
    purchases = [_purchase(event, item_of) for event in user_events(folder / "holdout.parquet")]
    queries = [photo for split, photo in photos if split == "test"]
    random = np.random.default_rng(seed)
    return MarketView(
        titles=dict(zip(ads["ad_id"].to_pylist(), ads["title"].to_pylist(), strict=True)),
        items=dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True)),
        crowds=dict(zip(crowds["crowd_id"].to_pylist(), crowds["name"].to_pylist(), strict=True)),
        purchases=[purchases[i] for i in random.permutation(len(purchases))],
        queries=[queries[i] for i in random.permutation(len(queries))],
        photos={photo.item_id: photo for split, photo in photos if split != "test"},
    )


def _purchase(held_out: UserEvent, item_of: dict[int, int]) -> UserEvent:
    if held_out.WhichOneof("kind") == "item":
        return held_out
    return user_event("purchase", held_out.user_id, held_out.time_ms, item_of[held_out.click.ad_id], 0, 0)
