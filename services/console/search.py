"""The Search page: a photo, its nearest items, and what the chosen over-recall misses of the exact answer."""

import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from services.console import draw, recall
from services.console.backend import Backend
from services.console.shown import Photos
from services.console.trouble import Trouble, calling, need
from vitrine.client import IndexStats

GRID = 24
PAGES = 10_000


@dataclass(frozen=True)
class Query:
    """What is searched by: an item's photo, or an upload; and how deep. over_recall 0: the index's default."""

    item: int = 0
    upload: str = ""
    over_recall: int = 0

    @property
    def url(self) -> str:
        """As the parameters of a URL."""
        what = f"upload={quote(self.upload)}" if self.upload else f"item={self.item}"
        return f"{what}&over_recall={self.over_recall}"


@dataclass(frozen=True)
class Neighbour:
    """An item found, or missed, as shown."""

    item: int
    photo: bool
    category: str
    same: bool | None  # whether it is of the query's category; None where that is not known
    score: float
    distance: int


@dataclass(frozen=True)
class Results:
    """An answer beside the exact one. measuring: the recall curve is on its way"""

    query: Query
    stats: IndexStats
    category: str
    found: list[Neighbour]
    missed: list[Neighbour]
    hits: int
    wanted: int
    exact: bool
    seconds: float
    curve: recall.Curve | None
    measuring: bool
    chart: Any = field(default="")

    @property
    def same(self) -> int:
        return sum(bool(n.same) for n in self.found)


def grid(photos: Photos | None, page: int) -> list[tuple[int, str]]:
    """(item, category) of the photos to choose from."""
    if photos is None or photos.images is None:
        return []
    return [(item, photos.category(item)) for item in photos.some(GRID, page)]


def answer(backend: Backend, query: Query) -> Results:
    """Searches twice, as asked and exactly. Raises Trouble, InputError."""
    ann = need(backend.ann, "ann service", "VITRINE_ANN_ADDRESS")
    photos = backend.photos.current
    with calling("ann service", backend.config.ann_address):
        stats = ann.stats()
        asked = _asked(backend, photos, stats, query)
        over_recall = query.over_recall or stats.over_recall
        k = recall.K + 1  # an indexed photo finds itself
        begun = time.perf_counter()
        found = ann.search(**asked, k=k, over_recall=over_recall)
        seconds = time.perf_counter() - begun
        exact = recall.reference(ann, stats, asked, k)[0]
        held_out = _held_out(photos, stats)
        curve = backend.curves.get(ann, stats, held_out) if len(held_out) else None
    assert found.scores is not None
    category = photos.category(query.item) if photos and query.item else ""
    shown = _neighbours(photos, query, category, found.ids[0], found.scores[0], found.distances[0])
    wanted = _neighbours(photos, query, category, exact.ids, exact.scores, exact.distances)
    have = {n.item for n in shown}
    missed = [n for n in wanted if n.item not in have]
    return Results(
        Query(query.item, query.upload, over_recall),
        stats,
        category,
        shown,
        missed,
        len(wanted) - len(missed),
        len(wanted),
        exact.exact,
        seconds,
        curve,
        curve is None and len(held_out) > 0,
        chart=draw.recall_curve(curve.points, min(over_recall, recall.SLIDER), curve.at(over_recall))
        if curve
        else "",
    )


def _asked(backend: Backend, photos: Photos | None, stats: IndexStats, query: Query) -> dict[str, Any]:
    """The query as arguments of `AnnClient.search`."""
    if query.upload:
        if not stats.pictures:
            raise Trouble(
                "This index cannot read photos", "Its embeddings have no encoder; choose a photo below.", 400
            )
        return {"picture": backend.uploads.get(query.upload)}
    if photos is None:
        raise Trouble("There are no photos", backend.photos.trouble or "")
    vector, image = photos.vector(query.item), photos.image(query.item)
    if vector is None:
        raise Trouble("No such photo", f"The embeddings hold no item {query.item}; choose a photo below.", 404)
    if photos.version == stats.embeddings_version:
        return {"vectors": vector}
    if image is None or not stats.pictures:
        raise Trouble("Photos and index do not fit", "They are of two embedding versions; wait for the next index.")
    return {"picture": image}


def _held_out(photos: Photos | None, stats: IndexStats) -> Any:
    """Vectors float32 (n, dim) that the curve is measured over; none unless of the index's own embedding."""
    if photos is None or photos.version != stats.embeddings_version:
        return ()
    return photos.embeddings.vectors[photos.held_out]


def _neighbours(
    photos: Photos | None, query: Query, category: str, ids: Any, scores: Any, distances: Any
) -> list[Neighbour]:
    found = []
    for item, score, distance in zip(ids.tolist(), scores.tolist(), distances.tolist(), strict=True):
        if item != query.item:
            theirs = photos.category(item) if photos else ""
            same = theirs == category if category and theirs else None
            found.append(Neighbour(item, bool(photos and photos.has(item)), theirs, same, score, distance))
    return found[: recall.K]
