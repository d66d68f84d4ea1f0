"""Filters of a search, as front ends write them: conditions on items, joined by `&`, `|` and `~`.

    from vitrine.filters import in_range, items, one_of

    cheap = in_range("price", at_least=10, below=50) & one_of("brand", "acme", "apex") & ~items(17, 23)
    client.search(vectors, filter=cheap)

Stands on api alone. The server refuses, naming the place, an attribute that the index does not have, values of
another type, and more than 64 conditions together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.api.ann.v1 import ann_pb2
from vitrine.api.items.v1 import items_pb2
from vitrine.arguments import ids as _ids
from vitrine.arguments import wrong

__all__ = ["AttributeValue", "Filter", "in_range", "items", "one_of"]

# Of an attribute: a whole number, a finite number, or text; all values of one attribute have one type.
AttributeValue = int | float | str


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition that an item meets or not. `a & b`, `a | b` and `~a` are conditions too.

    message: what is sent; not to be changed
    """

    message: ann_pb2.Filter

    def __and__(self, other: Filter) -> Filter:
        return Filter(ann_pb2.Filter(all=ann_pb2.Filters(filters=[*self._of("all"), *other._of("all")])))

    def __or__(self, other: Filter) -> Filter:
        return Filter(ann_pb2.Filter(any=ann_pb2.Filters(filters=[*self._of("any"), *other._of("any")])))

    def __invert__(self) -> Filter:
        turned = ann_pb2.Filter()
        getattr(turned, "not").CopyFrom(self.message)  # a field that Python has no name for
        return Filter(turned)

    def __bool__(self) -> bool:
        raise TypeError(
            "a filter is neither true nor false here; join filters by &, | and ~, not by and, or and not"
        )

    def _of(self, kind: str) -> Iterable[ann_pb2.Filter]:
        """The conditions that this one joins in this way; itself where it joins none."""
        if self.message.WhichOneof("kind") == kind:
            found: Iterable[ann_pb2.Filter] = getattr(self.message, kind).filters
            return found
        return [self.message]


def items(*item_ids: int | Iterable[int] | NDArray[np.uint64]) -> Filter:
    """Holds for these items, at most 100,000: ids, or arrays of them."""
    found: list[int] = []
    for each in item_ids:
        found += _ids("filter", [each] if isinstance(each, int | np.integer) else each)
    return Filter(ann_pb2.Filter(items=ann_pb2.ItemIds(item_ids=found)))


def one_of(attribute: str, *values: AttributeValue) -> Filter:
    """Holds for items whose attribute is one of the values, at most 10,000; not for those without it."""
    message = ann_pb2.OneOf(attribute=attribute, values=[to_value("filter", value) for value in values])
    return Filter(ann_pb2.Filter(one_of=message))


def in_range(
    attribute: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Filter:
    """Holds for items whose attribute, a number, is within the bounds given; not for those without it."""
    bounds = {"at_least": at_least, "at_most": at_most, "above": above, "below": below}
    given = {name: to_value("filter", bound) for name, bound in bounds.items() if bound is not None}
    if not given:
        raise wrong("filter", f"{attribute}: give one of at_least, at_most, above and below")
    return Filter(ann_pb2.Filter(range=ann_pb2.Range(attribute=attribute, **given)))


def to_value(field: str, value: Any) -> items_pb2.Value:
    """An attribute's value as a message; numpy's numbers count as Python's. Raises InvalidArgumentError."""
    if isinstance(value, str):
        return items_pb2.Value(text=value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**63:
            raise wrong(field, f"{value} is not within 64 bits; larger numbers can be text")
        return items_pb2.Value(integer=int(value))
    if isinstance(value, float | np.floating) and math.isfinite(value):
        return items_pb2.Value(number=float(value))
    raise wrong(field, f"{value!r} should be a whole number, a finite number or text")


def from_value(value: items_pb2.Value) -> AttributeValue | None:
    """Inverse of `to_value`; None where a server newer than this client has another type."""
    kind = value.WhichOneof("kind")
    found: AttributeValue | None = None if kind is None else getattr(value, kind)
    return found


def to_attributes(field: str, attributes: Mapping[str, AttributeValue]) -> items_pb2.Attributes:
    """An item's attributes as a message."""
    return items_pb2.Attributes(
        attributes=[
            items_pb2.Attribute(name=name, value=to_value(field, value)) for name, value in attributes.items()
        ]
    )


def from_attributes(message: items_pb2.Attributes) -> dict[str, AttributeValue]:
    """Inverse of `to_attributes`."""
    pairs = ((each.name, from_value(each.value)) for each in message.attributes)
    return {name: value for name, value in pairs if value is not None}
