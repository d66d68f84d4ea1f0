"""Hash functions: exact bits, whatever the batch, and distances that tell angles."""

import hashlib

import numpy as np
import pytest
from ann_kit import unit_vectors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vitrine import native
from vitrine.ann import hashing
from vitrine.ann.hashing import Hashing
from vitrine.ann.rotations import METHODS
from vitrine.data import draws

GRID = 2**24
GOLDEN = "6ee761fb1cc8382eafcf72baa901d5d81f8386ad2d52b7377d0cc8a2398513b9"  # SHA-256, from AVX-512 and portable


def drawn_function(dim: int, bits: int) -> Hashing:
    """A hash function of random integers over 2^24, made without linear algebra."""
    mean = draws.bits(1, "test/mean", np.arange(dim)) % 2**20
    rotation = (draws.bits(2, "test/rotation", np.arange(dim)[:, None], np.arange(bits)) % 2**22).astype(np.int64)
    return Hashing(
        (mean.astype(np.float64) / GRID).astype(np.float32),
        ((rotation - 2**21) / GRID).astype(np.float32),
    )


def drawn_vectors(n: int, dim: int) -> np.ndarray:
    """Vectors float32 (n, dim) of length below 1, made without linear algebra."""
    integers = (draws.bits(3, "test/vectors", np.arange(n)[:, None], np.arange(dim)) % 2**22).astype(np.int64)
    return ((integers - 2**21) / GRID).astype(np.float32)


