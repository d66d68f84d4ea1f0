"""A matching process that is started on a bad artifact: one message that names it and the way out, and status 1."""

from pathlib import Path

import pytest
from matching_kit import publish, small_catalog, small_towers

from services.matching import server, worker
from vitrine.artifacts import ArtifactStore


def truncate(store: ArtifactStore, scratch: Path) -> str:
    version = store.publish("catalog", scratch / "catalog", schema=1).version
    file = scratch / "store" / "catalog" / version / "posting_bids.npy"
    file.write_bytes(file.read_bytes()[:-4])
    return "posting_bids.npy: has "


def corrupt(store: ArtifactStore, scratch: Path) -> str:
    version = store.publish("catalog", scratch / "catalog", schema=1).version
    file = scratch / "store" / "catalog" / version / "posting_bids.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    return "posting_bids.npy: its bytes have changed"


def newer(store: ArtifactStore, scratch: Path) -> str:
    store.publish("catalog", scratch / "catalog", schema=3)
    return "artifact schema 3 is newer than 2"


def foreign(store: ArtifactStore, scratch: Path) -> str:
    store.publish("catalog", scratch / "towers", schema=1)
    return "meta.json"


@pytest.mark.parametrize("damage", [truncate, corrupt, newer, foreign])
@pytest.mark.parametrize("role", [server, worker])
def test_a_bad_catalog_is_named_and_ends_the_start(role, damage, tmp_path, capsys):
    store = ArtifactStore(tmp_path / "store")
    catalog = small_catalog()
    publish(store, tmp_path, catalog, small_towers(catalog))
    told = damage(store, tmp_path)
    flags = ["--store", str(tmp_path / "store"), "--cache", str(tmp_path / "cache")]
    flags += ["--kafka-url", "kafka://127.0.0.1:9", "--redis-url", "redis://127.0.0.1:9"]
    assert role.main(flags) == 1
    assert told in capsys.readouterr().err
