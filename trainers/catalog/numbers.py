"""Permanent numbers: what the newest catalog calls an ad or a crowd, and the next free numbers for the others."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vitrine.artifacts import ArtifactError, ArtifactStore
from vitrine.matching.catalog import KIND, NO_NUMBER, SCHEMA, Catalog, CatalogError, ordinals

Ids = NDArray[np.uint64]
Numbers = NDArray[np.uint32]


def numbered(catalog: Catalog, artifacts: ArtifactStore, previous: str | None) -> Catalog:
    """The catalog with numbers that go on from an earlier one: `previous`, or else the store's newest.

    The newest, not the one that a ref names: after a rollback another may have given numbers since. Two jobs at
    once in one namespace would give the same numbers to different ads: catalogs are made one after the other.
    """
    versions = artifacts.versions(KIND)
    version = previous or (versions[-1] if versions else None)
    before = None
    if version is not None:
        try:
            before = Catalog.load(artifacts.fetch(KIND, version, max_schema=SCHEMA).path)
        except (ArtifactError, CatalogError) as error:
            raise ArtifactError(
                f"{error}. Its numbers are to go on here: repair it, or name another catalog by --previous VERSION"
            ) from error
    none = np.empty(0, np.uint64), np.empty(0, np.uint32), 0
    ads = (before.ads, before.ad_numbers, before.next_ad_number) if before else none
    crowds = (before.crowds, before.crowd_numbers, before.next_crowd_number) if before else none
    ad_numbers, next_ad = going_on(catalog.ads, *ads)
    crowd_numbers, next_crowd = going_on(catalog.crowds, *crowds)
    return replace(
        catalog,
        ad_numbers=ad_numbers,
        next_ad_number=next_ad,
        crowd_numbers=crowd_numbers,
        next_crowd_number=next_crowd,
    )


def going_on(ids: Ids, known: Ids, numbers: Numbers, following: int) -> tuple[Numbers, int]:
    """(the number of each id: its own among `known`, else the next from `following` on; the next after those)."""
    rows, there = ordinals(known, ids)
    given = np.full(len(ids), NO_NUMBER, np.uint32)
    given[there] = numbers[rows]
    new = given == NO_NUMBER
    count = int(new.sum())
    if following + count > NO_NUMBER:
        raise CatalogError(f"{following + count} numbers were given, of 2^32 - 1: start over in a fresh namespace")
    given[new] = np.arange(following, following + count, dtype=np.uint32)
    return given, following + count
