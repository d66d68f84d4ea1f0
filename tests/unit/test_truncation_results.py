"""From seeds to what is told: the same seed twice, a run that is stopped, intervals, measures, the page."""

import json
import math
import re

import numpy as np
import pytest

from experiments.truncation import calibration, command, page, plots, seeds
from experiments.truncation.calibration import Calibration
from experiments.truncation.estimates import Estimate, quantile, relative
from experiments.truncation.latency import MEASURED, Latency
from experiments.truncation.measure import gini, hhi
from experiments.truncation.results import conclude
from experiments.truncation.settings import FULL, QUICK, SHARES, Staleness
from tests.truncation_kit import TINY, cut_offs


@pytest.fixture(scope="module")
def figures(tmp_path_factory):
    return command.run_seeds(tmp_path_factory.mktemp("out"), TINY, cut_offs(), Staleness(), 2)


def test_a_seed_tells_every_system(figures):
    baselines = cut_offs().baselines()
    told = sum(len(systems) for systems in figures[0]["systems"].values())
    assert set(figures[0]["systems"]) == set(baselines)
    assert told == seeds.steps(cut_offs())


def test_every_system_answers_the_same_requests(figures):
    for figure in figures:
        counts = {s["requests"] for systems in figure["systems"].values() for s in systems.values()}
        assert len(counts) == 1


def test_a_stopped_run_keeps_its_seeds_and_goes_on(tmp_path, monkeypatch):
    done = []

    def stopping(sizes, found, seed, staleness, tick):
        if seed == 3 and len(done) == 2:
            done.append("stopped")
            raise KeyboardInterrupt
        done.append(seed)
        return {"seed": seed, "systems": {}}

    monkeypatch.setattr(seeds, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        command.run_seeds(tmp_path, TINY, cut_offs(), Staleness(), 3)
    resumed = command.run_seeds(tmp_path, TINY, cut_offs(), Staleness(), 3)
    assert done == [1, 2, "stopped", 3]
    assert [figure["seed"] for figure in resumed] == [1, 2, 3]


def test_other_settings_do_not_read_a_seeds_file(tmp_path):
    a = command.fingerprint(TINY, cut_offs(), Staleness())
    assert a != command.fingerprint(TINY, cut_offs(pairs=25), Staleness())
    assert a != command.fingerprint(TINY, cut_offs(), Staleness(8.0, 19.0))


def test_an_interval_is_students():
    e = Estimate.of([1.0, 2.0, 3.0, 4.0])
    half = 3.182 * math.sqrt(5 / 3) / 2
    np.testing.assert_allclose([e.mean, e.low, e.high], [2.5, 2.5 - half, 2.5 + half])
    assert not Estimate.of([1.0, -1.0]).clear
    assert Estimate.of([1.0, 1.1, 0.9]).clear
    assert math.isnan(Estimate.of([1.0]).low)
    assert Estimate.of([]).to_json()["mean"] is None
    assert abs(quantile(25) - 2.0595) < 0.005


def changed(ours, theirs):
    return relative([{"a": {"x": a}, "b": {"x": b}} for a, b in zip(ours, theirs, strict=True)], "a", "b", "x")


def test_a_change_is_paired_by_seed_and_weighs_seeds_by_what_the_base_has():
    assert changed([2.0, 30.0], [1.0, 10.0]).mean == pytest.approx(32 / 11 - 1)
    same_ratio = changed([2.0, 20.0, 200.0], [1.0, 10.0, 100.0])
    assert (same_ratio.mean, same_ratio.low, same_ratio.high) == pytest.approx((1.0, 1.0, 1.0))
    nothing_once = changed([1.0, 12.0], [0.0, 10.0])
    assert nothing_once.mean == pytest.approx(0.3)
    assert math.isnan(changed([1.0, 2.0], [0.0, 0.0]).mean)


def test_the_interval_of_a_change_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        theirs = rng.normal(100, 15, 10)
        ours = theirs * 1.1 + rng.normal(0, 5, 10)
        e = changed(ours.tolist(), theirs.tolist())
        covered.append(e.low <= 0.1 <= e.high)
    assert 0.92 < np.mean(covered) < 0.975


def test_concentration_of_known_distributions():
    assert gini(np.ones(10)) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.zeros(4)) == hhi(np.zeros(4)) == 0.0
    assert hhi(np.ones(4)) == pytest.approx(0.25)
    assert hhi(np.array([0, 5])) == 1.0


def test_the_budget_becomes_a_share_of_pairs():
    assert Latency(2.0, 10.0, 1, 1_000_000).share == pytest.approx(0.2)
    assert Latency(20.0, 10.0, 1, 1_000_000).share == 1.0


@pytest.mark.parametrize("sizes", [FULL, QUICK])
def test_the_committed_cut_offs_are_of_the_measured_budget(sizes):
    found = calibration.load(sizes)
    assert set(found.best) == {MEASURED.share, *SHARES}
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found
    for share in found.best:
        strongest = found.strongest(share)
        assert found.tried[share][calibration.label(strongest)] == max(found.tried[share].values())
        assert strongest.pairs == max(2, round(share * found.user_pairs))


def test_results_become_one_json_object_plots_and_a_page_that_loads_nothing(figures, tmp_path):
    results = conclude(figures, TINY, cut_offs(), Staleness())
    told = json.dumps(results.to_json(), allow_nan=False)
    assert json.loads(told)["seeds"] == 2
    pictures = plots.pictures(results)
    plots.png(pictures["cut-offs"], tmp_path / "cut-offs.png")
    assert (tmp_path / "cut-offs.png").read_bytes().startswith(b"\x89PNG")
    page.write(tmp_path / "index.html", results, pictures)
    html = (tmp_path / "index.html").read_text()
    assert html.count("<svg") == len(pictures)
    assert not re.search(r"""(src|href)=["']?(https?:|//|[\w./-]+\.(png|css|js))""", html)
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)


def test_calibration_tries_every_way_and_spends_the_budget(monkeypatch):
    monkeypatch.setattr(calibration, "SHARES", (0.02,))
    found = calibration.calibrate(TINY, seeds=(1,))
    for share, tried in found.tried.items():
        pairs = max(2, round(share * found.user_pairs))
        assert len(tried) == len(calibration.candidates(pairs))
        assert {cut.pairs for cut in found.best[share].values()} == {pairs}
