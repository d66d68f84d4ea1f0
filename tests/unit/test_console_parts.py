"""The console's parts: readings of metrics pages, drawings, lineage, recall, figures, inputs."""

import http.server
import math
import threading
import time
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
from ann_kit import segment_of, small_index, unit_vectors
from hypothesis import given
from hypothesis import strategies as st

from services.console import draw, lineage, numbers, recall
from services.console.fresh import Fresh
from services.console.inputs import InputError, a_count, an_id, one_of
from services.console.scrape import Page, Scraper, Status, parse, point, quantile
from services.console.settings import parse_pages
from tests.waiting import wait_for
from vitrine.ann.index import Options
from vitrine.artifacts import Manifest
from vitrine.client import IndexStats, SearchResult
from vitrine.errors import UnavailableError


def parsed(svg: str) -> ET.Element:
    """The drawing as XML; not well-formed fails."""
    return ET.fromstring(svg)  # noqa: S314  (this repository's own)


SECONDS = st.lists(st.floats(0.0001, 9.9), min_size=1, max_size=200)
VERSION = "20261124T073400123456-1a2b3c4d"
BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0, math.inf)


def bucketed(values: list[float]) -> dict[float, float]:
    return {bound: float(sum(v <= bound for v in values)) for bound in BOUNDS}


