"""Keys that stand still, and towers that are the factorization machine."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrine.errors import FieldError
from vitrine.features import SCHEMA, FeatureSchema, UserTowers, ad_features, feature_keys, string_id, user_features
from vitrine.features.towers import tower, towers

GOLDEN = json.loads((Path(__file__).parent / "golden_features.json").read_text("utf-8"))


def _ids(values):
    return np.array(values, np.uint64)


@pytest.mark.parametrize("row", GOLDEN["keys"], ids=lambda row: f"{row['field']}-{row['value']}")
def test_a_value_keeps_the_key_of_the_golden_file(row):
    assert feature_keys(row["field"], _ids([int(row["value"])])).tolist() == [int(row["key"])]


@pytest.mark.parametrize("row", GOLDEN["strings"], ids=lambda row: row["text"].encode("unicode_escape").decode())
def test_a_text_keeps_the_id_of_the_golden_file(row):
    assert string_id(row["text"]) == int(row["id"])


def test_canonically_equal_texts_are_one_id_and_others_are_not():
    assert string_id("caf\u00e9") == string_id("cafe\u0301")
    assert string_id("\u212b") == string_id("\u00c5")  # ANGSTROM SIGN and A WITH RING ABOVE
    assert len({string_id(t) for t in ("cafe", "caf\u00e9", "CAF\u00c9", " caf\u00e9", "")}) == 5


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=50), st.text(max_size=10))
def test_values_of_a_field_share_no_key_and_no_key_is_zero(values, field):
    keys = feature_keys(field, _ids(values))
    assert len(set(keys.tolist())) == len(values)
    assert 0 not in keys.tolist()


def test_the_same_value_in_two_fields_has_two_keys():
    assert feature_keys("user_item", _ids([7])) != feature_keys("ad", _ids([7]))


def test_a_schema_survives_its_json_and_a_future_one_is_refused():
    assert FeatureSchema.from_json(SCHEMA.to_json()) == SCHEMA
    future = json.loads(SCHEMA.to_json()) | {"version": 2}
    with pytest.raises(FieldError, match=r"schema\.version"):
        FeatureSchema.from_json(json.dumps(future))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d["fields"][0].pop("norm"), r"schema\.fields\[0\]"),
        (lambda d: d["fields"][1].update(side="both"), r"schema\.fields\[1\]\.side"),
        (lambda d: d["fields"][2].update(norm="l1"), r"schema\.fields\[2\]\.norm"),
        (lambda d: d.update(fields=3), "schema"),
    ],
)
def test_a_schema_with_a_mistake_is_refused_by_field(change, field):
    data = json.loads(SCHEMA.to_json())
    change(data)
    with pytest.raises(FieldError, match=field):
        FeatureSchema.from_json(json.dumps(data))


weights = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30)


@given(weights, weights, st.integers(-60, 60))
def test_users_features_have_length_one_in_each_field_whatever_the_landmark(items, crowds, power):
    ids, crowd_ids = _ids(range(1, len(items) + 1)), _ids(range(1, len(crowds) + 1))
    keys, x = user_features(ids, np.array(items), crowd_ids, np.array(crowds))
    moved = user_features(ids, np.array(items) * 2.0**power, crowd_ids, np.array(crowds) * 2.0**power)
    assert keys.tolist() == moved[0].tolist()
    assert x.tobytes() == moved[1].tobytes()
    for field in (slice(0, len(items)), slice(len(items), None)):
        assert np.linalg.norm(x[field].astype(float)) == pytest.approx(1, abs=1e-6)
        assert np.all(np.diff(keys[field].astype(object)) > 0)


def test_features_do_not_depend_on_the_order_in_which_the_state_lists_them():
    ids, w = _ids([5, 9, 2]), np.array([0.3, 1.7, 0.9])
    none = _ids([]), np.array([])
    one, other = user_features(ids, w, *none), user_features(ids[::-1], w[::-1], *none)
    assert one[0].tolist() == other[0].tolist()
    assert one[1].tobytes() == other[1].tobytes()


def test_a_user_without_anything_has_no_features():
    keys, x = user_features(_ids([]), np.array([]), _ids([]), np.array([]))
    assert (keys.dtype, x.dtype, len(keys), len(x)) == (np.uint64, np.float32, 0, 0)


def test_an_ads_features_are_itself_and_its_crowds():
    indptr, keys, x = ad_features(_ids([3, 4]), np.array([0, 4, 4]), _ids([10, 11, 12, 13]))
    assert indptr.tolist() == [0, 5, 6]
    assert keys.tolist() == [
        *feature_keys("ad", _ids([3])).tolist(),
        *feature_keys("ad_crowd", _ids([10, 11, 12, 13])).tolist(),
        *feature_keys("ad", _ids([4])).tolist(),
    ]
    assert x.tolist() == [1, 0.5, 0.5, 0.5, 0.5, 1]


def _plain_fm(bias, w, v, x):
    """Rendle 2010, eq. 1: every pair, one by one."""
    pairs = sum(v[i] @ v[j] * x[i] * x[j] for i in range(len(x)) for j in range(i + 1, len(x)))
    return bias + w @ x + pairs


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_the_two_halves_make_exactly_the_plain_factorization_machine(n_user, n_ad, d, seed):
    rng = np.random.default_rng(seed)
    n = n_user + n_ad
    w, v, x, bias = rng.normal(size=n), rng.normal(size=(n, d)), rng.normal(size=n), rng.normal()
    user, vec_user = tower(w[:n_user], v[:n_user], x[:n_user])
    ad, vec_ad = tower(w[n_user:], v[n_user:], x[n_user:])
    assert bias + user + ad + vec_user @ vec_ad == pytest.approx(_plain_fm(bias, w, v, x), abs=1e-10)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_many_halves_have_the_bits_of_one_by_one_and_skip_unknown_rows(counts, d, seed):
    rng = np.random.default_rng(seed)
    w, v = rng.normal(size=20).astype(np.float32), rng.normal(size=(20, d)).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    rows, x = rng.integers(-1, 20, indptr[-1]), rng.random(indptr[-1]).astype(np.float32)
    own, vecs = towers(w, v, indptr, rows, x)
    for a in range(len(counts)):
        mine = np.arange(indptr[a], indptr[a + 1])[rows[indptr[a] : indptr[a + 1]] >= 0]
        b, vec = tower(w[rows[mine]], v[rows[mine]], x[mine])
        assert (own[a], vecs[a].tobytes()) == (b, vec.tobytes())


def test_a_half_is_added_up_in_float32_from_left_to_right():
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=40).astype(np.float32), rng.normal(size=(40, 1)).astype(np.float32)
    x = rng.random(40).astype(np.float32)
    vec = own = linear = np.float32(0)
    for i in range(40):
        vec += v[i, 0] * x[i]
        own += (v[i, 0] * x[i]) ** 2
        linear += w[i] * x[i]
    b, got = tower(w, v, x)
    assert got[0] == vec
    assert b == linear + (vec * vec - own) * np.float32(0.5)


def _towers() -> UserTowers:
    f32 = np.float32
    return UserTowers(
        _ids([2, 5]), np.array([0.5, -1], f32), np.ones((2, 3), f32), 0.25, _ids([1]), np.zeros(1, f32),
        np.ones((1, 3), f32),
    )  # fmt: skip


def test_unseen_keys_contribute_nothing():
    known = _towers().user(_ids([5]), np.array([0.5], np.float32))
    with_unseen = _towers().user(_ids([1, 5, 9]), np.array([9, 0.5, 7], np.float32))
    assert known[0] == with_unseen[0]
    assert known[1].tobytes() == with_unseen[1].tobytes()
    nothing = _towers().user(_ids([]), np.array([], np.float32))
    assert nothing[0] == np.float32(0.25)
    assert nothing[1].tolist() == [0, 0, 0]


def test_towers_survive_their_folder_and_a_cut_file_is_named(tmp_path):
    _towers().write(tmp_path, SCHEMA)
    again = UserTowers.load(tmp_path)
    assert (again.bias, again.dim) == (np.float32(0.25), 3)
    assert again.user_v.tobytes() == _towers().user_v.tobytes()
    whole = (tmp_path / "ad_vecs.npy").read_bytes()
    (tmp_path / "ad_vecs.npy").write_bytes(whole[:-5])
    with pytest.raises(FieldError, match=r"ad_vecs\.npy"):
        UserTowers.load(tmp_path)
    np.save(tmp_path / "ad_vecs.npy", np.ones((1, 2), np.float32))
    with pytest.raises(FieldError, match="ad_vecs"):
        UserTowers.load(tmp_path)
