"""The scorer gives the plain factorization machine's probabilities, and names what is wrong with a request."""

import dataclasses
import json

import numpy as np
import pytest
from ctr_kit import plain_pctr, random_model, random_user
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrine.ctr import CtrModel, Scorer
from vitrine.errors import FieldError


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(0, 9), st.integers(0, 20))
def test_scores_are_those_of_the_plain_factorization_machine(seed, dim, features):
    model = random_model(seed, dim)
    keys, weights = random_user(seed, features)
    ads = np.random.default_rng(seed).permutation(model.ads)
    pctrs, unknown = Scorer(model).score(keys, weights, ads)
    assert unknown == 0
    assert pctrs.dtype == np.float32
    assert pctrs == pytest.approx([plain_pctr(model, keys, weights, int(ad)) for ad in ads], abs=1e-5)


def test_an_unknown_ad_is_scored_by_the_users_side_alone_and_counted():
    model = random_model()
    keys, weights = random_user(1)
    pctrs, unknown = Scorer(model).score(keys, weights, np.array([5, 100, 9999, 100], np.uint64))
    assert unknown == 2
    assert pctrs[0] == pctrs[2] == pytest.approx(plain_pctr(model, keys, weights, 5), abs=1e-6)
    assert pctrs[1] == pctrs[3] == pytest.approx(plain_pctr(model, keys, weights, 100), abs=1e-6)


def test_unknown_keys_change_nothing_and_an_unknown_user_is_scored():
    scorer, ads = Scorer(random_model()), np.array([100, 101], np.uint64)
    keys, weights = random_user(2)
    more = np.append(keys, np.array([3, 4], np.uint64)), np.append(weights, np.float32([5, 6]))
    assert scorer.score(keys, weights, ads)[0].tolist() == scorer.score(*more, ads)[0].tolist()
    nobody = np.empty(0, np.uint64), np.empty(0, np.float32)
    assert scorer.score(*nobody, ads)[0] == pytest.approx(
        [plain_pctr(random_model(), *nobody, ad) for ad in (100, 101)], abs=1e-6
    )


def test_a_score_does_not_depend_on_the_other_candidates():
    scorer, (keys, weights) = Scorer(random_model()), random_user(3)
    together = scorer.score(keys, weights, scorer.ads)[0]
    alone = [scorer.score(keys, weights, scorer.ads[i : i + 1])[0][0] for i in range(len(scorer.ads))]
    assert together.tolist() == alone


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weights": np.ones(3, np.float32)}, r"context\.weights"),
        ({"weights": np.array([1, np.nan], np.float32)}, r"context\.weights: weight 1"),
        ({"weights": np.array([-np.inf, 1], np.float32)}, r"context\.weights: weight 0"),
        ({"weights": np.array([1, 1e30], np.float32)}, r"context\.weights: weight 1"),
        ({"keys": np.arange(10_001, dtype=np.uint64), "weights": np.ones(10_001, np.float32)}, r"context\.keys"),
        ({"ad_ids": np.empty(0, np.uint64)}, "ad_ids"),
        ({"ad_ids": np.full(5_001, 100, np.uint64)}, "ad_ids"),
    ],
)
def test_a_request_out_of_bounds_is_refused_by_field(change, field):
    request = {
        "keys": np.array([1, 2], np.uint64), "weights": np.ones(2, np.float32), "ad_ids": np.array([100], np.uint64)
    }  # fmt: skip
    with pytest.raises(FieldError, match=field):
        Scorer(random_model()).score(**(request | change))


def test_a_model_survives_its_folder(tmp_path):
    model = random_model()
    model.write(tmp_path)
    again = CtrModel.load(tmp_path)
    for field in dataclasses.fields(CtrModel):
        mine, theirs = getattr(model, field.name), getattr(again, field.name)
        assert np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs


@pytest.mark.parametrize(
    ("file", "spoil", "field"),
    [
        ("v.npy", lambda p: p.write_bytes(p.read_bytes()[:-1]), r"v\.npy"),
        ("keys.npy", lambda p: p.unlink(), r"keys\.npy"),
        ("keys.npy", lambda p: np.save(p, np.load(p)[::-1].copy()), "keys"),
        ("w.npy", lambda p: np.save(p, np.load(p)[:-1]), "w"),
        ("w.npy", lambda p: np.save(p, np.load(p).astype(float)), "w"),
        ("w.npy", lambda p: np.save(p, np.load(p) * np.nan), "w"),
        ("ad_key_indptr.npy", lambda p: np.save(p, np.load(p)[::-1].copy()), "ad_key_indptr"),
        ("meta.json", lambda p: p.write_text("{}"), r"meta\.json"),
        ("meta.json", lambda p: p.write_text(json.dumps({"bias": 0, "model": "tree"})), r"meta\.model"),
        ("meta.json", lambda p: p.write_text('{"bias": NaN, "model": "fm"}'), r"meta\.bias"),
        ("schema.json", lambda p: p.write_text("[]"), "schema"),
        ("schema.json", lambda p: p.unlink(), "schema"),
    ],
)
def test_a_spoilt_model_is_refused_by_file(tmp_path, file, spoil, field):
    random_model().write(tmp_path)
    spoil(tmp_path / file)
    with pytest.raises(FieldError, match=field):
        Scorer.load(tmp_path)