@given(SECONDS, st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_that_holds_it(values, q):
    exact = sorted(values)[max(0, math.ceil(q * len(values) - 1e-9) - 1)]
    high = next(bound for bound in BOUNDS if exact <= bound)
    low = max((bound for bound in BOUNDS if bound < high), default=0.0)
    found = quantile(q, bucketed(values))
    assert low - 1e-9 <= found <= high + 1e-9


def test_a_quantile_of_nothing_is_nothing_and_beyond_the_last_bound_is_that_bound():
    assert quantile(0.99, {}) is None
    assert quantile(0.99, bucketed([])) is None
    assert quantile(0.5, bucketed([99.0])) == 10.0


def page(at: float, handled: float, le: dict[float, float], **gauges: float) -> Page:
    text = [f'grpc_server_handled_total{{grpc_service="a"}} {handled}']
    text.append('grpc_server_handled_total{grpc_service="grpc.health.v1.Health"} 1e6')
    text += [
        f'grpc_server_handling_seconds_bucket{{le="{b if b < math.inf else "+Inf"}"}} {n}' for b, n in le.items()
    ]
    text += [f"{name} {value}" for name, value in gauges.items()]
    return Page(at, parse("\n".join(text) + "\n"))


def test_a_rate_is_of_the_time_between_two_readings_without_health_checks():
    first, second = page(10, 100, bucketed([0.5] * 100)), page(12, 150, bucketed([0.5] * 100 + [0.005] * 50))
    seen = point(first, first, second)
    assert seen.rate == 25.0
    assert seen.p99 <= 0.01, "of what came since, not of all that ever was"
    assert point(None, first, first).rate is None


def test_a_process_that_was_started_anew_counts_from_nothing():
    before, after = page(10, 1_000, bucketed([0.5] * 1_000)), page(12, 4, bucketed([0.005] * 4))
    seen = point(before, before, after)
    assert seen.rate == 2.0
    assert seen.p99 <= 0.01


def test_lag_is_summed_and_age_the_oldest():
    text = 'vitrine_matching_lag_records{partition="0"} 3\nvitrine_matching_lag_records{partition="1"} 4\n'
    for partition, age in ((0, 1.5), (1, 9.0)):
        text += f'vitrine_matching_backlog_age_seconds{{partition="{partition}"}} {age}\n'
    seen = Page(0, parse(text))
    assert (point(None, seen, seen).lag, point(None, seen, seen).backlog_age) == (7, 9)


class Hostile(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        bodies = {"/good": b"vitrine_serving 1\n", "/junk": b"<html>\xff{{{", "/endless": b"a 1\n" * (3 << 20)}
        self.wfile.write(bodies[self.path])

    def log_message(self, *_):
        pass


def test_one_bad_page_does_not_keep_the_others_from_being_read():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    pages = {name: f"{base}/{name}" for name in ("good", "junk", "endless")} | {"away": "http://127.0.0.1:1/x"}
    scraper = Scraper(pages, interval_s=60, timeout_s=2)
    scraper.look()
    found = {status.name: status for status in scraper.statuses()}
    assert found["good"].trouble is None
    assert found["good"].serving
    assert "more than" in found["endless"].trouble
    assert found["junk"].trouble
    assert found["away"].trouble
    scraper.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("text", ["x", "a=ftp://h/m", "a=http:///m", "=http://h/m", "a=http://h/m,a=http://h/m"])
def test_a_metrics_page_that_is_no_name_and_url_is_refused(text):
    with pytest.raises(ValueError, match=r"should be|twice"):
        parse_pages(text)
    assert parse_pages(" a=http://h:1/m , b=https://h/m ,") == {"a": "http://h:1/m", "b": "https://h/m"}


FIGURES = st.none() | st.floats(0, 1e12)


@given(st.lists(FIGURES, max_size=60))
def test_a_sparkline_stays_in_its_box_whatever_the_figures(values):
    root = parsed(draw.sparkline(values, '<"&'))
    width, height = (float(x) for x in root.attrib["viewBox"].split()[2:])
    for line in root.iter("polyline"):
        for x, y in (p.split(",") for p in line.attrib["points"].split()):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
    assert root.attrib["aria-label"] == '<"&'


@given(
    st.lists(st.floats(0, 1e6), max_size=50), st.floats(0, 1e6), st.none() | st.floats(0, 1e6), st.integers(0, 99)
)
def test_the_drawing_of_a_list_is_well_formed_for_any_values(values, floor, ad, rank):
    parsed(draw.list_values(sorted(values, reverse=True), floor, ad, rank))
    parsed(draw.bar(floor))


def manifest(name: str, version: str, **parents: str) -> Manifest:
    return Manifest(
        name,
        name,
        1,
        version,
        "2026-11-24T00:00:00+00:00",
        dict(parents),
        {},
        {"auc": 0.7},
        {"f": {"size": 1, "sha256": ""}},
    )


def test_the_lineage_shows_each_version_once_its_parents_and_who_serves_it():
    made = [manifest("embeddings", "e1"), manifest("embeddings", "e2"), manifest("catalog", "c1")]
    made += [manifest("index", "i2", embeddings="e2"), manifest("<towers>", "t1"), manifest("old", "o1")]
    refs = {
        "embeddings": {"stable": "e2"},
        "index": {"stable": "i2"},
        "catalog": {"stable": "c1"},
        "<towers>": {"canary": "t1"},
    }
    statuses = [
        Status("ann", None, "calls", [], serving=True, versions={"index": "i2", "embeddings": "e2"}),
        Status("matching", None, "calls", [], versions={"catalog": "c1", "<towers>": "t1"}),
        Status("behind", None, "calls", [], versions={"embeddings": "e1"}),
        Status("away", "no", "calls", []),
    ]
    nodes = {node.key: node for node in lineage.graph(made, refs, statuses)}
    assert nodes.keys() == {
        "embeddings/e1", "embeddings/e2", "index/i2", "catalog/c1", "<towers>/t1",
        "process/ann", "process/matching", "process/behind",
    }  # fmt: skip
    assert nodes["process/ann"].parents == ["index/i2"], "not its parent's parent as well"
    assert nodes["process/behind"].parents == ["embeddings/e1"]
    assert (nodes["process/ann"].health, nodes["process/matching"].health) == ("serving", "not-serving")
    for drawn in (lineage.draw_wide(list(nodes.values())), lineage.draw_narrow(list(nodes.values()))):
        root = parsed(drawn)
        assert len(list(root.iter("g"))) == len(nodes)
        assert len(list(root.iter("path"))) == sum(len(node.parents) for node in nodes.values())
        assert "<towers>" in [text.text for text in root.iter("text")]


@given(st.data())
def test_boxes_of_any_lineage_do_not_overlap(data):
    count = data.draw(st.integers(1, 12))
    nodes = []
    for i in range(count):
        parents = data.draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        depth = 1 + max((nodes[p].depth for p in parents), default=-1)
        nodes.append(lineage.Node(str(i), str(i), [], [str(p) for p in parents], None, depth))
    for drawn in (lineage.draw_wide(nodes), lineage.draw_narrow(nodes)):
        boxes = []
        for g in parsed(drawn).iter("g"):
            x, y = (float(v) for v in g.attrib["transform"][10:-1].split(","))
            rect = g.find("rect").attrib
            boxes.append((x, y, x + float(rect["width"]), y + float(rect["height"])))
        for i, (a, b, c, d) in enumerate(boxes):
            for e, f, g, h in boxes[i + 1 :]:
                assert c <= e or g <= a or d <= f or h <= b


class LocalAnn:
    """An AnnClient over an index in this process."""

    def __init__(self, items: int) -> None:
        self.index = small_index(n=items)
        self.stats = IndexStats("v1", "e1", items, self.index.dim, self.index.bits, 10, True)

    def search(self, vectors, k, over_recall, timeout_s=None):
        hits = self.index.search_vectors(np.atleast_2d(vectors), Options(k, over_recall))
        parts = [[array[part] for part in hits.slices()] for array in (hits.ids, hits.scores, hits.distances)]
        return SearchResult("v1", *parts)


def test_the_reference_is_brute_force_and_recall_counts_what_it_shares_with_it():
    ann = LocalAnn(2_500)
    queries = unit_vectors(9, 6, ann.index.dim)
    references = recall.reference(ann, ann.stats, {"vectors": queries}, 10)
    curve = recall.measure(ann, ann.stats, queries)
    expected = {1: 0.0, 20: 0.0}
    for query, reference in zip(queries, references, strict=True):
        segment = segment_of(ann.index)
        brute = segment.ids[np.argsort(-(segment.vectors @ query), kind="stable")[:10]]
        assert reference.exact
        assert set(reference.ids.tolist()) == set(brute.tolist())
        for step in expected:
            found = ann.search(query, 10, step).ids[0]
            expected[step] += len(set(found.tolist()) & set(brute.tolist())) / 10 / len(queries)
    measured = dict(curve.points)
    assert measured[1] == pytest.approx(expected[1])
    assert measured[20] == pytest.approx(expected[20])
    assert measured[1] < measured[20]
    parsed(draw.recall_curve(curve.points, 3, curve.at(3)))


def test_a_curve_that_could_not_be_measured_is_measured_at_a_later_request():
    ann, broken = LocalAnn(600), LocalAnn(600)
    broken.search = lambda *_, **__: (_ for _ in ()).throw(ValueError("the client is closed"))
    queries, curves = unit_vectors(9, 3, ann.index.dim), recall.Curves()
    assert curves.get(broken, ann.stats, queries) is None
    wait_for(lambda: not any(t.name == "recall" for t in threading.enumerate()), 5)
    wait_for(lambda: curves.get(ann, ann.stats, queries) is not None, 5)
    assert curves.get(ann, ann.stats, queries).queries == 3


def test_an_index_too_large_to_search_whole_is_not_called_exact():
    ann = LocalAnn(300)
    stats = SimpleNamespace(items=100_001)
    assert not recall.reference(ann, stats, {"vectors": unit_vectors(9, 1, ann.index.dim)}, 10)[0].exact


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (numbers.money, 0.0417, "0.04170"),
        (numbers.money, 12.5, "12.50"),
        (numbers.money, 2.839, "2.839"),
        (numbers.money, 0.0, "0"),
        (numbers.money, 1234.5, "1,234.50"),
        (numbers.seconds, 0.00051, "0.51\u202fms"),
        (numbers.seconds, 0.0123, "12\u202fms"),
        (numbers.seconds, 3.44, "3.4\u202fs"),
        (numbers.seconds, 300.0, "5\u202fmin"),
        (numbers.seconds, 7_300.0, "2\u202fh"),
        (numbers.seconds, 260_000.0, "3\u202fd"),
        (numbers.seconds, None, "\u2013"),
        (numbers.rate, 0.0, "0"),
        (numbers.rate, 0.44, "0.4"),
        (numbers.rate, 1530.2, "1,530"),
        (numbers.size, 18.44e6, "18.4\u202fMB"),
        (numbers.figure, 8637, "8,637"),
        (numbers.figure, 0.73812, "0.738"),
        (numbers.percent, 0.0421, "4.2\u202f%"),
        (numbers.short, VERSION, "1a2b3c4d"),
        (numbers.when, VERSION, "24 Nov 2026, 07:34"),
    ],
)
def test_figures_are_written_for_people(write, value, text):
    assert write(value) == text


