"""Gauges read at the scrape."""

import pytest
from prometheus_client import generate_latest

from vitrine.runtime import metrics
from vitrine.runtime.readings import Readings, plain_topic


@pytest.fixture
def depth():
    readings = Readings("vitrine_test_depth", "For a test.", "well")
    yield readings
    metrics.REGISTRY.unregister(readings)


def samples(name: str) -> dict[str, float]:
    lines = generate_latest(metrics.REGISTRY).decode().splitlines()
    return {key: float(value) for key, value in (line.rsplit(" ", 1) for line in lines if line.startswith(name))}


def test_what_is_gone_has_no_sample(depth: Readings):
    held = {"a": 1.0, "b": 2.0}

    def read() -> dict[str, float]:
        return held

    depth.add(read)
    assert samples("vitrine_test_depth") == {
        'vitrine_test_depth{well="a"}': 1.0,
        'vitrine_test_depth{well="b"}': 2.0,
    }
    del held["a"]
    assert samples("vitrine_test_depth") == {'vitrine_test_depth{well="b"}': 2.0}
    depth.remove(read)
    assert samples("vitrine_test_depth") == {}


def test_a_number_of_its_own_has_no_label():
    readings = Readings("vitrine_test_drawn_total", "For a test.", counter=True)
    try:
        readings.add(lambda: {"": 3.0})
        assert samples("vitrine_test_drawn") == {"vitrine_test_drawn_total": 3.0}
    finally:
        metrics.REGISTRY.unregister(readings)


def test_a_topic_is_named_without_its_namespace():
    assert plain_topic("blue.user-events") == plain_topic("user-events") == "user-events"
