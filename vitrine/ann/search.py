"""One search of a snapshot: candidates of all its segments by code, re-ranked, and what of them is the answer.

The candidates of a query are the `count` nearest rows by (distance, id) over all views. By code that is the order
of results; by vector they are re-ranked by (cosine, id), where a segment has re-rank codes by these first, so that
2 k + 8 real vectors are read. Groups, radius and the page before then say which of them are results; where those
are fewer than k and there is more to look at, four times as many candidates are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.ann import cursor, filters
from vitrine.ann.attributes import Value
from vitrine.ann.cursor import Cursor
from vitrine.ann.found import Found, Order, View, left_out, places, products
from vitrine.ann.hashing import Floats
from vitrine.ann.hits import Hits, Options
from vitrine.ann.nearest import nearest
from vitrine.ann.segment import UNUSED, Ids, Pool

KEPT = 10_000
"""Results that the pages of one query can have together."""

_READ = 8  # real vectors read, beyond 2 k
_MORE = 4  # times the candidates, where those looked at gave too few results

Codes = NDArray[np.uint64]
Between = Callable[[str], None]


class Search:
    """A search with its options, over views.

    total: items that may be results

    queries, codes and `without` of its methods go together, row by row:
    queries: float32 (q, dim) of unit length, or None where codes are asked for
    codes:   uint64 (q, words)
    without: uint64 (q,), an item that each query is not answered with, or None
    """

    def __init__(
        self,
        views: Sequence[View],
        options: Options,
        *,
        over_recall: int,
        ef: int,
        generation: str,
        threads: int,
        between: Between,
    ) -> None:
        self._views, self._options, self._generation = views, options, generation
        self._over_recall, self._ef, self._threads, self._between = over_recall, ef, threads, between
        wanted = options.filter
        if options.group_by is not None:
            has = filters.Has(options.group_by)
            wanted = has if wanted is None else filters.All((wanted, has))
        self._allowed = [view.segment.allowed(wanted, view.alive) for view in views]
        self.total = sum(
            len(view.segment.ids) if each is None else each.count
            for view, each in zip(views, self._allowed, strict=True)
        )
        self._visited = 0

    def count(self, taken: int = 0) -> int:
        """Candidates of a query, of which so many results were taken by the pages before."""
        return min((self._options.k + taken) * self._over_recall, self.total)

    def first(self, codes: Codes, queries: Floats | None, without: Ids | None) -> Hits:
        """The first page of each query."""
        k, count = self._options.k, self.count()
        if self._options.group_by is not None:
            found = self._ranked(codes, queries, without, count)
            return self._page(codes, queries, without, found, count, None)
        found = self._ranked(codes, queries, without, count, k)
        whole = self._options.radius is None and without is None  # every candidate is one
        there = None if whole else found.distances != UNUSED
        if there is None:
            counts = np.full(len(codes), found.rows.shape[1], np.uint32)
        else:
            counts = np.count_nonzero(there, axis=1).astype(np.uint32)
        scores = None if queries is None else -_keys(found)
        ids, distances = self._ids(found), found.distances
        more = k < self.total
        cursors = _Cursors(self._generation, k, counts, found if more else None, ids)
        if there is None:
            flat = None if scores is None else scores.ravel()
            return Hits(counts, ids.ravel(), flat, distances.ravel(), None, cursors, self._visited)
        flat = None if scores is None else scores[there]
        return Hits(counts, ids[there], flat, distances[there], None, cursors, self._visited)

    def after(self, codes: Codes, queries: Floats | None, without: Ids | None, pages: Sequence[Cursor]) -> Hits:
        """The page after each query's cursor; all have taken as many results."""
        if pages[0].taken >= KEPT:
            raise cursor.too_far(KEPT)
        count = self.count(pages[0].taken)
        found = self._ranked(codes, queries, without, count)
        return self._page(codes, queries, without, found, count, pages)

    def _ranked(
        self, codes: Codes, queries: Floats | None, without: Ids | None, count: int, kept: int | None = None
    ) -> Found:
        """The candidates, in the order of results, or the first `kept` of them."""
        found = self._candidates(codes, count, without)
        if self._options.radius is not None:
            found.distances[found.distances > self._options.radius] = UNUSED
        if queries is None:
            return found if kept is None else found.first(kept)
        width = found.rows.shape[1]
        read = width  # real vectors; all where the candidates are all items, so that the answer is exact
        if kept is not None and not self._options.exact and count < self.total:
            read = min(width, 2 * kept + _READ)
        if len(self._views) == 1:
            ranked = self._by_products(found, queries, kept or width, read)
        else:
            if read < width and any(view.segment.coarse is not None for view in self._views):
                found = found.by_keys(self._keys(found, queries, coarse=True), read)
            ranked = found.by_keys(self._keys(found, queries, coarse=False), kept)
        self._between("rerank")
        return ranked

    def _by_products(self, found: Found, queries: Floats, kept: int, read: int) -> Found:
        """The candidates of one view of the highest cosines; in a segment the order of rows is that of ids."""
        segment, rows = self._views[0].segment, found.masked()
        if read < rows.shape[1] and segment.coarse is not None:
            rows, _ = segment.coarse.best(queries, rows, read, self._threads)
        kept = min(kept, rows.shape[1])
        if not kept:
            return replace(found, keys=np.empty(found.rows.shape, np.float32))
        best, scores = native.vector_topk(segment.vectors, queries, rows, kept, self._threads)
        ranked = found.ordered(places(found.masked(), best))
        np.negative(scores, out=scores)
        scores[ranked.distances == UNUSED] = np.inf
        return replace(ranked, keys=scores)

    def _keys(self, found: Found, queries: Floats, *, coarse: bool) -> Floats:
        """Cosines made negative float32 (q, p), inf for none; with `coarse` by re-rank codes, if there are some."""
        assert found.views is not None
        keys = np.full(found.rows.shape, np.inf, np.float32)
        for number, view in enumerate(self._views):
            mine = found.views == number
            if not mine.any():
                continue
            # Other views' candidates are scored as row 0, which costs less than to leave them out.
            rows, segment = np.where(mine, found.rows, np.uint32(0)), view.segment
            if coarse and segment.coarse is not None:
                scores = segment.coarse.all_scores(queries, rows, self._threads)
            else:
                scores = products(segment.vectors, queries, rows, self._threads)
            np.negative(scores, out=keys, where=mine)
        keys[found.distances == UNUSED] = np.inf
        return keys

    def _candidates(self, codes: Codes, count: int, without: Ids | None) -> Found:
        """The `count` nearest of all views, by (distance, id)."""
        asked = count if without is None else count + 1
        if len(self._views) == 1:
            pool = self._pool(0, codes, asked)
            self._between("scan" if self._views[0].segment.graph is None else "graph")
            found = Found(pool.rows, pool.distances)
        else:
            found = self._joined(self._pools(codes, asked), asked)
        return found if without is None else left_out(replace(found, ids=self._ids(found)), without, count)

    def _pool(self, view: int, codes: Codes, count: int) -> Pool:
        """The nearest of one view."""
        pool = nearest(
            self._views[view].segment,
            codes,
            count,
            self._ef,
            exact=self._options.exact,
            allowed=self._allowed[view],
            threads=self._threads,
        )
        self._visited += pool.visited
        return pool

    def _pools(self, codes: Codes, count: int) -> list[Pool]:
        """The nearest of each view, those with graphs first."""
        pools: dict[int, Pool] = {}
        for stage, walked in (("graph", True), ("scan", False)):
            chosen = [i for i, view in enumerate(self._views) if (view.segment.graph is not None) is walked]
            pools |= {i: self._pool(i, codes, count) for i in chosen}
            if chosen:
                self._between(stage)
        return [pools[i] for i in range(len(pools))]

    def _joined(self, pools: Sequence[Pool], count: int) -> Found:
        """The `count` nearest of several views' candidates."""
        ids = [view.segment.ids.take(pool.rows) for view, pool in zip(self._views, pools, strict=True)]
        widths = [pool.rows.shape[1] for pool in pools]
        found = Found(
            np.concatenate([pool.rows for pool in pools], axis=1),
            np.concatenate([pool.distances for pool in pools], axis=1),
            np.concatenate(ids, axis=1),
            np.broadcast_to(np.repeat(np.arange(len(pools)), widths), (len(ids[0]), sum(widths))),
        )
        assert found.ids is not None
        return found.ordered(np.lexsort((found.ids, found.distances), axis=1)[:, :count])

    def _ids(self, found: Found) -> Ids:
        """Of the candidates, or some of them."""
        return self._views[0].segment.ids.take(found.rows) if found.ids is None else found.ids

    def _page(
        self,
        codes: Codes,
        queries: Floats | None,
        without: Ids | None,
        found: Found,
        count: int,
        pages: Sequence[Cursor] | None,
    ) -> Hits:
        """Each query by itself; one whose candidates give too few results looks at more."""
        results, cursors = [], []
        for i in range(len(codes)):
            page = None if pages is None else pages[i]
            mine, at, looked = found, i, count
            own = slice(i, i + 1)
            while True:
                chosen, last = self._chosen(mine, at, page)
                if last or looked >= self.total:
                    break
                looked = min(self.total, looked * _MORE)
                mine, at = (
                    self._ranked(
                        codes[own],
                        None if queries is None else queries[own],
                        None if without is None else without[own],
                        looked,
                    ),
                    0,
                )
            result = mine.at((at, chosen))
            results.append(replace(result, ids=self._ids(result)))
            taken = (0 if page is None else page.taken) + len(chosen)
            more = len(chosen) == self._options.k and taken < self.total
            cursors.append(_cursor(self._generation, results[-1], taken) if more else b"")
        groups = None
        if self._options.group_by is not None:
            groups = [value for each in results for value in self._groups(each)]
        return Hits(
            np.array([len(each.rows) for each in results], np.uint32),
            np.concatenate([self._ids(each) for each in results]),
            None if queries is None else -np.concatenate([_keys(each) for each in results]),
            np.concatenate([each.distances for each in results]),
            groups,
            cursors,
            self._visited,
        )

    def _chosen(self, found: Found, query: int, page: Cursor | None) -> tuple[Order, bool]:
        """Places of one query's results among its candidates; whether more candidates would add none."""
        options = self._options
        distances = found.distances[query]
        places = np.flatnonzero(distances != UNUSED)
        # Beyond the radius there is nothing; they came ordered by distance, so all within it are here.
        last = options.radius is not None and len(places) < len(distances)
        if options.group_by is not None:
            groups = self._groups(found.at((query, places)))
            firsts = dict(zip(reversed(groups), reversed(places.tolist()), strict=True))
            places = np.array(sorted(firsts.values()), np.intp)
        if page is not None:
            some = found.at((query, places))
            keys, ids = _keys(some), self._ids(some)
            places = places[(keys > page.key) | ((keys == page.key) & (ids > page.item_id))]
        return places[: options.k], last or len(places) >= options.k

    def _groups(self, found: Found) -> list[Value]:
        """The group of each candidate of one query; all have one."""
        assert self._options.group_by is not None
        groups: list[Value] = [0] * len(found.rows)
        for number, view in enumerate(self._views):
            mine = np.arange(len(groups)) if found.views is None else np.flatnonzero(found.views == number)
            column = view.segment.attributes.columns.get(self._options.group_by)
            if column is not None and len(mine):
                for place, value in zip(mine.tolist(), column.some(found.rows[mine]), strict=True):
                    groups[place] = value
        return groups


class _Cursors(Sequence[bytes]):
    """The cursors of first pages, made when they are looked at: most never are.

    found: the results, (q, k); None where nothing comes after k of them
    """

    def __init__(self, generation: str, k: int, counts: NDArray[np.uint32], found: Found | None, ids: Ids) -> None:
        self._generation, self._k, self._counts, self._found, self._ids = generation, k, counts, found, ids

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, at):  # type: ignore[no-untyped-def]
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        count = int(self._counts[at])
        if self._found is None or count < self._k:
            return b""
        last = (at, [count - 1])
        return _cursor(self._generation, replace(self._found.at(last), ids=self._ids[last]), count)


def _keys(found: Found) -> Floats:
    return found.distances.astype(np.float32) if found.keys is None else found.keys


def _cursor(generation: str, found: Found, taken: int) -> bytes:
    """After the last of one query's results."""
    assert found.ids is not None
    return Cursor(generation, float(_keys(found)[-1]), int(found.ids[-1]), taken).encode()
