"""Weights and powers of two that are the same bits on every machine.

Powers of two are made of square roots and products, which IEEE 754 rounds exactly: 20 bits of the exponent's
fraction, so within 7e-7. A weight is a float32 that has all its bits.
"""

import math
import struct

# What is smaller is nothing: below it float32 loses bits, and ratios of weights would change as landmarks move.
LEAST_WEIGHT = 2.0**-126
_F32 = struct.Struct("<f")


def as_weight(x: float) -> float:
    """x as a float32 that has all its bits; 0 where it is smaller than any such."""
    return float(_F32.unpack(_F32.pack(x))[0]) if x >= LEAST_WEIGHT else 0.0


def _powers(step: float, bits: int) -> list[float]:
    """[step^0, step^1, ..., step^(2^bits - 1)] with 2^-bits roots taken by `sqrt`: the same bits everywhere."""
    roots = [step]
    for _ in range(bits):
        roots.append(math.sqrt(roots[-1]))
    table = [1.0]
    for root in reversed(roots[1:]):  # the lowest bit of the exponent is the smallest root
        table += [value * root for value in table]
    return table


_COARSE = _powers(2.0, 10)
_FINE = _powers(_COARSE[1], 10)


def exp2(numerator: int, denominator: int) -> float:
    """2^(numerator / denominator) to 20 bits of the exponent's fraction; 0 where that is below every float."""
    whole, rest = divmod(numerator, denominator)
    step = (rest << 20) // denominator
    return math.ldexp(_COARSE[step >> 10] * _FINE[step & 1023], whole)
