"""Ads changed from the command line: read as they are, changed, checked as every reader checks them, sent whole."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer
from google.protobuf import json_format

from vitrine.api.events.v1.events_pb2 import AdDefinition, AdUpdate
from vitrine.artifacts import ArtifactStore, MissingArtifactError
from vitrine.cli.activation import activations
from vitrine.cli.topics import required, told
from vitrine.errors import FieldError, NotFoundError
from vitrine.matching import catalog
from vitrine.matching.activation import stack
from vitrine.matching.ad_records import Gate, ad_key, gate_key, parse
from vitrine.matching.catalog import OFF, Catalog
from vitrine.matching.events import RecordError
from vitrine.matching.market import ad_of
from vitrine.runtime import audit
from vitrine.runtime.ad_log import AdLog

_STATES = {
    "active": AdUpdate.STATE_ACTIVE,
    "paused": AdUpdate.STATE_PAUSED,
    "ended": AdUpdate.STATE_ENDED,
}


def show(ad_id: int, *, store: str, namespace: str, kafka_url: str) -> None:
    """One JSON document: the record, where the definition comes from, and the clock's word."""
    with told(), AdLog(required(kafka_url), namespace) as log:
        log.read()
        update, source = _as_it_is(log, ad_id, store, namespace)
        gate = log.last.get(gate_key(ad_id))
        said = parse(gate_key(ad_id), gate.value) if gate else None
        shown: dict[str, Any] = {
            "definition_from": source,
            **json_format.MessageToDict(update, preserving_proto_field_name=True),
            "out_of_schedule": isinstance(said, Gate) and bool((said.off or 0) & OFF["schedule"]),
            "out_of_budget": isinstance(said, Gate) and bool((said.off or 0) & OFF["budget"]),
        }
        typer.echo(json.dumps(shown, indent=2))


def define(
    ad_id: int,
    values: dict[str, Any],
    *,
    bids: Sequence[str],
    drop: Sequence[int],
    avoid: Sequence[int],
    unavoid: Sequence[int],
    store: str,
    namespace: str,
    kafka_url: str,
) -> None:
    """Changes an ad's definition, or makes the ad. values: of AdDefinition's plain fields."""
    with told(), AdLog(required(kafka_url), namespace) as log:
        log.read()
        try:
            update, _ = _as_it_is(log, ad_id, store, namespace)
        except NotFoundError:
            update = AdUpdate(ad_id=ad_id, state=AdUpdate.STATE_ACTIVE)
        definition = update.definition
        try:
            for name, value in values.items():
                setattr(definition, name, value)
        except ValueError as error:  # protobuf's, of a number that its field cannot hold
            raise FieldError("--" + name.replace("_", "-"), str(error)) from error
        by_crowd = dict(zip(definition.crowd_ids, definition.bids, strict=True)) | dict(map(_bid, bids))
        wanted = {crowd: bid for crowd, bid in by_crowd.items() if crowd not in set(drop)}
        negatives = (set(definition.negative_crowd_ids) | set(avoid)) - set(unavoid)
        del definition.crowd_ids[:], definition.bids[:], definition.negative_crowd_ids[:]
        definition.crowd_ids.extend(sorted(wanted))
        definition.bids.extend(wanted[crowd] for crowd in sorted(wanted))
        definition.negative_crowd_ids.extend(sorted(negatives))
        update.definition.CopyFrom(definition)
        _send(log, [update], "ads.set", namespace)


def set_state(ad_ids: Sequence[int], state: str, *, namespace: str, kafka_url: str) -> None:
    """Pauses, resumes or ends ads; their records keep the definitions that they have."""
    with told(), AdLog(required(kafka_url), namespace) as log:
        log.read()
        updates = []
        for ad_id in dict.fromkeys(ad_ids):
            update = _last(log, ad_id) or AdUpdate(ad_id=ad_id)
            if update.state == AdUpdate.STATE_ENDED and state != "ended":
                raise FieldError("ad", f"{ad_id} has ended, which is for good; make a new one under another id")
            update.state = _STATES[state]
            updates.append(update)
        _send(log, updates, f"ads.{state}", namespace)


