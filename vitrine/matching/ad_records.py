"""What a record of `ad-updates` must be: parsed whole, or refused with the field that is wrong.

Keys: "<ad_id>" is all of an ad, "<ad_id>/gate" what the clock says of it, "activation/<unique>" what matching works
from. A tombstone takes the key's record back.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from vitrine.api.events.v1 import events_pb2
from vitrine.matching.catalog import ALL_GROUPS, OFF
from vitrine.matching.events import RecordError

MAX_BID = 1_000_000.0
"""Bids above this are taken for a mistake of units, as in a market's tables."""

_ACTIVATION = b"activation/"
_GATE = b"/gate"
_STATES = {
    events_pb2.AdUpdate.STATE_ACTIVE: 0,
    events_pb2.AdUpdate.STATE_PAUSED: OFF["paused"],
    events_pb2.AdUpdate.STATE_ENDED: OFF["ended"],
}


@dataclass(frozen=True, slots=True, eq=False)
class Definition:
    """What an advertiser said of an ad; the fields are those of `market.Ad`."""

    advertiser: int
    item: int
    crowds: NDArray[np.uint64]
    bids: NDArray[np.float32]
    negatives: NDArray[np.uint64]
    groups: int
    max_impressions: int
    start_ms: int
    end_ms: int
    daily_budget: float


@dataclass(frozen=True, slots=True)
class AdChange:
    """All of an ad from here on. off: None after a tombstone; definition: None: as the catalog artifact has it."""

    ad_id: int
    off: int | None
    definition: Definition | None


@dataclass(frozen=True, slots=True)
class Gate:
    """What the clock says of an ad. off: bits of `catalog.OFF`; None after a tombstone."""

    ad_id: int
    off: int | None
    spent: float
    time_ms: int


@dataclass(frozen=True, slots=True)
class Activated:
    """What matching works from. activation: None after a tombstone."""

    key: bytes
    activation: events_pb2.Activation | None


def ad_key(ad_id: int) -> bytes:
    """Key of all of an ad."""
    return b"%d" % ad_id


def gate_key(ad_id: int) -> bytes:
    """Key of the clock's word on an ad."""
    return b"%d/gate" % ad_id


def activation_key(unique: str) -> bytes:
    """Key of an activation."""
    return _ACTIVATION + unique.encode()


def parse(key: bytes | None, value: bytes | None) -> AdChange | Gate | Activated:
    """The record. Raises RecordError naming the field that is wrong."""
    if key is None:
        raise RecordError("key: absent, where ad-updates is keyed by ad")
    if key.startswith(_ACTIVATION):
        return Activated(key, None if value is None else _activation(value))
    if key.endswith(_GATE):
        return _gate(_ad_id(key, key[: -len(_GATE)]), value)
    return _change(_ad_id(key, key), value)


def definition_of(message: events_pb2.AdDefinition) -> Definition:
    """A checked definition. Raises RecordError naming the field that is wrong; an ad in no crowd is fine."""
    if not message.advertiser_id:
        raise RecordError("definition.advertiser_id: 0 is reserved")
    if len(message.bids) != len(message.crowd_ids):
        raise RecordError(f"definition.bids: {len(message.bids)} for {len(message.crowd_ids)} crowd_ids")
    crowds = _ids("definition.crowd_ids", message.crowd_ids)
    for crowd_id, bid in zip(message.crowd_ids, message.bids, strict=True):
        if not (math.isfinite(bid) and bid > 0):
            raise RecordError(f"definition.bids: {bid} on crowd {crowd_id} is not a finite number > 0")
        if bid > MAX_BID:
            limit = f"{MAX_BID:,.0f}; bids are currency units a click"
            raise RecordError(f"definition.bids: {bid} on crowd {crowd_id} is above {limit}")
    if message.placement_groups > ALL_GROUPS:
        raise RecordError(f"definition.placement_groups: {message.placement_groups} is not a mask of four bits")
    for name in ("start_ms", "end_ms"):
        if getattr(message, name) < 0:
            raise RecordError(f"definition.{name}: {getattr(message, name)} is before 1970")
    if 0 < message.end_ms <= message.start_ms:
        raise RecordError(f"definition.end_ms: {message.end_ms} is not after start_ms, {message.start_ms}")
    if not (math.isfinite(message.daily_budget) and message.daily_budget >= 0):
        raise RecordError(f"definition.daily_budget: {message.daily_budget} is not a finite number, 0 or more")
    order = np.argsort(crowds)
    return Definition(
        advertiser=message.advertiser_id,
        item=message.item_id,
        crowds=crowds[order],
        bids=np.array(message.bids, np.float32)[order],
        negatives=np.sort(_ids("definition.negative_crowd_ids", message.negative_crowd_ids)),
        groups=message.placement_groups or ALL_GROUPS,
        max_impressions=message.max_impressions,
        start_ms=message.start_ms,
        end_ms=message.end_ms,
        daily_budget=message.daily_budget,
    )


def _change(ad_id: int, value: bytes | None) -> AdChange:
    if value is None:
        return AdChange(ad_id, None, None)
    update = events_pb2.AdUpdate()
    _parsed(update, value)
    _same_ad(update.ad_id, ad_id)
    if update.state not in _STATES:
        raise RecordError(f"state: {update.state} is none that this reader knows")
    definition = definition_of(update.definition) if update.HasField("definition") else None
    return AdChange(ad_id, _STATES[update.state], definition)


def _gate(ad_id: int, value: bytes | None) -> Gate:
    if value is None:
        return Gate(ad_id, None, 0.0, 0)
    gate = events_pb2.AdGate()
    _parsed(gate, value)
    _same_ad(gate.ad_id, ad_id)
    off = OFF["schedule"] * gate.out_of_schedule | OFF["budget"] * gate.out_of_budget
    return Gate(ad_id, off, gate.spent, gate.time_ms)


def _activation(value: bytes) -> events_pb2.Activation:
    activation = events_pb2.Activation()
    _parsed(activation, value)
    for name in ("catalog_version", "towers_version"):
        if not getattr(activation, name):
            raise RecordError(f"{name}: empty, where an activation names a version")
    if activation.other_share > 1000:
        raise RecordError(f"other_share: {activation.other_share} of 1,000 users")
    if activation.other_share and not activation.other_towers_version:
        raise RecordError(f"other_towers_version: empty, where arm b has {activation.other_share} of 1,000 users")
    if activation.effective_ms < 0:
        raise RecordError(f"effective_ms: {activation.effective_ms} is before 1970")
    return activation


def _ad_id(key: bytes, digits: bytes) -> int:
    ad_id = int(digits) if digits.isdigit() and len(digits) <= 20 else 0
    if not 0 < ad_id < 2**64 or digits != b"%d" % ad_id:
        raise RecordError(f"key: {key[:60]!r} is no ad id in decimal ASCII, none with /gate, and no activation/...")
    return ad_id


def _same_ad(found: int, wanted: int) -> None:
    if found != wanted:
        raise RecordError(f"ad_id: {found}, where the key is of {wanted}")


def _ids(field: str, ids: Sequence[int]) -> NDArray[np.uint64]:
    array = np.array(ids, np.uint64)
    if len(array) and not array.all():
        raise RecordError(f"{field}: 0 is reserved")
    if len(set(ids)) != len(array):
        raise RecordError(f"{field}: a crowd is there twice")
    return array


def _parsed(message: Message, value: bytes) -> None:
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise RecordError(f"value: no {message.DESCRIPTOR.name}: {error}") from error
