"""What the tests share: one embedded stack a session, and a fresh namespace a test."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitrine.runtime.embedded import EmbeddedStack, why_no_kafka

# A shell that starts the tests in the background ignores Ctrl-C for them, and so would the processes they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SIBLING = Path(__file__).resolve().parents[2] / "shared" / "kafka"


@pytest.fixture(scope="session")
def kafka_home() -> str:
    """A folder with an Apache Kafka release; tests that need one are skipped without."""
    home = os.environ.get("VITRINE_KAFKA_HOME") or (str(_SIBLING) if _SIBLING.is_dir() else "")
    missing = why_no_kafka(home)
    if missing:
        pytest.skip(f"needs Apache Kafka: {missing}")
    return home


@pytest.fixture(scope="session")
def stack(kafka_home: str) -> Iterator[EmbeddedStack]:
    """Apache Kafka and Valkey for the whole session. A test that kills a server starts a stack of its own."""
    with EmbeddedStack(kafka_home=kafka_home) as started:
        yield started


@pytest.fixture
def namespace() -> str:
    """Topics, keys and artifacts that no other test has."""
    return f"t{secrets.token_hex(5)}"


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that stands in for a container's /, with what its volumes would hold (tests/deploy_kit.py)."""
    from tests.deploy_kit import make_root

    return make_root(tmp_path_factory.mktemp("image"))
