"""Names and photos of the ids that services speak in: read from the `catalog` and `embeddings` artifacts."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vitrine.ann import embeddings
from vitrine.ann.embeddings import Embeddings
from vitrine.artifacts import ArtifactError, LocalArtifact
from vitrine.features import feature_keys
from vitrine.matching import catalog
from vitrine.matching.catalog import Catalog

_MOST_THUMBNAIL_BYTES = 1 << 30  # held in memory; a store with more shows names without photos

U64 = NDArray[np.uint64]


class _Table:
    """id -> text, by a binary search over sorted ids; empty where the artifact has no such file."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        try:
            table = pq.read_table(file, schema=schema) if file.exists() else schema.empty_table()
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(f"{file.name}: cannot be read ({error}); publish the catalog again") from error
        ids = table.column(0).to_numpy()
        order = np.argsort(ids)
        self.ids: U64 = ids[order]
        self.texts: pa.Array = table.column(1).combine_chunks().take(pa.array(order))

    def get(self, id: int) -> str:
        at = int(np.searchsorted(self.ids, np.uint64(id)))
        if at < len(self.ids) and int(self.ids[at]) == id:
            return self.texts[at].as_py() or ""
        return ""

    def search(self, text: str, most: int) -> list[tuple[int, str]]:
        found = pc.indices_nonzero(pc.match_substring(self.texts, text, ignore_case=True))[:most].to_pylist()
        return [(int(self.ids[row]), self.texts[row].as_py()) for row in found]


@dataclass(frozen=True)
class Names:
    """One version of the catalog, for display: titles of ads, names of crowds, which item an ad is for."""

    version: str
    catalog: Catalog
    _titles: _Table
    _crowds: _Table

    @classmethod
    def load(cls, artifact: LocalArtifact) -> "Names":
        """Reads the artifact; ArtifactError and CatalogError name the file that is wrong."""
        return cls(
            artifact.manifest.version,
            Catalog.load(artifact.path),
            _Table(artifact.path / catalog.TITLES_FILE, catalog.TITLES_SCHEMA),
            _Table(artifact.path / catalog.CROWD_NAMES_FILE, catalog.CROWD_NAMES_SCHEMA),
        )

    def ad(self, ad_id: int) -> str:
        return self._titles.get(ad_id) or f"ad {ad_id}"

    def crowd(self, crowd_id: int) -> str:
        return self._crowds.get(crowd_id) or f"crowd {crowd_id}"

    def item(self, item_id: int) -> str:
        """Title of an ad for the item, since the catalog has no titles of items; else its number."""
        ads = self.ads_of(item_id)
        return self.ad(ads[0]) if ads else f"item {item_id}"

    def item_of(self, ad_id: int) -> int:
        return self.catalog.item_of(ad_id)

    def ads_of(self, item_id: int) -> list[int]:
        """Ads for an item, ascending."""
        order = self._by_item
        first, last = np.searchsorted(self.catalog.ad_items[order], [item_id, item_id + 1])
        return sorted(self.catalog.ads[order[first : min(last, first + 100)]].tolist()) if item_id else []

    def find_ads(self, text: str, most: int) -> list[tuple[int, str]]:
        """(id, title) of ads whose title holds the text, in any case."""
        return self._titles.search(text, most)

    @cached_property
    def crowds_by_size(self) -> list[tuple[int, str]]:
        """(id, name) of the 200 crowds that most ads bid on."""
        biggest = np.argsort(-self.catalog.crowd_sizes, kind="stable")[:200]
        return [(int(id), self.crowd(int(id))) for id in self.catalog.crowds[biggest]]

    def crowd_named(self, text: str) -> int:
        """Id of the crowd of exactly this name, in any case; 0 for none."""
        folded = text.casefold()
        return next((id for id, name in self._crowds.search(text, 1_000) if name.casefold() == folded), 0)

    def meaning(self, keys: U64) -> list[tuple[str, int]]:
        """("item" | "crowd", id) of a user's feature keys; ("", 0) where the catalog lacks the value."""
        known, kinds, ids = self._features
        at = np.minimum(np.searchsorted(known, keys), max(0, len(known) - 1))
        return [
            (kinds[row], int(ids[row])) if len(known) and known[row] == key else ("", 0)
            for row, key in zip(at.tolist(), keys, strict=True)
        ]

    @cached_property
    def _by_item(self) -> NDArray[np.intp]:
        return np.argsort(self.catalog.ad_items, kind="stable")

    @cached_property
    def _features(self) -> tuple[U64, list[str], U64]:
        items = np.union1d(self.catalog.items, self.catalog.ad_items[self.catalog.ad_items > 0])
        ids = np.concatenate([items, self.catalog.crowds])
        keys = np.concatenate([feature_keys("user_item", items), feature_keys("user_crowd", self.catalog.crowds)])
        order = np.argsort(keys)
        kinds = np.repeat(["item", "crowd"], [len(items), len(self.catalog.crowds)])[order].tolist()
        return keys[order], kinds, ids[order]


@dataclass(frozen=True)
class Photos:
    """One version of the embeddings: each item's photo, category and vector."""

    version: str
    embeddings: Embeddings
    categories: list[str]
    held_out: NDArray[np.intp]  # rows of the test split, which no index holds
    images: pa.ChunkedArray | None

    @classmethod
    def load(cls, artifact: LocalArtifact) -> "Photos":
        """Reads the artifact; ArtifactError names the file that is wrong."""
        loaded = Embeddings.load(artifact.path)
        table = loaded.thumbnails(["split", "category"])
        entry = artifact.manifest.files.get(embeddings.THUMBNAILS_FILE)
        small = entry is not None and entry["size"] <= _MOST_THUMBNAIL_BYTES
        return cls(
            artifact.manifest.version,
            loaded,
            table["category"].to_pylist(),
            np.flatnonzero(np.array(table["split"].to_pylist()) == "test"),
            loaded.thumbnails(["image"])["image"] if small else None,
        )

    def row(self, item_id: int) -> int | None:
        at = int(np.searchsorted(self.embeddings.ids, np.uint64(item_id)))
        return at if at < len(self.embeddings.ids) and int(self.embeddings.ids[at]) == item_id else None

    def has(self, item_id: int) -> bool:
        """Whether `image` has the item's photo."""
        return self.images is not None and self.row(item_id) is not None

    def category(self, item_id: int) -> str:
        row = self.row(item_id)
        return "" if row is None else self.categories[row]

    def image(self, item_id: int) -> bytes | None:
        row = self.row(item_id)
        return None if row is None or self.images is None else self.images[row].as_py()

    def vector(self, item_id: int) -> NDArray[np.float32] | None:
        row = self.row(item_id)
        return None if row is None else np.asarray(self.embeddings.vectors[row])

    def some(self, count: int, page: int) -> list[int]:
        """Items of held-out photos (of all, where those are too few): a page of a fixed shuffle, endlessly."""
        rows = self.held_out if len(self.held_out) >= count else np.arange(len(self.embeddings.ids))
        shuffled = np.random.default_rng(0).permutation(rows)
        at = (page * count + np.arange(min(count, len(rows)))) % len(rows)
        return self.embeddings.ids[shuffled[at]].tolist()


def image_type(image: bytes) -> str:
    """The media type of a JPEG or PNG."""
    return "image/png" if image.startswith(b"\x89PNG") else "image/jpeg"


def etag(image: bytes) -> str:
    """A strong entity tag of the bytes."""
    return f'"{hashlib.sha256(image).hexdigest()[:32]}"'
