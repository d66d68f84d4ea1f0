"""Re-rank codes: scores of the obvious arithmetic, unbiased, the same bits whatever the batch; checked files."""

import hashlib

import numpy as np
import pytest
from ann_kit import unit_vectors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.unit import native_oracles as oracle
from vitrine.ann.coarse import Coarse, flips
from vitrine.artifacts import ArtifactError
from vitrine.data import draws

GOLDEN = {  # SHA-256 of codes and factors
    4: "6da974e605099cf061210d17fd7f0e3806aecd35d992eebc6314e30707fdf5b8",
    8: "1ddcc3252d63b99bf7dbfd45f3d15e5e76d27883a978bda410bf549b06b95798",
}
bits_of = st.sampled_from([4, 8])
dims = st.sampled_from([1, 2, 16, 63, 64, 65, 100, 192, 256, 300])


def turn(vectors):
    return oracle.turn(vectors, flips(vectors.shape[1]))


@given(st.integers(0, 2**32), dims)
def test_turning_keeps_lengths_and_products(seed, dim):
    vectors = unit_vectors(seed, 6, dim)
    turned = turn(vectors)
    assert turned.shape == (6, -(-dim // 64) * 64)
    assert np.abs(turned @ turned.T - vectors @ vectors.T).max() < 1e-5


@pytest.mark.parametrize(("dim", "largest"), [(64, 0.51), (256, 0.32), (320, 0.4)])
def test_turning_spreads_each_coordinate_over_all(dim, largest):
    assert np.abs(turn(np.eye(dim, dtype=np.float32))).max() < largest


@given(st.integers(0, 2**32), dims, bits_of, st.integers(1, 20))
def test_scores_are_the_products_of_rounded_vectors(seed, dim, bits, n):
    vectors, query = unit_vectors(seed, n, dim), unit_vectors(seed + 1, 1, dim)[0]
    coarse = Coarse.encode(vectors, bits)
    rows = np.random.default_rng(seed).integers(0, n, 30).astype(np.uint32)
    turned = turn(query[None]).astype(float)[0]
    rounded = oracle.coarse_integers(coarse.codes, len(turned)) * coarse.factors[:, None].astype(float)
    expected = (rounded @ turned)[rows]
    assert np.abs(coarse.scores(query, rows) - expected).max() < 1e-3


@given(st.integers(0, 2**32), st.sampled_from([64, 100, 256]), bits_of)
def test_a_vector_has_its_own_length_as_its_score(seed, dim, bits):
    """<c, x> |x|^2 / <c, x>: the estimator's factor is what makes it unbiased."""
    vectors = unit_vectors(seed, 5, dim)
    coarse = Coarse.encode(vectors, bits)
    for row in range(5):
        assert abs(coarse.scores(vectors[row], np.array([row]))[0] - 1) < 1e-3


@pytest.mark.parametrize(("bits", "error"), [(4, 0.02), (8, 0.0012)])
def test_errors_are_small_and_of_mean_zero(bits, error):
    vectors, queries = unit_vectors(0, 2000, 128), unit_vectors(1, 50, 128)
    coarse = Coarse.encode(vectors, bits)
    errors = np.stack([coarse.scores(q, np.arange(2000)) - vectors @ q for q in queries])
    assert errors.std() < error
    assert abs(errors.mean()) < error / 20


@given(st.integers(0, 2**32), st.integers(1, 30), dims, bits_of)
def test_codes_and_scores_do_not_depend_on_what_else_there_is(seed, n, dim, bits):
    vectors, query = unit_vectors(seed, n, dim), unit_vectors(seed + 1, 1, dim)[0]
    together = Coarse.encode(vectors, bits)
    scores = together.scores(query, np.arange(n))
    for row in range(n):
        alone = Coarse.encode(vectors[row : row + 1], bits)
        assert np.array_equal(alone.codes[0], together.codes[row])
        assert alone.scores(query, np.array([0]))[0] == scores[row]


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_the_same_bytes_on_every_machine(bits):
    drawn = (draws.bits(3, "test/coarse", np.arange(500)[:, None], np.arange(100)) % 2**22).astype(np.int64)
    coarse = Coarse.encode(((drawn - 2**21) / 2**24).astype(np.float32), bits)
    assert hashlib.sha256(coarse.codes.tobytes() + coarse.factors.tobytes()).hexdigest() == GOLDEN[bits]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_a_saved_file_scores_alike_and_is_a_safetensors_file(tmp_path, bits, n):
    vectors = unit_vectors(0, n, 48)
    coarse = Coarse.encode(vectors, bits)
    coarse.save(tmp_path / "coarse.safetensors")
    written = Coarse.encode(vectors, bits, tmp_path / "written.safetensors")
    loaded = Coarse.load(tmp_path / "coarse.safetensors")
    for other in (written, loaded):
        assert (other.dim, other.bits, other.items) == (48, bits, n)
        assert np.array_equal(other.codes, coarse.codes)
        assert np.array_equal(other.factors, coarse.factors)
    assert (tmp_path / "coarse.safetensors").read_bytes() == (tmp_path / "written.safetensors").read_bytes()
    assert np.array_equal(load_file(tmp_path / "coarse.safetensors")["codes"], coarse.codes)


@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "text", "huge", "bits", "missing"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    file = tmp_path / "coarse.safetensors"
    Coarse.encode(unit_vectors(0, 20, 48)).save(file)
    whole = file.read_bytes()
    damaged = {
        "cut": whole[:-1],
        "longer": whole + b"x",
        "empty": b"",
        "text": b"not a file of tensors",
        "huge": b"\xff" * 8 + whole[8:],
        "bits": whole.replace(b'"bits": "4"', b'"bits": "8"'),
    }
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(damaged[damage])
    with pytest.raises(ArtifactError, match=r"coarse\.safetensors is not re-rank codes"):
        Coarse.load(file)


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match="bits: 5"):
        Coarse.encode(unit_vectors(0, 2, 8), 5)
