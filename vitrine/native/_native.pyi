"""Types of the compiled kernels; their docstrings stand in native/bindings.cpp."""

from numpy import float32, int32, int64, uint32, uint64
from numpy.typing import NDArray

def kernel() -> str: ...
def supported_kernels() -> list[str]: ...
def hamming_topk(
    codes: NDArray[uint64], queries: NDArray[uint64], k: int, threads: int = 1, *, kernel: str | None = None
) -> tuple[NDArray[uint32], NDArray[uint32]]: ...
def match_topk(
    user_bias: NDArray[float32],
    user_vecs: NDArray[float32],
    user_indptr: NDArray[int64],
    user_crowds: NDArray[uint32],
    crowd_indptr: NDArray[int64],
    posting_ads: NDArray[uint32],
    posting_bids: NDArray[float32],
    ad_bias: NDArray[float32],
    ad_vecs: NDArray[float32],
    k: int,
    threads: int = 1,
    *,
    kernel: str | None = None,
) -> tuple[
    NDArray[int32], NDArray[uint32], NDArray[float32], NDArray[uint32], NDArray[float32], NDArray[uint64]
]: ...
def tower_pctr(
    user_bias: float,
    user_vec: NDArray[float32],
    ads: NDArray[uint32],
    ad_bias: NDArray[float32],
    ad_vecs: NDArray[float32],
    *,
    kernel: str | None = None,
) -> NDArray[float32]: ...
def murmur2_decimal(ids: NDArray[uint64]) -> NDArray[uint32]: ...