@given(st.integers() | st.text(max_size=30))
def test_an_id_is_a_whole_number_that_fits_64_bits_or_it_is_refused(given_text):
    text = str(given_text)
    try:
        wanted = int(text) if text.strip().isascii() and text.strip().isdigit() else 0
    except ValueError:
        wanted = 0
    if 0 < wanted < 2**64 and len(text.strip()) <= 20:
        assert an_id("user", text) == wanted
    else:
        with pytest.raises(InputError, match="user: "):
            an_id("user", text)


def test_counts_and_words_stay_in_their_bounds():
    assert a_count("k", " 7 ", 1, 10) == 7
    assert one_of("kind", "view", {"view": 1}) == "view"
    for text in ("0", "11", "-1", "1e3", "", "\u0663"):
        with pytest.raises(InputError, match="k: "):
            a_count("k", text, 1, 10)
    with pytest.raises(InputError, match="none of view"):
        one_of("kind", "sell", {"view": 1})


def test_a_slow_answer_is_waited_for_a_while_and_comes_later():
    gate, asked = threading.Event(), []

    def ask() -> int:
        asked.append(1)
        gate.wait(5)
        return len(asked)

    fresh = Fresh(ask, what="the store", wait_s=0.02, fresh_s=0.0)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="the store did not answer within"):
            fresh.get()
    assert asked == [1], "one at a time"
    gate.set()
    wait_for(lambda: _answer(fresh) is not None, 5)
    gate.clear()
    assert fresh.get() >= 1, "the answer before, while the next is on its way"
    gate.set()


def test_an_error_is_told_for_a_while_and_asked_about_again():
    asked = []

    def ask() -> int:
        asked.append(1)
        raise UnavailableError("no route")

    fresh = Fresh(ask, what="the store", wait_s=1, fresh_s=60)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="no route"):
            fresh.get()
    assert len(asked) == 1
    aged = Fresh(ask, what="the store", wait_s=1, fresh_s=0.05)
    for times in (2, 3):
        with pytest.raises(UnavailableError, match="no route"):
            aged.get()
        assert len(asked) == times, "an answer is old from its coming on, whenever the next question comes"
        time.sleep(0.1)


def _answer(fresh: Fresh) -> int | None:
    try:
        return fresh.get()
    except UnavailableError:
        return None
