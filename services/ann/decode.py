"""Search requests read into what the library takes; what is wrong is refused by its field's name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.ann import filters
from vitrine.ann.filters import MAX_CONDITIONS, Filter
from vitrine.ann.index import BinaryIndex, Options
from vitrine.ann.updates import MAX_TEXT_BYTES, AttributeValue
from vitrine.api.ann.v1 import ann_pb2
from vitrine.api.items.v1.items_pb2 import Value
from vitrine.errors import FieldError

MAX_QUERIES = 256
MAX_ITEMS = 100_000
MAX_VALUES = 10_000

KINDS = ("vectors", "codes", "picture", "item_ids")

_KEPT_FILTERS = 256
_KEPT_BYTES = 16_384  # of a filter that is kept decoded


def kind(request: ann_pb2.SearchRequest) -> str:
    """Which of the four the query is."""
    given = [kind for kind in KINDS if getattr(request, kind)]
    together = f"{', '.join(KINDS[:-1])} and {KINDS[-1]}"
    if not given:
        raise FieldError("vectors", f"no query: give one of {together}, of one row or more")
    if len(given) > 1:
        raise FieldError(given[1], f"comes with {given[0]}; give exactly one of {together}")
    return given[0]


def rows(request: ann_pb2.SearchRequest, kind: str, index: BinaryIndex) -> NDArray[Any]:
    """The queries: float32 (q, dim) vectors, uint64 (q, words) codes, or uint64 (q,) item ids; of no picture."""
    if kind == "vectors":
        _check_rows(kind, request.vectors, 4 * index.dim, f"{index.dim} float32")
        return np.frombuffer(request.vectors, "<f4").reshape(-1, index.dim).astype(np.float32, copy=False)
    if kind == "codes":
        _check_rows(kind, request.codes, index.bits // 8, f"{index.bits} bits")
        return np.frombuffer(request.codes, "<u8").reshape(-1, index.bits // 64).astype(np.uint64, copy=False)
    if len(request.item_ids) > MAX_QUERIES:
        raise FieldError(kind, f"has {len(request.item_ids)} queries; send at most {MAX_QUERIES} a call")
    return np.array(request.item_ids, np.uint64)


def options(request: ann_pb2.SearchRequest) -> Options:
    """Of the search."""
    return Options(
        k=request.k,
        over_recall=request.over_recall or None,
        ef=request.ef or None,
        exact=request.exact,
        filter=filter_of(request.filter) if request.HasField("filter") else None,
        group_by=request.group_by or None,
        radius=request.radius if request.HasField("radius") else None,
        cursors=list(request.cursors) or None,
    )


def filter_of(message: ann_pb2.Filter) -> Filter:
    """A filter. FieldError where it is none, or too large, names the place, as "filter.all.filters[2].range"."""
    if message.ByteSize() > _KEPT_BYTES:
        return _decoded(message)
    return _kept(message.SerializeToString(deterministic=True))


@lru_cache(_KEPT_FILTERS)
def _kept(data: bytes) -> Filter:
    return _decoded(ann_pb2.Filter.FromString(data))


def _decoded(message: ann_pb2.Filter) -> Filter:
    left = iter(range(MAX_CONDITIONS))
    return _condition("filter", message, left)


def _condition(place: str, message: ann_pb2.Filter, left: Iterator[int]) -> Filter:
    if next(left, None) is None:
        raise FieldError("filter", f"has more than {MAX_CONDITIONS} conditions; use one_of for many values")
    kind = message.WhichOneof("kind")
    if kind is None:
        raise FieldError(place, "has no condition; give one of all, any, not, items, one_of and range")
    place = f"{place}.{kind}"
    if kind in ("all", "any"):
        inside = enumerate(getattr(message, kind).filters)
        found = tuple(_condition(f"{place}.filters[{i}]", each, left) for i, each in inside)
        return filters.All(found) if kind == "all" else filters.Any(found)
    if kind == "not":
        return filters.Not(_condition(place, getattr(message, kind), left))
    if kind == "items":
        _check_count(f"{place}.item_ids", len(message.items.item_ids), MAX_ITEMS)
        return filters.Items(frozenset(message.items.item_ids))
    if kind == "one_of":
        _check_count(f"{place}.values", len(message.one_of.values), MAX_VALUES)
        values = enumerate(message.one_of.values)
        return filters.OneOf(
            message.one_of.attribute, frozenset(_value(f"{place}.values[{i}]", each) for i, each in values)
        )
    return _range(place, message.range)


def _range(place: str, message: ann_pb2.Range) -> filters.Range:
    bounds: dict[str, float] = {}
    for name in ("at_least", "at_most", "above", "below"):
        if message.HasField(name):  # type: ignore[arg-type]
            bound = _value(f"{place}.{name}", getattr(message, name))
            if isinstance(bound, str):
                raise FieldError(f"{place}.{name}", "is text; ranges are of numbers")
            bounds[name] = bound
    return filters.Range(message.attribute, **bounds)


def _value(place: str, message: Value) -> AttributeValue:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise FieldError(place, "has no value; give one of integer, number and text")
    value: AttributeValue = getattr(message, kind)
    if isinstance(value, float) and not math.isfinite(value):
        raise FieldError(place, f"is {value}, not a finite number")
    if isinstance(value, str) and len(value.encode()) > MAX_TEXT_BYTES:
        raise FieldError(place, f"is text of more than {MAX_TEXT_BYTES:,} bytes")
    return value


def _check_count(place: str, count: int, most: int) -> None:
    if count > most:
        raise FieldError(place, f"has {count:,}; send at most {most:,}")


def _check_rows(field: str, data: bytes, row_bytes: int, row: str) -> None:
    rows, rest = divmod(len(data), row_bytes)
    if rest:
        raise FieldError(field, f"has {len(data)} bytes, not a multiple of {row_bytes} ({row} a query)")
    if rows > MAX_QUERIES:
        raise FieldError(field, f"has {rows} queries; send at most {MAX_QUERIES} a call")
