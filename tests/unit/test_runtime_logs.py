"""Logs: one JSON object a line, whoever wrote it."""

import json
import logging

import pytest

from vitrine.runtime import logs


@pytest.fixture
def _root_logger_restored():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.usefixtures("_root_logger_restored")
def test_a_line_starts_with_time_level_service_and_event(capsys):
    logs.setup("info", "ann")
    logs.get_logger().info("index loaded", items=3)
    (line,) = lines(capsys)
    assert list(line)[:4] == ["time", "level", "service", "event"]
    assert (line["level"], line["service"], line["event"], line["items"]) == ("info", "ann", "index loaded", 3)


@pytest.mark.usefixtures("_root_logger_restored")
def test_the_standard_librarys_lines_look_the_same_and_its_chatter_is_left_out(capsys):
    logs.setup("info", "ann")
    logging.getLogger("kafka.conn").info("connecting")
    logging.getLogger("kafka.conn").warning("lost %s", "broker 1")
    (line,) = lines(capsys)
    assert (line["event"], line["logger"], line["level"]) == ("lost broker 1", "kafka.conn", "warning")


@pytest.mark.usefixtures("_root_logger_restored")
def test_an_exception_is_rendered_into_its_line(capsys):
    logs.setup("info", "ann")
    try:
        raise KeyError("gone")
    except KeyError:
        logs.get_logger().exception("load failed")
        logging.getLogger("some.library").exception("it failed")
    for line in lines(capsys):
        assert "KeyError: 'gone'" in line["exception"]


@pytest.mark.usefixtures("_root_logger_restored")
def test_lines_below_the_level_are_not_written(capsys):
    logs.setup("warning", "ann")
    logs.get_logger().info("not this")
    assert lines(capsys) == []


@pytest.mark.usefixtures("_root_logger_restored")
def test_passwords_in_urls_do_not_reach_the_log(capsys):
    logs.setup("info", "ann")
    logs.get_logger().warning("lost redis://:hunter2@cache:6379", url="redis://:hunter2@cache:6379")
    logging.getLogger("redis").error("no answer from %s", "redis://:hunter2@cache:6379")
    assert "hunter2" not in json.dumps(lines(capsys))
