"""`vitrine artifacts activate`, and `rollback matching`: which catalog and towers matching works from, as a record.

Every process of matching reads the record in `ad-updates` and changes over at the same event of every user
(docs/matching-ads.md). The refs `activated` and `activated-before` only keep `prune` away from what may be in use.
"""

import secrets
import time
from collections.abc import Callable

import typer

from vitrine.api.events.v1.events_pb2 import Activation
from vitrine.artifacts import ArtifactError, ArtifactStore
from vitrine.cli.topics import required, told
from vitrine.matching import catalog
from vitrine.matching.activation import stack
from vitrine.matching.updates import Activated, RecordError, activation_key, parse
from vitrine.runtime import audit, kafka
from vitrine.runtime.ad_log import AdLog
from vitrine.runtime.contained import offsets_of

CATALOG, TOWERS = catalog.KIND, "towers"
_REF, _REF_BEFORE = "activated", "activated-before"


def activate(
    catalog_version: str,
    towers_version: str,
    arm_b: str,
    share: int | None,
    *,
    in_s: float,
    store: str,
    namespace: str,
    kafka_url: str,
) -> None:
    """Activates what is named, and of what is not, what is active now."""

    def chosen(artifacts: ArtifactStore, active: list[Activation]) -> Activation:
        last = active[-1] if active else Activation()
        new = Activation(
            catalog_version=artifacts.resolve(CATALOG, catalog_version or last.catalog_version or "stable"),
            towers_version=artifacts.resolve(TOWERS, towers_version or last.towers_version or "stable"),
            other_towers_version=artifacts.resolve(TOWERS, arm_b) if arm_b else last.other_towers_version,
            other_share=last.other_share if share is None else share,
        )
        if arm_b and not new.other_share:
            raise ArtifactError("--share: arm b needs a share of the users, of 1,000")
        if share and not new.other_towers_version:
            raise ArtifactError(f"--arm-b: name the towers that {share} of 1,000 users are to have")
        if not new.other_share:
            new.other_towers_version = ""
        return new

    _record("artifacts.activate", chosen, in_s, store, namespace, kafka_url)


def roll_back(*, in_s: float, store: str, namespace: str, kafka_url: str) -> None:
    """Activates what was active before; again: what was before that."""

    def chosen(artifacts: ArtifactStore, active: list[Activation]) -> Activation:
        if len(active) < 2:
            raise ArtifactError(
                "nothing was activated before what is active now; name it: "
                "vitrine artifacts activate --catalog VERSION --towers VERSION"
            )
        return active[-2]

    _record("artifacts.rollback", chosen, in_s, store, namespace, kafka_url)


def _record(
    action: str,
    choose: Callable[[ArtifactStore, list[Activation]], Activation],
    in_s: float,
    store: str,
    namespace: str,
    kafka_url: str,
) -> None:
    with told(), AdLog(required(kafka_url), namespace) as log:
        artifacts = ArtifactStore(store, namespace=namespace)
        active = stack(activations(log.read()))
        new = Activation()
        new.CopyFrom(choose(artifacts, active))
        _check(artifacts, new, log.topic, kafka_url)
        new.effective_ms = int(time.time() * 1000 + in_s * 1000)
        key = activation_key(secrets.token_hex(8))
        with audit.recorded(action, "matching", namespace=namespace, store=store) as details:
            _keep(artifacts, new)
            (offset,) = log.append([(key, new.SerializeToString())])
            details |= {"catalog": new.catalog_version, "towers": new.towers_version, "offset": offset}
        typer.echo(f"catalog {new.catalog_version}")
        typer.echo(f"towers  {new.towers_version}")
        if new.other_share:
            typer.echo(f"arm b   {new.other_towers_version} for {new.other_share} of 1,000 users")
        typer.echo(f"from {new.effective_ms} on ({in_s:g} s from now), offset {offset} of {log.topic}")


def activations(log: AdLog) -> list[Activation]:
    """All of a log that was read, in the order of their records."""
    found = []
    for key, last in sorted(log.last.items(), key=lambda each: each[1].offset):
        if key.startswith(activation_key("")):
            try:
                record = parse(key, last.value)
            except RecordError:  # which every reader passes over
                continue
            if isinstance(record, Activated) and record.activation is not None:
                found.append(record.activation)
    return found


def _check(artifacts: ArtifactStore, new: Activation, topic: str, kafka_url: str) -> None:
    """Before everybody tries to load it: that it is there, of a schema known here, and made from this log."""
    manifest = artifacts.manifest(CATALOG, new.catalog_version)
    if manifest.schema > catalog.SCHEMA:
        raise ArtifactError(f"catalog {manifest.version}: schema {manifest.schema} is newer than {catalog.SCHEMA}")
    offsets_of(manifest, topic, kafka.cluster_id(kafka_url))
    for version in filter(None, (new.towers_version, new.other_towers_version)):
        artifacts.manifest(TOWERS, version)


def _keep(artifacts: ArtifactStore, new: Activation) -> None:
    """Refs, so that what is to be active, and what was, stays when old versions are pruned."""
    for name, versions in (
        (CATALOG, [new.catalog_version]),
        (TOWERS, [new.towers_version, new.other_towers_version]),
    ):
        for arm, version in zip(("", "-b"), versions, strict=False):
            before = artifacts.refs(name).get(_REF + arm)
            if version and before != version:
                if before is not None:
                    artifacts.set_ref(name, before, _REF_BEFORE + arm)
                artifacts.set_ref(name, version, _REF + arm)
