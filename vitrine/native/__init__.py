"""The C++ kernels (docs/native.md): exact scans, matching and tower arithmetic, the same bits on every machine.

Arrays are C-contiguous numpy arrays in main memory; a wrong dtype raises TypeError and a wrong shape, order or ordinal
ValueError, naming the argument. The GIL is released while a kernel runs. Results depend on neither `threads` nor the
instruction set; `kernel` runs one call on another set than `kernel()` (tests and benchmarks do).
"""

from vitrine.native._native import (
    hamming_topk,
    kernel,
    match_topk,
    murmur2_decimal,
    supported_kernels,
    tower_pctr,
)

__all__ = ["hamming_topk", "kernel", "match_topk", "murmur2_decimal", "supported_kernels", "tower_pctr"]
