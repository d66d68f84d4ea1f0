"""`--once`: a job that is started again, as containers are, does not do its work twice."""

import pytest
from typer.testing import CliRunner

from vitrine.artifacts import ArtifactStore
from vitrine.cli import app, applications
from vitrine.cli import data as data_command
from vitrine.data import simulator
from vitrine.runtime import topics


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once") / "market"
    simulator.write_market(folder, users=120, ads=60, seed=1)
    return folder


def publish(store, *names):
    (store / "part").mkdir(parents=True)
    (store / "part" / "file").write_text("x")
    for name in names:
        ArtifactStore(store / "store").publish(name, store / "part", schema=1)
    return str(store / "store")


def test_a_trainer_whose_artifacts_are_all_there_is_not_started(tmp_path, monkeypatch):
    monkeypatch.setattr("vitrine.cli._become", lambda arguments: pytest.fail(f"started {arguments}"))
    store = publish(tmp_path, "ctr-model", "towers")
    for given in (["--store", store], [f"--store={store}"]):
        ended = CliRunner().invoke(app, ["train", "--once", "des", "--market", "m", *given])
        assert ended.exit_code == 0
        assert "towers 2" in ended.output
    ended = CliRunner().invoke(app, ["train", "--once", "des", "--market", "m"], env={"VITRINE_STORE": store})
    assert ended.exit_code == 0


@pytest.mark.parametrize("there", [(), ("ctr-model",)])
def test_a_trainer_is_started_where_anything_it_publishes_is_missing(tmp_path, monkeypatch, there):
    started = []
    monkeypatch.setattr("vitrine.cli._become", started.append)
    store = publish(tmp_path, *there)
    CliRunner().invoke(app, ["train", "--once", "--processes", "1", "des", "--store", store])
    CliRunner().invoke(app, ["train", "--once", "--processes", "1", "des"], env={"VITRINE_STORE": ""})
    assert started == [["-m", "trainers.des", "--store", store], ["-m", "trainers.des"]]


def test_every_trainer_has_its_artifacts_named():
    assert all(applications.published_kinds(name) for name in (*applications.DISTRIBUTED, *applications.PLAIN))


def test_a_market_that_is_there_is_left_alone_and_one_cut_short_is_written_again(market):
    before = (market / "events.parquet").stat().st_mtime_ns
    arguments = ["data", "simulate", str(market), "--users", "120", "--ads", "60", "--once"]
    assert "holds a market already" in CliRunner().invoke(app, arguments).output
    assert (market / "events.parquet").stat().st_mtime_ns == before
    (market / "market.json").unlink()  # which is written last
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (market / "events.parquet").stat().st_mtime_ns > before


def test_history_is_replayed_into_an_empty_topic_alone(market, monkeypatch):
    sent, there = [], [0]
    monkeypatch.setattr(topics, "existing", lambda url, namespace: topics.wanted(namespace))
    monkeypatch.setattr(topics, "records", lambda url, topic: there[0])
    monkeypatch.setattr(data_command, "producer", lambda url: None)
    monkeypatch.setattr(data_command, "_send", lambda file, total, producer, topic: sent.append(total))
    arguments = ["data", "replay", str(market), "--kafka-url", "kafka://127.0.0.1:9", "--once"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    total = sent.pop()
    assert total > 0

    there[0] = total + 3  # replayed, and three live events since
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert sent == []

    there[0] = total - 1  # a replay was killed
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 1
    assert "fresh VITRINE_NAMESPACE" in ended.output
    assert sent == []