def import_file(file: Path, *, dry_run: bool, namespace: str, kafka_url: str) -> None:
    """Sends the ads of a file of JSON lines, all or none."""
    with told():
        try:
            lines = sys.stdin if str(file) == "-" else file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise FieldError(str(file), f"cannot be read as text: {error}") from error
        updates = list(_lines(file, lines))
        if dry_run:
            _report(updates)
            typer.echo(f"{len(updates)} are right, none is sent")
            return
        with AdLog(required(kafka_url), namespace) as log:
            _send(log, updates, "ads.import", namespace)


def _lines(file: Path, lines: Iterable[str]) -> Iterable[AdUpdate]:
    where: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        update = AdUpdate()
        try:
            json_format.Parse(line, update)
            update.state = update.state or AdUpdate.STATE_ACTIVE
            _checked(update)
        except (json_format.ParseError, FieldError) as error:
            raise FieldError(f"{file}, line {number}", str(error)) from error
        if update.ad_id in where:
            raise FieldError(f"{file}, line {number}", f"ad {update.ad_id} is in line {where[update.ad_id]} too")
        where[update.ad_id] = number
        yield update


def _send(log: AdLog, updates: Sequence[AdUpdate], action: str, namespace: str) -> None:
    records = [_checked(update) for update in updates]
    ids = " ".join(str(update.ad_id) for update in updates[:10]) + " ..." * (len(updates) > 10)
    with audit.recorded(action, ids, namespace=namespace, ads=len(updates)):
        offsets = log.append(records)
    _report(updates)
    last = f", the last at offset {offsets[-1]}" if offsets else ""
    typer.echo(f"{len(records)} sent to {log.topic}{last}")


def _report(updates: Sequence[AdUpdate]) -> None:
    nowhere = [
        update.ad_id for update in updates if update.HasField("definition") and not update.definition.crowd_ids
    ]
    for ad_id in nowhere[:10]:
        typer.echo(f"ad {ad_id} bids on no crowd, so nobody is matched with it", err=True)
    if len(nowhere) > 10:
        typer.echo(f"... and {len(nowhere) - 10} more", err=True)


def _checked(update: AdUpdate) -> tuple[bytes, bytes]:
    """The record, once it is one that readers take. Raises FieldError naming the field."""
    key, value = ad_key(update.ad_id), update.SerializeToString()
    try:
        parse(key, value)
    except RecordError as error:
        field, _, what = str(error).partition(": ")
        raise FieldError(f"ad {update.ad_id}, {field}", what) from error
    return key, value


def _last(log: AdLog, ad_id: int) -> AdUpdate | None:
    last = log.last.get(ad_key(ad_id))
    return AdUpdate.FromString(last.value) if last else None


def _as_it_is(log: AdLog, ad_id: int, store: str, namespace: str) -> tuple[AdUpdate, str]:
    """An ad with its definition, and where that comes from. Raises NotFoundError."""
    update = _last(log, ad_id)
    if update is not None and update.HasField("definition"):
        return update, "ad-updates"
    found = None
    if store:
        try:
            active = stack(activations(log))
            version = active[-1].catalog_version if active else "stable"
            artifacts = ArtifactStore(store, namespace=namespace)
            artifact = artifacts.fetch(catalog.KIND, version, max_schema=catalog.SCHEMA)
            found = ad_of(Catalog.load(artifact.path), ad_id)
        except MissingArtifactError:
            pass  # no catalog yet, so none that has the ad
    if found is None:
        where = "ad-updates or the catalog" if store else "ad-updates; the catalog's ads need --store"
        raise NotFoundError(f"ad {ad_id} is not defined in {where}")
    definition = AdDefinition(
        advertiser_id=found.advertiser,
        item_id=found.item,
        crowd_ids=found.crowds.tolist(),
        bids=found.bids.tolist(),
        negative_crowd_ids=found.negatives.tolist(),
        placement_groups=found.groups,
        start_ms=found.start_ms,
        end_ms=found.end_ms,
        daily_budget=found.daily_budget,
        max_impressions=found.max_impressions,
    )
    paused = found.off & OFF["paused"]
    state = update.state if update is not None else AdUpdate.STATE_PAUSED if paused else AdUpdate.STATE_ACTIVE
    return AdUpdate(ad_id=ad_id, state=state, definition=definition), f"catalog {artifact.manifest.version}"


def _bid(text: str) -> tuple[int, float]:
    crowd, _, bid = text.partition("=")
    try:
        return int(crowd), float(bid)
    except ValueError:
        raise FieldError("--bid", f"{text!r} is not CROWD=BID, such as 17=0.5") from None