def test_codes_are_the_signs_of_exact_sums():
    function, vectors = drawn_function(20, 128), drawn_vectors(30, 20)
    codes = function.encode(vectors)
    assert codes.shape == (2, 30)
    mean, rotation = ((a.astype(object) * GRID) for a in (function.mean, function.rotation))
    for row, vector in enumerate(vectors.astype(object) * GRID):
        for bit in range(128):
            projection = sum(
                (int(x) - int(m)) * int(r) for x, m, r in zip(vector, mean, rotation[:, bit], strict=True)
            )
            assert int(codes[bit // 64, row]) >> (bit % 64) & 1 == (projection >= 0)


def test_codes_are_the_same_bytes_on_every_machine():
    codes = drawn_function(48, 256).encode(drawn_vectors(5000, 48))
    assert hashlib.sha256(codes.astype("<u8").tobytes()).hexdigest() == GOLDEN


@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from([1, 3, 16, 65]))
def test_a_code_does_not_depend_on_what_else_is_encoded(seed, n, dim):
    vectors = unit_vectors(seed, n, dim)
    function = hashing.fit(unit_vectors(seed + 1, 50, dim), 128, seed=seed)
    together = function.encode(vectors)
    for row in range(n):
        assert np.array_equal(function.encode(vectors[row : row + 1])[:, 0], together[:, row])


def test_a_fit_depends_on_sample_parameters_and_seed_alone():
    sample = unit_vectors(0, 300, 24)
    first, again = hashing.fit(sample, 128, seed=5), hashing.fit(sample.copy(order="F"), 128, seed=5)
    assert np.array_equal(first.rotation, again.rotation)
    assert np.array_equal(first.flips, again.flips)
    assert np.array_equal(first.mean, again.mean)
    assert not np.array_equal(first.flips, hashing.fit(sample, 128, seed=6).flips)


def oracle_code(function, vector):
    """Every step in Python's integers: the projection, its rounding, flips, transforms, signs."""
    rounds, width, blocks = function.flips.shape
    centred = [round(float(x) * GRID) - round(float(m) * GRID) for x, m in zip(vector, function.mean, strict=True)]
    rotation = (function.rotation.astype(object) * GRID).astype(int).astype(object)
    sums = [int(x) for x in np.array(centred, object) @ rotation]
    unit = 2 ** (48 - (29 - (3 * (width.bit_length() - 1) + 1) // 2))
    halves = [divmod(2 * x + unit, 2 * unit) for x in sums]  # rounded, ties to even
    start = [q - (r == 0 and q % 2) for q, r in halves] + [0] * (width - len(sums))
    code = np.zeros(function.bits, bool)
    for block in range(blocks):
        turned = list(start)
        for one in range(rounds):
            turned = [x * int(flip) for x, flip in zip(turned, function.flips[one, :, block], strict=True)]
            step = 1
            while step < width:
                for at in range(width):
                    if not at & step:
                        a, b = turned[at], turned[at + step]
                        turned[at], turned[at + step] = a + b, a - b
                step *= 2
        code[block::blocks] = [x >= 0 for x in turned]
    return np.packbits(code, bitorder="little").view("<u8")


@pytest.mark.parametrize(("dim", "dims", "bits"), [(20, 0, 64), (90, 70, 256), (300, 0, 1024), (65, 64, 512)])
def test_stacked_rotations_are_flips_and_transforms_of_integers(dim, dims, bits):
    function = hashing.fit(unit_vectors(0, 400, dim), bits, dims=dims, seed=3)
    vectors = unit_vectors(1, 4, dim)
    expected = np.stack([oracle_code(function, v) for v in vectors], axis=1)
    assert np.array_equal(function.encode(vectors), expected)
    for kernel in native.supported_kernels():
        assert np.array_equal(native.hash_encode(vectors, *function._stacked, kernel=kernel), expected)


def test_rotations_of_other_widths_are_orthogonal_and_stacked():
    function = hashing.fit(unit_vectors(0, 300, 80), 192, dims=70)
    assert function.flips is None  # 128, the power of two, does not divide the bits
    rotation = function.rotation.astype(np.float64)
    for block in (rotation[:, :70], rotation[:, 70:140]):
        assert np.abs(block.T @ block - np.eye(70)).max() < 1e-6


@pytest.mark.parametrize(("falls", "kept"), [(0.0, 256), (1.0, 256), (1.5, 64), (4.0, 64)])
def test_directions_are_kept_until_they_hold_nine_tenths_of_the_variance(falls, kept):
    draws = np.random.default_rng(0)
    sample = draws.standard_normal((3000, 256)) * np.arange(1, 257) ** (-falls / 2)
    sample = (sample / np.linalg.norm(sample, axis=1, keepdims=True)).astype(np.float32)
    assert hashing.fit(sample, 512).rotation.shape[1] == kept


def test_fewer_principal_directions_leave_out_the_rest():
    sample = unit_vectors(0, 300, 24)
    rotation = hashing.fit(sample, 64, dims=5).rotation.astype(np.float64)
    assert rotation.shape == (24, 5)
    centred = sample - sample.mean(0)
    kept = np.linalg.svd(centred, full_matrices=False)[2][:5]
    assert np.abs(rotation - kept.T @ (kept @ rotation)).max() < 1e-5


def test_hamming_distance_tells_the_angle():
    vectors = unit_vectors(0, 100, 32)
    function = hashing.fit(vectors, 1024)
    codes = function.encode(vectors)
    centred = (vectors - function.mean).astype(np.float64)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    angles = np.arccos(np.clip(centred @ centred.T, -1, 1))
    distances = sum(np.bitwise_count(word[:, None] ^ word[None]).astype(int) for word in codes)
    assert np.abs(distances / 1024 - angles / np.pi).max() < 0.08  # 5 standard deviations of 1,024 fair coins


def test_equal_vectors_do_not_break_a_fit():
    function = hashing.fit(np.repeat(unit_vectors(0, 1, 8), 20, axis=0), 64)
    assert np.isfinite(function.rotation).all()
    assert len(np.unique(function.encode(np.repeat(unit_vectors(0, 1, 8), 3, axis=0)), axis=1).T) == 1


@pytest.mark.parametrize("bits", [0, 63, 100, 1088, -64])
def test_bits_that_are_no_whole_words_are_refused(bits):
    with pytest.raises(ValueError, match="bits"):
        hashing.fit(unit_vectors(0, 10, 8), bits)


@given(st.sampled_from([*METHODS]), st.sampled_from([64, 192, 1024]), st.integers(1, 40), st.integers(2, 60))
def test_every_method_gives_finite_unit_columns_for_any_sample(method, bits, dim, n):
    function = hashing.fit(unit_vectors(n, n, dim), bits, method=method)
    rotation = function.rotation.astype(np.float64)
    assert function.bits == bits
    assert np.abs(np.linalg.norm(rotation, axis=0) - 1).max() < 1e-4


@pytest.mark.parametrize("method", ["itq", "lph"])
@pytest.mark.parametrize(("bits", "dims"), [(64, 80), (128, 24)])
def test_what_is_learnt_is_one_orthogonal_block(method, bits, dims):
    rotation = hashing.fit(unit_vectors(0, 300, 80), bits, method=method, dims=dims).rotation.astype(np.float64)
    block = rotation[:, : min(bits, dims)]
    assert np.abs(block.T @ block - np.eye(block.shape[1])).max() < 1e-5


def quantization_loss(sample, rotation):
    projected = sample @ rotation
    return np.square(np.where(projected >= 0, 1, -1) - projected).sum()


def test_itq_quantizes_with_less_loss_than_random_rotations():
    sample = np.random.default_rng(0).laplace(size=(2000, 32))
    turned, learnt = (quantization_loss(sample, METHODS[name](sample, 32, 0)) for name in ("turns", "itq"))
    assert learnt < 0.97 * turned


def test_lph_keeps_the_directions_in_which_neighbours_agree():
    """Pairs that differ in every direction but two: of equal variances, those two are what tells neighbours."""
    draws = np.random.default_rng(0)
    sample = draws.standard_normal((3000, 6))
    sample[:, :2] = draws.standard_normal((12, 2))[np.arange(3000) % 12]
    sample /= sample.std(axis=0)
    columns = METHODS["lph"](sample, 2, 0)
    assert np.square(columns[:2]).sum() > 1.9


@pytest.mark.parametrize("method", ["", "LPH", "rabitq"])
def test_another_method_is_refused_with_those_there_are(method):
    with pytest.raises(ValueError, match=r"method: .* turns, itq, lph, signs"):
        hashing.fit(unit_vectors(0, 10, 8), 64, method=method)


@pytest.mark.parametrize("dims", [-1, 9])
def test_more_directions_than_there_are_are_refused(dims):
    with pytest.raises(ValueError, match="dims"):
        hashing.fit(unit_vectors(0, 10, 8), 64, dims=dims)


@pytest.mark.parametrize("method", [*METHODS])
def test_a_saved_function_encodes_alike(tmp_path, method):
    function = hashing.fit(unit_vectors(0, 100, 16), 256, dims=9, method=method)
    function.save(tmp_path / "h.safetensors")
    loaded = Hashing.load(tmp_path / "h.safetensors")
    vectors = unit_vectors(1, 50, 16)
    assert np.array_equal(loaded.encode(vectors), function.encode(vectors))


@pytest.mark.parametrize("damage", ["cut", "empty", "nan", "shape"])
def test_a_damaged_function_is_refused(tmp_path, damage):
    file = tmp_path / "h.safetensors"
    function = hashing.fit(unit_vectors(0, 100, 16), 64)
    function.save(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        mean = np.full(16, np.nan, np.float32) if damage == "nan" else np.zeros(15, np.float32)
        with pytest.raises(ValueError, match="mean"):
            Hashing(mean, function.rotation, function.flips)
        return
    with pytest.raises(ValueError, match=r"h\.safetensors"):
        Hashing.load(file)


def test_a_function_of_the_first_schema_is_read(tmp_path):
    """Before there were flips, files held mean and rotation alone."""
    function = drawn_function(20, 128)
    save_file({"mean": function.mean, "rotation": function.rotation}, tmp_path / "old.safetensors")
    vectors = drawn_vectors(30, 20)
    assert np.array_equal(Hashing.load(tmp_path / "old.safetensors").encode(vectors), function.encode(vectors))


@pytest.mark.parametrize(
    ("flips", "message"),
    [
        (np.zeros((3, 64, 2), np.int8), "1 or -1"),
        (np.ones((3, 64, 2), np.int16), "int8"),
        (np.ones((2, 64, 2), np.int8), "do not fit"),
        (np.ones((3, 128, 1), np.int8), "do not fit"),
        (np.ones((3, 64, 0), np.int8), "0 bits"),
    ],
)
def test_flips_that_do_not_fit_are_refused(flips, message):
    function = hashing.fit(unit_vectors(0, 50, 16), 64)
    with pytest.raises(ValueError, match=message):
        Hashing(function.mean, function.rotation, flips)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": np.zeros((2, 11), np.float32)}, r"vectors: expected shape \(2, 10\)"),
        ({"rotation": np.zeros((10, 30), np.float32)}, "rotation: expected a multiple of 32 columns, got 30"),
        ({"rotation": np.zeros((10, 96), np.float32)}, "flips: expected a width"),
        ({"flips": np.zeros((3, 96, 2), np.int32)}, "flips: expected a width"),
        ({"flips": np.zeros((2, 64, 2), np.int32)}, r"flips: expected shape \(3, 64, 2\)"),
    ],
)
def test_the_kernel_names_a_bad_argument(changes, message):
    good = {
        "vectors": np.zeros((2, 10), np.float32),
        "mean": np.zeros(10, np.float32),
        "rotation": np.zeros((10, 64), np.float32),
        "flips": np.zeros((3, 64, 2), np.int32),
    }
    with pytest.raises(ValueError, match=f"^{message}"):
        native.hash_encode(**good | changes)
