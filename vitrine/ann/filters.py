"""Which items may be results: conditions on ids and attributes, and the rows of a segment that meet them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vitrine.ann.attributes import Column, Value
from vitrine.errors import FieldError

if TYPE_CHECKING:
    from vitrine.ann.segment import Segment

Mask = NDArray[np.bool_]

MAX_CONDITIONS = 64


@dataclass(frozen=True, slots=True)
class All:
    """Every one of these holds; of none: true."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """At least one of these holds; of none: false."""

    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """This does not hold."""

    filter: Filter


@dataclass(frozen=True, slots=True)
class Items:
    """The item is one of these."""

    ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class OneOf:
    """The attribute has one of these values; not for items without it."""

    attribute: str
    values: frozenset[Value]


@dataclass(frozen=True, slots=True)
class Range:
    """The attribute, a number, is within the bounds given; not for items without it."""

    attribute: str
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None


@dataclass(frozen=True, slots=True)
class Has:
    """The item has the attribute."""

    attribute: str


Filter = All | Any | Not | Items | OneOf | Range | Has


def check(wanted: Filter, kinds: Mapping[str, str]) -> None:
    """FieldError("filter") where it asks for an attribute that no item has, or in another kind's terms."""
    for condition in _conditions(wanted):
        if not isinstance(condition, OneOf | Range | Has):
            continue
        kind = kinds.get(condition.attribute)
        if kind is None:
            there = ", ".join(sorted(kinds)) or "none"
            raise FieldError("filter", f"no item has an attribute {condition.attribute!r}; there are: {there}")
        if isinstance(condition, Range):
            if kind == "text":
                raise FieldError("filter", f"{condition.attribute} is text; ranges are of numbers")
            for bound in (condition.at_least, condition.at_most, condition.above, condition.below):
                _check_finite(condition.attribute, bound)
        elif isinstance(condition, OneOf):
            for value in condition.values:
                if isinstance(value, str) != (kind == "text"):
                    raise FieldError("filter", f"{condition.attribute} is {kind}, which {value!r} is not")
                _check_finite(condition.attribute, value)


def _check_finite(attribute: str, value: Value | None) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise FieldError("filter", f"{attribute} is compared with {value}; use finite numbers")


def mask(wanted: Filter, segment: Segment) -> Mask:
    """bool (n,): the rows of the segment that meet it. An attribute that the segment lacks, no item of it has."""
    match wanted:
        case All(filters):
            found = np.ones(len(segment.ids), bool)
            for each in filters:
                found &= mask(each, segment)
            return found
        case Any(filters):
            found = np.zeros(len(segment.ids), bool)
            for each in filters:
                found |= mask(each, segment)
            return found
        case Not(inner):
            return ~mask(inner, segment)
        case Items(ids):
            found = np.zeros(len(segment.ids), bool)
            found[segment.rows_of(_sorted(ids))[0]] = True
            return found
    column = segment.attributes.columns.get(wanted.attribute)
    if column is None:
        return np.zeros(len(segment.ids), bool)
    if isinstance(wanted, Has):
        return column.present
    found = _one_of(column, wanted) if isinstance(wanted, OneOf) else _within(column, wanted)
    return found & column.present


@lru_cache(64)
def _sorted(ids: frozenset[int]) -> NDArray[np.uint64]:
    """Once for all segments: a live index has new ones again and again."""
    try:
        return np.sort(np.fromiter(ids, np.uint64, len(ids)))
    except OverflowError as error:
        raise FieldError("filter", "has an item id beyond 64 bits; ids are 1 to 2^64 - 1") from error


def _one_of(column: Column, wanted: OneOf) -> Mask:
    values: list[float | str] = list(wanted.values)
    if column.kind == "text":
        values = [column.ordinals[value] for value in values if value in column.ordinals]
    elif column.kind == "integer":
        values = [int(value) for value in values if value == int(value) and -(2**63) <= value < 2**63]
    return np.isin(column.values, np.array(values, column.values.dtype))


def _within(column: Column, wanted: Range) -> Mask:
    values = column.values
    low, high, above, below = wanted.at_least, wanted.at_most, wanted.above, wanted.below
    if column.kind == "integer":  # compared as whole numbers: a float64 does not hold all of them
        low, below = (bound if bound is None else math.ceil(bound) for bound in (low, below))
        high, above = (bound if bound is None else math.floor(bound) for bound in (high, above))
    found = np.ones(len(values), bool)
    if low is not None:
        found &= values >= low
    if high is not None:
        found &= values <= high
    if above is not None:
        found &= values > above
    if below is not None:
        found &= values < below
    return found


def _conditions(wanted: Filter) -> Iterator[Filter]:
    """The filter and all inside it; FieldError where they are too many."""
    open_, count = [wanted], 0
    while open_:
        one = open_.pop()
        count += 1
        if count > MAX_CONDITIONS:
            raise FieldError("filter", f"has more than {MAX_CONDITIONS} conditions; use `one_of` for many values")
        yield one
        if isinstance(one, All | Any):
            open_ += one.filters
        elif isinstance(one, Not):
            open_.append(one.filter)
