"""The load generators against real servers, and `vitrine loadtest` whole."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from ann_kit import publish_embeddings, publish_index
from ctr_kit import random_model
from matching_live import Live, Service, live

from vitrine.artifacts import ArtifactStore
from vitrine.ctr import model
from vitrine.data.replay import user_event
from vitrine.runtime import process

USERS = 50
ROOT = Path(__file__).parents[2]


@dataclass
class Whole:
    """Every service, with lists for USERS users."""

    run: Live
    matching: Service
    ctr: Service
    ann: Service

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "VITRINE_MATCHING_ADDRESS": self.matching.address(),
            "VITRINE_CTR_ADDRESS": self.ctr.address(),
            "VITRINE_ANN_ADDRESS": self.ann.address(),
            "VITRINE_KAFKA_URL": self.run.stack.kafka_url,
            "VITRINE_NAMESPACE": self.run.namespace,
            "VITRINE_LOAD_USERS": str(USERS),
            "VITRINE_LOAD_ADS": "40",
            "VITRINE_LOAD_FIRST_AD": "100",
        }


@pytest.fixture(scope="module")
def whole(stack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    namespace = f"load{os.getpid()}"
    with live(stack, namespace, folder) as run:
        store = ArtifactStore(folder / "store", namespace=namespace)
        random_model(1).write(folder / "model")
        store.publish(model.KIND, folder / "model", schema=model.SCHEMA)
        parent = publish_embeddings(store, folder / "embeddings", seed=1)
        publish_index(store, folder / "index", parent, seed=1)
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "VITRINE_STORE": str(folder / "store"), "VITRINE_NAMESPACE": namespace,
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        services = [run.worker(), run.server(served="50", stored="50")]
        others = [Service([f"services.{name}"], environment, folder, name) for name in ("ctr", "ann")]
        run.services += others
        items = run.catalog.items.tolist()
        for user in range(1, USERS + 1):
            run.send(user_event("purchase", user, int(time.time() * 1000), items[user % len(items)], 0, 0))
        for service in (*services, *others):
            service.wait_serving()
        run.wait_applied()
        yield Whole(run, services[1], *others)


def openloop(whole: Whole, *arguments: str) -> dict:
    command = [sys.executable, "-m", "loadtest.openloop", "--users", str(USERS), "--seconds", "1", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("method", ["getmatches", "score", "search", "ad_flow"])
def test_an_open_loop_drives_every_service_and_fails_nobody(whole, method, tmp_path):
    matching, ctr, ann = whole.matching.address(), whole.ctr.address(), whole.ann.address()
    arguments = {
        "getmatches": ["--target", matching],
        "score": ["--target", ctr, "--matching", matching],
        "search": ["--target", ann, "--processes", "2"],
        "ad_flow": ["--matching", matching, "--ctr", ctr, "--kafka", whole.run.stack.kafka_url,
                    "--topic", whole.run.topic],
    }  # fmt: skip
    before = whole.run.store.applied()
    seen = openloop(whole, "--method", method, "--rate", "40", "--out", str(tmp_path), *arguments[method])
    assert seen["failures"] == {}
    assert seen["sent"] > 10
    assert 0 < seen["p50_ms"] <= seen["p99_ms"] <= seen["max_ms"] * 1.01
    assert (tmp_path / "percentiles.png").read_bytes().startswith(b"\x89PNG")
    if method == "ad_flow":
        deadline = time.monotonic() + 30
        while whole.run.store.applied() < before + seen["sent"]:
            assert time.monotonic() < deadline, "the auctions' impressions did not reach the worker"
            time.sleep(0.1)


@pytest.mark.slow
def test_a_stair_ends_at_a_knee_and_draws_it(whole, tmp_path):
    arguments = ["--target", whole.matching.address(), "--method", "getmatches", "--seconds", "0.3"]
    seen = openloop(whole, *arguments, "--stair", "400", "--bound-ms", "1000", "--out", str(tmp_path))
    assert seen["knee"] > 0
    assert max(step["rate"] for step in seen["steps"]) > seen["knee"]
    assert (tmp_path / "latency-by-rate.png").exists()


def locust(environment, *users: str) -> tuple[int, list[dict], str]:
    command = [
        sys.executable, "-m", "locust", "-f", str(ROOT / "loadtest" / "locustfile.py"), "--headless",
        "--users", "10", "--spawn-rate", "10", "--run-time", "4s", "--json", "--only-summary", *users,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    return done.returncode, json.loads(done.stdout[done.stdout.index("[") :]), done.stderr


def test_locust_drives_three_services_and_both_flows(whole, tmp_path):
    code, rows, said = locust(whole.environment())
    assert code == 0, said
    calls = {row["name"]: row for row in rows}
    assert set(calls) >= {"GetMatches", "Score", "Search", "search front end", "ad front end"}
    assert all(row["num_failures"] == 0 and row["num_requests"] > 0 for row in calls.values())


def test_locust_says_so_where_calls_fail(whole, tmp_path):
    code, rows, _ = locust(whole.environment() | {"VITRINE_CTR_ADDRESS": "127.0.0.1:1"}, "Scoring")
    assert code == 1
    assert all(row["num_failures"] == row["num_requests"] > 0 for row in rows)


@pytest.mark.slow
def test_the_command_measures_everything_and_restarts_everything_without_a_failed_call(tmp_path):
    command = [
        sys.executable, "-m", "vitrine.cli", "loadtest", "--users", "400", "--ads", "200", "--seconds", "0.5",
        "--out", str(tmp_path / "load"), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=290)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    for kind in ("getmatches", "score", "search", "ad_flow"):
        assert facts[kind]["knee_per_s"] > 0
        assert facts[kind]["at_50"]["p50_ms"] > 0
        assert facts[kind]["at_80"]["p99_ms"] > 0
    for kind in ("getmatches", "score", "search"):
        shares = {name: share for name, share in facts[kind]["shares"].items() if name.startswith("share_")}
        assert sum(shares.values()) - shares["share_system"] == pytest.approx(1, abs=0.01)
    assert 0 < facts["getmatches_share_of_echo"] < 1.5
    assert facts["failed"] == facts["rolling"]["failed"] == 0
    assert facts["events_applied"] == facts["events_sent"] > 0
    assert json.loads((tmp_path / "load/loadtest.json").read_text()) == facts
    for picture in ("latency-by-rate.png", "percentiles.png"):
        assert (tmp_path / "load" / picture).read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_ends_the_command_and_all_that_it_started(tmp_path):
    mark = f"loadtest-{os.getpid()}-{np.random.default_rng().integers(2**62)}"
    running = subprocess.Popen(
        [sys.executable, "-m", "vitrine.cli", "loadtest", "--users", "400", "--out", tmp_path / "load"],
        cwd=ROOT, env=os.environ | {"LOADTEST_MARK": mark}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert running.stdout.readline(), "it ended at once"
        time.sleep(5)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=60)
        assert running.returncode == 130, said
        deadline = time.monotonic() + 10
        while (left := marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []
    finally:
        process.stop(running)


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for each in psutil.process_iter():
        try:
            if each.environ().get("LOADTEST_MARK") == mark and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
