"""Ad updates as they are read: records in, a market as of the last one out, and which activation rules when.

Read the topic from offset 0: it is compacted, activations may be older than any catalog, and what a catalog
contains already (records below its offset) changes nothing of it.
"""

import threading
from array import array
from bisect import bisect_right
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from vitrine.matching.ad_records import (
    Activated,
    AdChange,
    Gate,
    activation_key,
    ad_key,
    definition_of,
    gate_key,
    parse,
)
from vitrine.matching.catalog import OFF, Catalog
from vitrine.matching.events import RecordError
from vitrine.matching.market import Ad, Changes, Market, ad_of
from vitrine.matching.merge import adjusted, merged

__all__ = [
    "FOLD_AT", "Activated", "Active", "AdChange", "Gate", "RecordError", "Updates", "activation_key", "ad_key",
    "definition_of", "gate_key", "parse",
]  # fmt: skip

FOLD_AT = 10_000
"""Redefined ads beyond which base and extra are made one in the background."""

_GATES = OFF["schedule"] | OFF["budget"]


class Active(NamedTuple):
    """An activation: it rules user events appended at `effective_ms` or later, up to the next one's.

    offset: of its record; the epoch of what is made under it
    """

    effective_ms: int
    offset: int
    catalog_version: str
    towers_version: str
    other_towers_version: str
    other_share: int


