"""Tower arithmetic has one set of bits: the oracle's, on every instruction set, and those committed here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import native_oracles as oracle
from vitrine import native

KERNELS = native.supported_kernels()
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def ramp(*shape):
    """Numbers in [-1, 1) that look like noise, exact in float32 and the same under every numpy."""
    n = int(np.prod(shape))
    mixed = (np.arange(1, n + 1, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32) >> np.uint64(9)
    return (mixed.astype(np.float64) / 2**22 - 1).astype(np.float32).reshape(shape)


def sigmoid(x, kernel):
    """The kernel's own sigmoid: a tower of no dimensions."""
    none = np.empty((len(x), 0), np.float32)
    return native.tower_pctr(0.0, none[:1].ravel(), np.arange(len(x), dtype=np.uint32), x, none, kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), d=st.integers(0, 70), n=st.integers(0, 40), spread=st.sampled_from([0.1, 1, 30]))
def test_bits_are_those_of_the_definition(kernel, seed, d, n, spread):
    rng = np.random.default_rng(seed)
    ad_bias, ad_vecs = rng.normal(size=n).astype(np.float32), rng.normal(size=(n, d)).astype(np.float32)
    user_vec, bias = (rng.normal(size=d) * spread).astype(np.float32), float(np.float32(rng.normal()))
    ads = rng.integers(0, max(n, 1), 3 * n, dtype=np.uint32)
    found = native.tower_pctr(bias, user_vec, ads, ad_bias, ad_vecs, kernel=kernel)
    assert found.tobytes() == oracle.tower_pctr(bias, user_vec, ads, ad_bias, ad_vecs).tobytes()


@pytest.mark.parametrize("kernel", KERNELS)
def test_golden_bits(kernel):
    found = native.tower_pctr(-2.5, ramp(13), np.arange(8, dtype=np.uint32), ramp(8), ramp(8, 13), kernel=kernel)
    assert [f"{x:08x}" for x in found.view(np.uint32)] == GOLDEN_13
    found = native.tower_pctr(0.5, ramp(32), np.arange(8, dtype=np.uint32), ramp(8), ramp(8, 32), kernel=kernel)
    assert [f"{x:08x}" for x in found.view(np.uint32)] == GOLDEN_32


GOLDEN_13 = ["3f61a47f", "3f450779", "3f2703ed", "3eea4b7d", "3e8cc818", "3e6faa79", "3d23bd9b", "3df8d5d3"]
GOLDEN_32 = ["3f7ffef6", "3ec02d4f", "3ca26263", "3d0aa7dc", "3f7dcf39", "3f7f458a", "3c9e85e3", "3c956a05"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_sigmoid_is_within_two_and_a_half_units_in_the_last_place(kernel):
    bits = np.arange(0, 0x42AE0000, 9973, dtype=np.uint32)  # floats of every magnitude up to 87
    x = np.concatenate([bits, bits | np.uint32(1 << 31)]).view(np.float32)
    truth = 1 / (1 + np.exp(-x.astype(np.longdouble)))
    unit = np.spacing(truth.astype(np.float32)).astype(np.longdouble)
    assert (np.abs(sigmoid(x, kernel) - truth) / unit).max() < 2.5


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_sigmoid_saturates_cleanly(kernel):
    x = np.array([88, 1e30, np.inf, -87, -88, -1e30, -np.inf, np.nan, 0, -0.0], np.float32)
    least = np.float32(1.6458115e-38)
    assert sigmoid(x, kernel).tolist() == [1, 1, 1, *[least] * 5, 0.5, 0.5]


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=100, deadline=None)
@given(values=st.lists(FINITE, min_size=22, max_size=22))
def test_finite_input_never_gives_nan(kernel, values):
    v = np.array(values, np.float32)
    found = native.tower_pctr(float(v[0]), v[1:11], np.zeros(1, np.uint32), v[11:12], v[None, 12:], kernel=kernel)
    assert 0 < found[0] <= 1


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_neighbour_that_is_not_a_number_does_not_leak_through_the_padding(kernel):
    ad_vecs = np.full((3, 5), np.nan, np.float32)
    ad_vecs[1] = 1
    args = (0.0, np.ones(5, np.float32), np.ones(1, np.uint32), np.zeros(3, np.float32), ad_vecs)
    assert native.tower_pctr(*args, kernel=kernel).tobytes() == oracle.tower_pctr(*args).tobytes()
    assert native.tower_pctr(*args, kernel=kernel)[0] > 0.99
