"""The C++ kernels (docs/native.md): exact scans, matching and tower arithmetic, the same bits on every machine.

Arrays are C-contiguous numpy arrays in main memory; a wrong dtype raises TypeError, and a wrong shape, order or
ordinal ValueError, naming the argument. The GIL is released while a kernel runs. Results depend on neither the
number of threads nor the instruction set; `kernel=` runs one call on another set (tests and benchmarks do). Each
function's docstring (`help(native.match_topk)`) gives shapes, dtypes and ties.
"""

from vitrine.native._native import (
    Graph,
    ListExtra,
    ListReader,
    MatchIndex,
    Members,
    MemberScan,
    assign_centres,
    cap_edges,
    cluster_neighbours,
    coarse_encode,
    coarse_scores,
    coarse_topk,
    hamming_rows,
    hamming_topk,
    hash_encode,
    incoming,
    kernel,
    match_topk,
    merge_lists,
    murmur2_decimal,
    supported_kernels,
    tower_pctr,
    update_rankings,
    vector_topk,
)

__all__ = [
    "Graph",
    "ListExtra",
    "ListReader",
    "MatchIndex",
    "MemberScan",
    "Members",
    "assign_centres",
    "cap_edges",
    "cluster_neighbours",
    "coarse_encode",
    "coarse_scores",
    "coarse_topk",
    "hamming_rows",
    "hamming_topk",
    "hash_encode",
    "incoming",
    "kernel",
    "match_topk",
    "merge_lists",
    "murmur2_decimal",
    "supported_kernels",
    "tower_pctr",
    "update_rankings",
    "vector_topk",
]
