"""`vitrine demo`: every figure there, exit code 0, and nothing left running, however it ends."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest

FIELDS = {
    "data", "events_sent", "events_applied", "lists_stored", "lists_changed_by_event", "event_to_list_ms_p50",
    "event_to_list_ms_p99", "getmatches_ms_p50", "score_ms_p50", "score_candidates", "search_ms_p50",
    "search_same_category_at_10", "same_category_by_chance", "same_category_by_pixels", "ctr_auc",
    "auc_by_popularity", "auc_by_crowd_overlap", "kafka", "redis", "dead_letters", "seconds",
}  # fmt: skip


class Demo:
    """A demo in a process of its own; `left` finds what it started by a mark in the environment."""

    def __init__(self, out, *arguments):
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vitrine.cli", "demo", "--out", str(out), *arguments],
            env={**os.environ, "DEMO_MARK": self.mark}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def left(self):
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DEMO_MARK") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def left_after(self, seconds):
        deadline = time.monotonic() + seconds
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left


def test_the_demo_prints_every_figure_and_leaves_nothing_running(tmp_path):
    demo = Demo(tmp_path / "demo", "--users", "400", "--ads", "200", "--json")
    said, complained = demo.process.communicate(timeout=280)
    assert demo.process.returncode == 0, complained
    facts = json.loads(said.splitlines()[-1])
    assert facts.keys() >= FIELDS
    assert facts["events_applied"] == facts["events_sent"] > 0
    assert facts["lists_changed_by_event"] > 0
    assert facts["dead_letters"] == 0
    report = (tmp_path / "demo/report.html").read_text()
    assert "data:image/jpeg;base64" in report
    assert "src='http" not in report, "the report loads something from elsewhere"
    assert demo.left_after(5) == []


@pytest.mark.parametrize("moment", range(3))
def test_ctrl_c_at_any_moment_leaves_no_process(tmp_path, moment):
    seed = random.randrange(2**32)
    wait = random.Random(seed).uniform(0.5, 14.0)
    print(f"seed {seed}: SIGINT after {wait:.2f} s")
    demo = Demo(tmp_path / "demo", "--users", "400", "--ads", "200")
    time.sleep(wait)
    demo.process.send_signal(signal.SIGINT)
    demo.process.communicate(timeout=60)
    assert demo.process.returncode in (130, -signal.SIGINT)
    assert demo.left_after(10) == []


def test_a_killed_demo_leaves_no_process(tmp_path):
    demo = Demo(tmp_path / "demo", "--users", "400", "--ads", "200")
    time.sleep(8)
    demo.process.kill()
    demo.process.communicate(timeout=60)
    assert demo.left_after(20) == []


def test_a_folder_without_the_data_is_named(tmp_path):
    demo = Demo(tmp_path / "demo", "--data", str(tmp_path))
    _, complained = demo.process.communicate(timeout=60)
    assert demo.process.returncode == 1
    assert str(tmp_path) in complained
