"""A build that is killed, and one whose disk is full: it goes on from its finished tasks, and no byte differs."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ann_kit import publish_embeddings

from tests.unit.test_graph_build import SMALL, clustered, digest
from trainers.bdg.train import Config, Inputs, train
from vitrine.ann.build import Threads, build
from vitrine.ann.index import BinaryIndex
from vitrine.artifacts import ArtifactStore

BUILD = """
import pathlib, resource, sys
import numpy as np
from tests.unit.test_graph_build import SMALL, digest
from vitrine.ann.build import Threads, build
rows, folder, limit = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
print("begun", flush=True)
try:
    print(digest(build(np.load(rows, mmap_mode="r"), pathlib.Path(folder), SMALL, executor=Threads(2))))
except OSError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """A file of 20,000 codes."""
    file = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(file, clustered(20_000))
    return file


@pytest.fixture(scope="module")
def expected(rows, tmp_path_factory) -> str:
    return digest(build(np.load(rows), tmp_path_factory.mktemp("whole"), SMALL))


def started(rows: Path, folder: Path, limit: int = 0) -> subprocess.Popen[str]:
    """A build in a process of its own, about to begin; `limit`: bytes of a file at most, 0 for any."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(rows), str(folder), str(limit)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_build_killed_at_any_moment_resumes_to_the_same_bytes(rows, expected, tmp_path):
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    draws = random.Random(seed)
    process = started(rows, tmp_path / "timed")
    whole = time.perf_counter()
    assert process.communicate()[0].strip() == expected
    whole = time.perf_counter() - whole
    killed = 0
    while killed < 4:
        process = started(rows, tmp_path / "killed")
        try:
            process.wait(draws.uniform(0, whole))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
    process = started(rows, tmp_path / "killed")
    assert process.communicate()[0].strip() == expected


@pytest.mark.parametrize("limit", [1_000_000, 2_000_000])
def test_a_full_disk_is_said_with_the_stage_and_the_build_goes_on_from_there(rows, expected, tmp_path, limit):
    process = started(rows, tmp_path / "full", limit)
    _, said = process.communicate()
    assert process.returncode == 1
    assert re.search("build stage .*(File too large|No space left on device)", said)
    assert "make room and run again: finished tasks are kept" in said
    assert str(tmp_path / "full") in said
    assert any((tmp_path / "full" / "done").iterdir()) == (limit > 1_280_000)  # the codes themselves are 1.28 MB
    assert started(rows, tmp_path / "full").communicate()[0].strip() == expected


def test_a_disk_that_fills_while_an_array_is_made_leaves_no_array(rows, expected, tmp_path, monkeypatch):
    made = []

    def full(handle: int, offset: int, length: int) -> None:
        made.append(length)
        if len(made) == 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"build stage .*No space left on device; make room"):
        build(np.load(rows), tmp_path, SMALL, executor=Threads(2))
    assert len(made) == 12
    assert digest(build(np.load(rows), tmp_path, SMALL)) == expected


JOB = """
import resource, runpy, sys
limit, *flags = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
import trainers.bdg.command  # what takes long comes before the word
sys.argv = ["bdg", *flags]
print("begun", flush=True)
runpy.run_module("trainers.bdg", run_name="__main__")
"""


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    """A store with embeddings of 10,000 pictures and an index of them."""
    store = ArtifactStore(tmp_path / "store")
    publish_embeddings(store, tmp_path / "embeddings", n=10_000, dim=16, encoder=False)
    train(store, Inputs(), tmp_path / "work", Config(bits=128, shards=2))
    return store


def job(tmp_path: Path, limit: int = 0) -> subprocess.Popen[str]:
    """The job in a process of its own, about to begin, with a folder that has nothing done."""
    flags = [
        "--store",
        str(tmp_path / "store"),
        "--work",
        str(tmp_path / "again"),
        "--bits",
        "128",
        "--shards",
        "2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, str(limit), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def test_a_job_whose_disk_is_full_says_so_and_the_old_version_is_served_on(store, tmp_path):
    old = store.manifest("binary-index")
    for limit in (100_000, 400_000):  # of the vectors, and of the graph's edges
        process = job(tmp_path, limit)
        _, said = process.communicate()
        assert process.returncode == 1
        assert re.search(r"bdg: .*(File too large|No space left on device); make room and run again", said), said
        assert store.manifest("binary-index") == old
        assert [m.version for m in store.list("binary-index")] == [old.version]
        BinaryIndex.load(store.fetch("binary-index", max_schema=2).path, shards=2).warm_up()
    assert job(tmp_path).wait() == 0
    assert store.manifest("binary-index").files == old.files
    assert store.manifest("binary-index").version != old.version


@pytest.mark.slow
def test_a_job_killed_at_any_moment_shows_whole_versions_alone_and_resumes_to_the_same_files(store, tmp_path):
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    draws = random.Random(seed)
    old = store.manifest("binary-index")
    for _ in range(4):
        process = job(tmp_path)
        try:
            process.wait(draws.uniform(0, 0.7))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    # Those killed in their last moments have published, and whole versions alone.
    assert all(manifest.files == old.files for manifest in store.list("binary-index"))
    assert job(tmp_path).wait() == 0
    assert store.manifest("binary-index").files == old.files
    BinaryIndex.load(store.fetch("binary-index", max_schema=2).path, shards=2).warm_up()
