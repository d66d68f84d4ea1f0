"""Propagation: what a round finds is what the plain definition finds, however its ranges are cut."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.test_graph_build import SMALL, clustered, digest
from vitrine.ann.build import Threads, build, files, propagate

ROUNDS = replace(SMALL, overlap=2, leaf=32, neighbours=4, kept=6, rounds=2)


def expected_lists(codes: np.ndarray, near: list[list[tuple[int, int]]], kept: int, width: int, reverse: int):
    """One round by its definition: q tells p, which chose it, of what q and the others that chose q are."""
    heads = [row[: propagate.JOINED] for row in near]
    chose = [
        sorted((d, p) for p, row in enumerate(heads) for d, q in row if q == node)[:reverse]
        for node in range(len(near))
    ]
    lists = [set(row) for row in near]
    for q, row in enumerate(heads):
        for _, p in chose[q]:
            limit = near[p][kept - 1][0] if len(near[p]) >= kept else 0xFFFF
            for _, r in row + chose[q]:
                distance = int(np.bitwise_count(codes[p] ^ codes[r]).sum())
                if r != p and distance < limit:
                    lists[p].add((distance, r))
    return [sorted(row)[:width] for row in lists]


def lists_of(folder, turn: int) -> list[list[tuple[int, int]]]:
    keys = files.read(folder, f"near-{turn}")
    return [[(int(k) >> 32, int(k) & 0xFFFFFFFF) for k in row if int(k) != 0xFFFF_FFFF_FFFF] for row in keys]


@pytest.mark.parametrize("reverse", [16, 3])
def test_a_round_finds_what_its_definition_finds(tmp_path, monkeypatch, reverse):
    monkeypatch.setattr(propagate, "_REVERSE", reverse)
    monkeypatch.setattr(propagate, "_NODES", 100)
    build(clustered(500, words=2), tmp_path, ROUNDS)
    codes = files.read(tmp_path, "ordered")
    for turn in range(2):
        width = files.read(tmp_path, "near-0").shape[1]
        before = lists_of(tmp_path, turn)
        after = expected_lists(codes, before, ROUNDS.kept, width, reverse)
        assert lists_of(tmp_path, turn + 1) == after
        assert after != before


def test_ranges_and_workers_do_not_change_what_propagation_finds(tmp_path):
    rows = clustered(9_000)
    parameters = replace(SMALL, overlap=2, rounds=1)
    expected = digest(build(rows, tmp_path / "one", parameters))
    assert digest(build(rows, tmp_path / "two", parameters, executor=Threads(2), memory_mb=8)) == expected
    assert expected != digest(build(rows, tmp_path / "none", replace(parameters, rounds=0)))
    assert len(list((tmp_path / "two").glob("sent-0-*"))) > len(list((tmp_path / "one").glob("sent-0-*")))