class Updates:
    """What `ad-updates` says over one catalog. `apply` is a tail's; the rest may be called from other threads."""

    def __init__(self, catalog: Catalog, version: str, offset: int, *, fold_at: int = FOLD_AT) -> None:
        """offset: next offset of `ad-updates` that the catalog artifact contains (its manifest's, or meta's)."""
        self.catalog = catalog
        self.version = version
        self.offset = offset
        self.position = 0
        self._fold_at = fold_at
        self._lock = threading.RLock()
        self._records: dict[int, tuple[int, bytes | None]] = {}  # ad -> offset and value of its last record
        self._gates: dict[int, tuple[int, int | None]] = {}  # ad -> offset and bits of its last gate
        self._offsets, self._changed = array("q"), array("Q")  # the log of changes: only ever appended to
        self._activated: dict[bytes, Active] = {}
        self._activations: tuple[Active, ...] = ()
        self._base = catalog
        self._overlay: dict[int, Ad | None] = {}
        self._extra: set[int] = set()  # the ads of the market's extra
        self._dirty: set[int] = set()
        self._market: Market | None = None
        self._folding: threading.Thread | None = None

    @property
    def activations(self) -> tuple[Active, ...]:
        """Ascending in time and offset. One that a later record overtakes before it rules is left out."""
        return self._activations

    def ruling(self, append_ms: int) -> Active | None:
        """The activation that rules a user event appended then; None before the first."""
        at = bisect_right(self._activations, append_ms, key=lambda active: active.effective_ms)
        return self._activations[at - 1] if at else None

    def apply(self, offset: int, append_ms: int, key: bytes | None, value: bytes | None) -> None:
        """Takes one record; `append_ms` is the broker's time for it.

        Raises RecordError for one that is none of the three; it is passed over, and counts in `position`.
        """
        with self._lock:
            self.position = max(self.position, offset + 1)
            record = parse(key, value)
            if isinstance(record, Activated):
                self._activate(record, offset, append_ms)
                return
            ad_id = record.ad_id
            if isinstance(record, Gate):
                self._gates[ad_id] = (offset, record.off)
            else:
                self._records[ad_id] = (offset, value)
            self._note(offset, ad_id)
            if offset >= self.offset:
                self._overlay[ad_id] = self._resolved(ad_id, record if isinstance(record, AdChange) else None)
                self._dirty.add(ad_id)

    def market(self) -> Market:
        """All ads as of `position`; the same object while nothing is applied."""
        with self._lock:
            market = self._snapshot()
            if len(self._extra) > self._fold_at and self._folding is None:
                self._folding = threading.Thread(target=self.fold, name="fold ads", daemon=True)
                self._folding.start()
            return market

    def fold(self) -> None:
        """Makes base and extra one catalog in memory. Nothing waits for it; `market` starts it when it is time."""
        try:
            with self._lock:
                market = self._snapshot()
            base = merged(market)
            with self._lock:
                self._base = base
                self._overlay = {
                    ad_id: ad for ad_id, ad in self._overlay.items() if market.overlay.get(ad_id, _NEVER) is not ad
                }
                self._extra, self._dirty, self._market = set(), set(self._overlay), None
        finally:
            self._folding = None

    def wait_folded(self, timeout_s: float) -> None:
        """Waits for a fold that is under way."""
        folding = self._folding
        if folding is not None:
            folding.join(timeout_s)

    def over(self, catalog: Catalog, version: str, offset: int) -> "Updates":
        """The same records over another catalog, an older one too.

        To be called while nothing is applied (`Tail.held`): from there on, each must be given every record.
        """
        other = Updates(catalog, version, offset, fold_at=self._fold_at)
        with self._lock:
            other.position = self.position
            other._records, other._gates = dict(self._records), dict(self._gates)
            other._offsets, other._changed = self._offsets[:], self._changed[:]
            other._activated, other._activations = dict(self._activated), self._activations
        for ad_id in other._records.keys() | other._gates.keys():
            if max(other._records.get(ad_id, _NONE)[0], other._gates.get(ad_id, _NONE)[0]) >= offset:
                other._overlay[ad_id] = other._resolved(ad_id, None)
        other._dirty = set(other._overlay)
        return other

    def _resolved(self, ad_id: int, change: AdChange | None) -> Ad | None:
        """An ad by the catalog and its last records; `change`: the last one, where it is at hand parsed."""
        base = ad_of(self.catalog, ad_id)
        at, value = self._records.get(ad_id, _NONE)
        gate_at, gate = self._gates.get(ad_id, _NONE_YET)
        off = base.off if base is not None else 0
        if gate_at >= self.offset:
            off = off & ~_GATES | (gate or 0)
        definition = None
        if at >= self.offset:
            parsed = change or parse(ad_key(ad_id), value)
            assert isinstance(parsed, AdChange)
            definition = parsed.definition
            if parsed.off is not None:
                off = off & _GATES | parsed.off
        changed = max(at if at >= self.offset else -1, gate_at if gate_at >= self.offset else -1)
        if definition is None:
            return replace(base, live=off == 0, off=off, changed=changed) if base is not None else None
        return Ad(
            ad_id=ad_id,
            advertiser=definition.advertiser,
            item=definition.item,
            crowds=definition.crowds,
            bids=definition.bids,
            negatives=definition.negatives,
            groups=definition.groups,
            max_impressions=definition.max_impressions,
            live=off == 0,
            number=base.number if base is not None else None,
            changed=changed,
            off=off,
            start_ms=definition.start_ms,
            end_ms=definition.end_ms,
            daily_budget=definition.daily_budget,
        )

    def _snapshot(self) -> Market:
        before = self._market or Market.of(self._base, self.version)
        if self._dirty or self._market is None:
            before = self._moved(before)
        elif before.position == self.position:
            return before
        changes = Changes(self._offsets, self._changed, len(self._offsets))
        self._market = replace(before, position=self.position, changes=changes)
        return self._market

    def _moved(self, before: Market) -> Market:
        """The market with the dirty ads as they are now."""
        dead, redefined = before.dead.copy(), before.redefined.copy()
        dirty = sorted(self._dirty)
        rows, known = self._base.ad_ordinals(dirty)
        row_of = dict(zip(np.array(dirty, np.uint64)[known].tolist(), rows.tolist(), strict=True))
        new: list[Ad] = []
        gone: list[int] = []
        for ad_id in dirty:
            ad, row = self._overlay[ad_id], row_of.get(ad_id)
            other = True
            if row is not None:
                base = ad_of(self._base, ad_id)
                assert base is not None
                other = ad is not None and not ad.defined_as(base)
                redefined[row] = other
                dead[row] = other or ad is None or not ad.live
            if ad is not None and ad.live and other:
                new.append(ad)
                self._extra.add(ad_id)
            elif ad_id in self._extra:
                gone.append(ad_id)
                self._extra.remove(ad_id)
        self._dirty = set()
        extra = adjusted(before.extra, self._base, new, gone) if new or gone else before.extra
        return replace(before, dead=dead, redefined=redefined, extra=extra, overlay=dict(self._overlay))

    def _note(self, offset: int, ad_id: int) -> None:
        """One more change in the log, which is written anew where most of it is overtaken."""
        self._offsets.append(offset)
        self._changed.append(ad_id)
        if len(self._offsets) > 2 * (len(self._records) + len(self._gates)) + 1024:
            last = sorted((at, ad) for ad, at in dict(zip(self._changed, self._offsets, strict=True)).items())
            self._offsets, self._changed = array("q", [at for at, _ in last]), array("Q", [ad for _, ad in last])

    def _activate(self, record: Activated, offset: int, append_ms: int) -> None:
        self._activated.pop(record.key, None)
        said = record.activation
        if said is not None:
            self._activated[record.key] = Active(
                max(said.effective_ms, append_ms),
                offset,
                said.catalog_version,
                said.towers_version,
                said.other_towers_version,
                said.other_share,
            )
        ruling: list[Active] = []
        for active in sorted(self._activated.values(), key=lambda each: each.offset):
            while ruling and ruling[-1].effective_ms >= active.effective_ms:
                ruling.pop()
            ruling.append(active)
        self._activations = tuple(ruling)


_NONE: tuple[int, bytes | None] = (-1, None)
_NONE_YET: tuple[int, int | None] = (-1, None)
_NEVER = object()
