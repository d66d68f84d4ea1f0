"""Types of the compiled kernels; their docstrings stand in native/bindings.cpp."""

from numpy import bool_, float32, int32, int64, uint8, uint16, uint32, uint64
from numpy.typing import NDArray

def kernel() -> str: ...
def supported_kernels() -> list[str]: ...
def hamming_topk(
    codes: NDArray[uint64], queries: NDArray[uint64], k: int, threads: int = 1, *, kernel: str | None = None
) -> tuple[NDArray[uint32], NDArray[uint32]]: ...
def hamming_rows(
    codes: NDArray[uint64],
    rows: NDArray[uint32],
    queries: NDArray[uint64],
    k: int,
    *,
    kernel: str | None = None,
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
def assign_centres(
    codes: NDArray[uint64], centres: NDArray[uint64], fan: int, *, kernel: str | None = None
) -> NDArray[uint32]: ...
def cluster_neighbours(
    codes: NDArray[uint64],
    members: NDArray[uint32],
    overlap: int,
    leaf: int,
    neighbours: int,
    kept: int,
    seed: int,
    *,
    kernel: str | None = None,
) -> tuple[NDArray[uint32], NDArray[uint16], NDArray[uint32]]: ...
def merge_lists(
    codes: NDArray[uint64],
    nodes: NDArray[uint32],
    distances: NDArray[uint16],
    places: NDArray[int64],
    begin: int,
    end: int,
    degree: int,
    slack: int,
    *,
    kernel: str | None = None,
) -> tuple[NDArray[uint32], NDArray[uint16]]: ...
def incoming(
    forward: NDArray[uint32], distances: NDArray[uint16], begin: int, end: int
) -> tuple[NDArray[int64], NDArray[uint32], NDArray[uint16]]: ...
def cap_edges(
    codes: NDArray[uint64],
    forward: NDArray[uint32],
    distances: NDArray[uint16],
    indptr: NDArray[int64],
    sources: NDArray[uint32],
    source_distances: NDArray[uint16],
    begin: int,
    end: int,
    degree: int,
    spare: int,
    slack: int,
    *,
    kernel: str | None = None,
) -> NDArray[uint32]: ...
def hash_encode(
    vectors: NDArray[float32],
    mean: NDArray[float32],
    rotation: NDArray[float32],
    flips: NDArray[int32],
    *,
    kernel: str | None = None,
) -> NDArray[uint64]: ...
def coarse_encode(
    vectors: NDArray[float32], flips: NDArray[float32], bits: int
) -> tuple[NDArray[uint8], NDArray[float32]]: ...
def coarse_scores(
    codes: NDArray[uint8],
    factors: NDArray[float32],
    flips: NDArray[float32],
    queries: NDArray[float32],
    rows: NDArray[uint32],
    threads: int = 1,
    *,
    kernel: str | None = None,
) -> NDArray[float32]: ...
def coarse_topk(
    codes: NDArray[uint8],
    factors: NDArray[float32],
    flips: NDArray[float32],
    queries: NDArray[float32],
    rows: NDArray[uint32],
    k: int,
    threads: int = 1,
    *,
    kernel: str | None = None,
) -> tuple[NDArray[uint32], NDArray[float32]]: ...
def vector_topk(
    vectors: NDArray[float32],
    queries: NDArray[float32],
    rows: NDArray[uint32],
    k: int,
    threads: int = 1,
    *,
    kernel: str | None = None,
) -> tuple[NDArray[uint32], NDArray[float32]]: ...
def update_rankings(
    list_indptr: NDArray[int64],
    ads: NDArray[uint64],
    values: NDArray[float32],
    crowds: NDArray[uint64],
    floor_values: NDArray[float32],
    floor_ads: NDArray[uint64],
    complete: NDArray[bool_],
    test_indptr: NDArray[int64],
    test_ads: NDArray[uint64],
    test_values: NDArray[float32],
    test_crowds: NDArray[uint64],
    test_groups: NDArray[uint8],
    keep: int,
    cap: int = 0,
    advertisers: NDArray[uint64] | None = None,
    test_advertisers: NDArray[uint64] | None = None,
    test_redefined: NDArray[bool_] | None = None,
) -> tuple[
    NDArray[int64],
    NDArray[uint64],
    NDArray[float32],
    NDArray[uint64],
    NDArray[float32],
    NDArray[uint64],
    NDArray[uint8],
    NDArray[uint8],
]: ...

class Members:
    def __init__(self, dim: int, groups: int) -> None: ...
    def put(
        self,
        users: NDArray[uint64],
        bias: NDArray[float32],
        vecs: NDArray[float32],
        crowd_indptr: NDArray[int64],
        crowds: NDArray[uint64],
        floor_values: NDArray[float32],
        floor_ads: NDArray[uint64],
        excluded_indptr: NDArray[int64],
        excluded: NDArray[uint64],
        active_ms: NDArray[int64],
    ) -> None: ...
    def drop(self, users: NDArray[uint64]) -> int: ...
    def scan(
        self,
        ad: int,
        old: tuple[NDArray[uint64], NDArray[float32], NDArray[uint64], int],
        now: tuple[NDArray[uint64], NDArray[float32], NDArray[uint64], int],
        bias: float,
        vec: NDArray[float32],
        blind: bool = False,
    ) -> MemberScan: ...
    def recent(self) -> NDArray[uint64]: ...
    def __len__(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class MemberScan:
    def next(self, count: int, *, kernel: str | None = None) -> NDArray[uint64]: ...
    @property
    def left(self) -> int: ...
    @property
    def checked(self) -> int: ...

class Graph:
    def __init__(self, codes: NDArray[uint64], edges: NDArray[uint32], entries: NDArray[uint32]) -> None: ...
    def walk(
        self,
        queries: NDArray[uint64],
        ef: int,
        turns: int = 1,
        threads: int = 1,
        *,
        allowed: NDArray[bool_] | None = None,
        most: int = 0,
        kernel: str | None = None,
    ) -> tuple[NDArray[uint32], NDArray[uint32], NDArray[uint32], NDArray[uint32]]: ...
    def missing_edges(self, ef: int, *, kernel: str | None = None) -> NDArray[uint32]: ...

class ListExtra:
    def __init__(
        self,
        ads: NDArray[uint64],
        groups: NDArray[uint8],
        indptr: NDArray[int64],
        crowds: NDArray[uint64],
        bids: NDArray[float32],
    ) -> None: ...

class ListReader:
    def __init__(
        self,
        ad_at: NDArray[int64],
        crowd_at: NDArray[int64],
        ads: NDArray[uint64],
        crowds: NDArray[uint64],
        ad_indptr: NDArray[int64],
        bid_crowds: NDArray[uint32],
        bids: NDArray[float32],
        tags: bytes,
    ) -> None: ...
    def read(
        self,
        record: bytes,
        closed: NDArray[uint8],
        extra: ListExtra,
        excluded: NDArray[uint64],
        group: int,
        k: int,
        entries: int,
        first: int,
        entries_at: int,
        entry_bits: int,
        ad_bits: int,
        falls_at: int,
        fall_bits: int,
        crowds_at: int,
        crowds: int,
        crowd_bits: int,
        extras_at: int,
        ad_extras: int,
        crowd_extras: int,
    ) -> bytes: ...

class MatchIndex:
    def __init__(
        self,
        crowd_indptr: NDArray[int64],
        posting_ads: NDArray[uint32],
        posting_bids: NDArray[float32],
        ad_bias: NDArray[float32],
        ad_vecs: NDArray[float32],
        *,
        threads: int = 1,
        ad_indptr: NDArray[int64] | None = None,
        ad_crowds: NDArray[uint32] | None = None,
        ad_bids: NDArray[float32] | None = None,
    ) -> None: ...
    @property
    def nbytes(self) -> int: ...
    def match(
        self,
        user_bias: NDArray[float32],
        user_vecs: NDArray[float32],
        user_indptr: NDArray[int64],
        user_crowds: NDArray[uint32],
        k: int,
        *,
        masks: NDArray[uint8] | None = None,
        exclude_indptr: NDArray[int64] | None = None,
        exclude_ads: NDArray[uint32] | None = None,
        advertisers: NDArray[uint32] | None = None,
        advertiser_cap: int = 0,
        threads: int | None = None,
        kernel: str | None = None,
    ) -> tuple[
        NDArray[int32],
        NDArray[uint32],
        NDArray[float32],
        NDArray[uint32],
        NDArray[float32],
        NDArray[uint64],
        NDArray[uint64],
        NDArray[uint64],
    ]: ...
    def above(
        self,
        user_bias: NDArray[float32],
        user_vecs: NDArray[float32],
        user_indptr: NDArray[int64],
        user_crowds: NDArray[uint32],
        floor_values: NDArray[float32],
        floor_keys: NDArray[uint32],
        *,
        masks: NDArray[uint8] | None = None,
        exclude_indptr: NDArray[int64] | None = None,
        exclude_ads: NDArray[uint32] | None = None,
        threads: int | None = None,
        kernel: str | None = None,
    ) -> tuple[NDArray[int64], NDArray[uint32], NDArray[float32], NDArray[uint32], NDArray[float32]]: ...
    def best(
        self,
        user_bias: NDArray[float32],
        user_vecs: NDArray[float32],
        pair_users: NDArray[uint32],
        pair_ads: NDArray[uint32],
        user_indptr: NDArray[int64],
        user_crowds: NDArray[uint32],
        *,
        threads: int | None = None,
        kernel: str | None = None,
    ) -> tuple[NDArray[float32], NDArray[uint32], NDArray[float32]]: ...
