"""RaBitQ estimates inner products without bias, with an error that falls by its bits and centres."""

import numpy as np
import pytest
from ann_kit import unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrine.ann.rabitq import RaBitQ


def clustered(seed, n, dim):
    draws = np.random.default_rng(seed)
    vectors = draws.standard_normal((20, dim))[draws.integers(0, 20, n)] + 0.3 * draws.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@settings(deadline=None)  # the first call of a matrix product starts its threads
@given(st.integers(0, 2**32), st.sampled_from([1, 40, 64, 70]), st.integers(1, 5))
def test_scores_are_the_estimator_written_out(seed, dim, centres):
    vectors, query = unit_vectors(seed, 30, dim), unit_vectors(seed + 1, 1, dim)[0].astype(float)
    coded = RaBitQ.fit(vectors, centres=centres, seed=seed % 1000).encode(vectors)
    rows = np.array([3, 29, 3])
    found = coded.scores(query.astype(np.float32), rows)
    rotation = coded.rotation.astype(float)
    for score, row in zip(found, rows, strict=True):
        centre = coded.centres[coded.nearest[row]].astype(float)
        rest = vectors[row] - centre
        signs = np.where(rest @ rotation >= 0, 1, -1)
        if np.linalg.norm(rest) > 1e-3:
            estimate = ((query - centre) @ rotation) @ signs * (rest @ rest) / ((rest @ rotation) @ signs)
            assert abs(score - (query @ centre + centre @ rest + estimate)) < 1e-3


def test_the_mean_over_rotations_is_the_true_product():
    vectors, query = unit_vectors(0, 40, 32), unit_vectors(1, 1, 32)[0]
    estimates = np.stack(
        [RaBitQ.fit(vectors, centres=2, seed=s).encode(vectors).scores(query, np.arange(40)) for s in range(200)]
    )
    errors = estimates - vectors @ query
    assert np.abs(errors.mean(axis=0)).max() < 4.5 * errors.std(axis=0).max() / np.sqrt(200)


def test_more_bits_and_more_centres_estimate_better():
    vectors, queries = clustered(0, 1000, 64), clustered(1, 20, 64)
    errors = [
        np.std([coded.scores(q, np.arange(1000)) - vectors @ q for q in queries])
        for coded in (
            RaBitQ.fit(vectors, bits, centres=centres).encode(vectors)
            for bits, centres in ((64, 1), (64, 20), (512, 20))
        )
    ]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.5 * errors[1]


def test_a_vector_that_is_its_centre_is_scored_exactly():
    vectors = unit_vectors(0, 3, 16)
    coded = RaBitQ.fit(vectors, centres=3).encode(vectors)
    assert np.allclose(coded.scores(vectors[1], np.arange(3)), vectors @ vectors[1], atol=1e-5)


@pytest.mark.parametrize(("bits", "centres", "field"), [(65, 1, "bits"), (64, 1, "bits"), (128, 0, "centres")])
def test_what_does_not_fit_the_sample_is_refused(bits, centres, field):
    with pytest.raises(ValueError, match=field):
        RaBitQ.fit(unit_vectors(0, 10, 80), bits, centres=centres)


def test_a_saved_file_scores_alike_and_a_damaged_one_is_refused(tmp_path):
    file = tmp_path / "rabitq.safetensors"
    vectors = unit_vectors(0, 50, 20)
    coded = RaBitQ.fit(vectors, centres=4).encode(vectors)
    coded.save(file)
    scores = RaBitQ.load(file).scores(vectors[0], np.arange(50))
    assert np.array_equal(scores, coded.scores(vectors[0], np.arange(50)))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"rabitq\.safetensors"):
        RaBitQ.load(file)
