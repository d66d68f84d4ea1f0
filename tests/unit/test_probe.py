"""`python -m vitrine.runtime.probe`, which health checks run: its exit status is the health of a process."""

import pytest

from vitrine.runtime import probe
from vitrine.runtime.health import LIVE, Health, HealthServer


@pytest.fixture
def health():
    state = {"reason": "no model yet"}
    checked = Health({"model": lambda: state["reason"]})
    server = HealthServer(checked)
    port = server.bind("127.0.0.1", 0)
    server.start()
    checked.refresh()
    yield state, checked, port
    server.stop()


def test_it_says_what_the_process_says_and_life_is_another_question(health, capsys):
    state, checked, port = health
    address = f"127.0.0.1:{port}"
    assert probe.main([address]) == 1
    assert capsys.readouterr().err == f"{address}: not serving\n"
    assert probe.main([address, "--service", LIVE]) == 0
    state["reason"] = None
    checked.refresh()
    assert probe.main([address]) == 0
    assert probe.main([address, "--service", "vitrine.Nothing"]) == 1


def test_it_asks_the_port_of_the_containers_variables(health, monkeypatch):
    _, _, port = health
    monkeypatch.setenv("VITRINE_HEALTH_PORT", str(port))
    assert probe.main(["--service", LIVE]) == 0
    monkeypatch.delenv("VITRINE_HEALTH_PORT")
    with pytest.raises(SystemExit):
        probe.main([])


def test_nobody_there_is_not_serving():
    assert probe.main(["127.0.0.1:1"]) == 1
