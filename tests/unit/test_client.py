"""The client: numpy in and out, errors as exceptions, shared channels, retries; against real servers over TCP."""

import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from tests.small_ctr_server import SmallCtr, running
from vitrine import calls, channels
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.api.ctr.v1 import ctr_pb2_grpc
from vitrine.api.features.v1 import features_pb2
from vitrine.api.matching.v1 import matching_pb2, matching_pb2_grpc
from vitrine.client import (
    AnnClient,
    CtrClient,
    DeadlineExceededError,
    InvalidArgumentError,
    MatchingClient,
    NotFoundError,
    ResourceExhaustedError,
    Source,
    UnavailableError,
    UserContext,
    Verdict,
    VitrineError,
)
from vitrine.errors import UnavailableError as ServerUnavailableError
from vitrine.runtime.server import Process
from vitrine.runtime.settings import Settings

NOBODY = UserContext(np.empty(0, np.uint64), np.empty(0, np.float32))
BIG = 2**64 - 1


class Ann(ann_pb2_grpc.AnnServiceServicer):
    """Answers each query's first number as the id, and as many results as its row number plus one."""

    def Search(self, request, context):  # noqa: N802
        self.request = request
        if request.picture:
            queries = np.zeros((1, 1))
        elif request.codes:
            queries = np.frombuffer(request.codes, "<u8").reshape(-1, 2)
        else:
            queries = np.frombuffer(request.vectors, "<f4").reshape(-1, 4)
        counts = np.arange(1, len(queries) + 1)
        ids = np.repeat(queries[:, 0].astype(np.uint64), counts)
        scores = [] if request.codes else np.full(len(ids), 0.5)
        return ann_pb2.SearchResponse(version="i1", counts=counts, item_ids=ids, scores=scores, distances=ids % 7)

    def Stats(self, request, context):  # noqa: N802
        return ann_pb2.StatsResponse(version="i1", embeddings_version="e1", items=9, dim=4, bits=128, over_recall=8)


class Matching(matching_pb2_grpc.MatchingServiceServicer):
    def GetMatches(self, request, context):  # noqa: N802
        return matching_pb2.GetMatchesResponse(
            catalog_version="c1",
            towers_version="t1",
            source=matching_pb2.SOURCE_STORED,
            ad_ids=[BIG, 2][: request.k],
            values=[0.5, 0.25][: request.k],
            bids=[1, 2][: request.k],
            crowd_ids=[3, BIG][: request.k],
            age_ms=12,
            revision=4,
            context=features_pb2.UserContext(keys=[BIG, 1], weights=[0.6, 0.8]),
        )

    def Explain(self, request, context):  # noqa: N802
        listed = matching_pb2.Explanation(
            ad_id=request.ad_ids[0],
            verdict=matching_pb2.VERDICT_LISTED,
            rank=1,
            shared_crowd_ids=[3, BIG],
            shared_bids=[1.5, 0.5],
            crowd_id=3,
            bid=1.5,
            pctr=0.5,
            value=0.75,
        )
        newer = matching_pb2.Explanation(ad_id=request.ad_ids[1], verdict=99)
        return matching_pb2.ExplainResponse(
            catalog_version="c1", explanations=[listed, newer], floor_value=0.125, user_crowd_ids=[3, 9, BIG]
        )


@pytest.fixture(scope="module")
def address():
    """A process with all three services."""

    def register(to):
        ann_pb2_grpc.add_AnnServiceServicer_to_server(Ann(), to)
        matching_pb2_grpc.add_MatchingServiceServicer_to_server(Matching(), to)
        ctr_pb2_grpc.add_CtrServiceServicer_to_server(SmallCtr(), to)

    process = Process(Settings(max_request_mb=1), "all", register)
    process.start()
    yield process.address
    process.drain()


@pytest.fixture
def ctr(address):
    with CtrClient(address, timeout_s=10) as client:
        yield client


@pytest.fixture
def ann(address):
    with AnnClient(address, timeout_s=10) as client:
        yield client


@pytest.fixture
def matching(address):
    with MatchingClient(address, timeout_s=10) as client:
        yield client


def test_search_splits_the_answer_by_query(ann):
    found = ann.search([[1, 0, 0, 0], [5, 0, 0, 0], [9, 0, 0, 0]], k=3)
    assert found.version == "i1"
    assert [ids.tolist() for ids in found.ids] == [[1], [5, 5], [9, 9, 9]]
    assert [distances.tolist() for distances in found.distances] == [[1], [5, 5], [2, 2, 2]]
    assert [scores.tolist() for scores in found.scores] == [[0.5], [0.5] * 2, [0.5] * 3]
    assert (found.ids[0].dtype, found.scores[0].dtype, found.distances[0].dtype) == (
        np.uint64,
        np.float32,
        np.uint32,
    )


def test_search_takes_one_vector_any_float_type_and_any_memory_order(ann):
    vectors = np.asfortranarray(np.array([[3, 0, 0, 1], [4, 0, 0, 2]], np.float64))
    assert [ids[0] for ids in ann.search(vectors).ids] == [3, 4]
    assert ann.search(vectors[0]).ids[0].tolist() == [3]


def test_codes_are_the_same_as_bytes_and_as_words_and_have_no_scores(ann):
    words = np.array([[BIG, 1], [7, 2]], np.uint64)
    by_words, by_bytes = ann.search(codes=words), ann.search(codes=words.view(np.uint8))
    assert [ids[0] for ids in by_words.ids] == [ids[0] for ids in by_bytes.ids] == [BIG, 7]
    assert by_words.scores is None


def test_rows_of_a_length_that_the_index_reads_as_other_rows_are_refused(ann):
    with pytest.raises(InvalidArgumentError) as error:
        ann.search(np.zeros((4, 2)))  # as many numbers as two rows of 4
    assert list(error.value.fields) == ["vectors"]


def test_a_search_has_one_kind_of_query(ann):
    assert ann.search(picture=b"jpeg").ids[0].tolist() == [0]
    for queries in ({}, {"vectors": [[1, 2, 3, 4]], "picture": b"jpeg"}):
        with pytest.raises(InvalidArgumentError, match="exactly one"):
            ann.search(**queries)


def test_stats_say_what_the_index_is(ann):
    assert (ann.stats().items, ann.stats().dim, ann.stats().pictures) == (9, 4, False)


def test_matches_are_parallel_arrays_with_the_users_context(matching):
    matches = matching.get_matches(17, k=2)
    assert matches.ads.tolist() == [BIG, 2]
    assert matches.crowds.tolist() == [3, BIG]
    assert (matches.values.dtype, matches.bids.tolist()) == (np.float32, [1, 2])
    assert (matches.source, matches.age_ms, matches.revision) == (Source.STORED, 12, 4)
    assert matches.context.keys.tolist() == [BIG, 1]


def test_explanations_come_in_the_order_asked_and_a_newer_verdict_is_unknown(matching):
    explained = matching.explain(17, np.array([8, 9], np.uint64))
    assert [(e.ad, e.verdict) for e in explained.ads] == [(8, Verdict.LISTED), (9, Verdict.UNKNOWN)]
    assert explained.ads[0].shared_crowds.tolist() == [3, BIG]
    assert (explained.floor_value, explained.user_crowds.tolist()) == (0.125, [3, 9, BIG])


def test_scores_come_in_the_order_of_the_ads(ctr):
    scores = ctr.score(NOBODY, np.array([2, 4, 8], np.uint64))
    assert (scores.pctrs.tolist(), scores.pctrs.dtype) == ([0.5, 0.25, 0.125], np.float32)
    assert (scores.version, scores.unknown) == ("small-1", 1)
    assert ctr.score(NOBODY, [2]).pctrs.tolist() == [0.5]


def test_a_bad_field_is_named(ctr):
    with pytest.raises(InvalidArgumentError) as error:
        ctr.score(NOBODY, [2, 0])
    assert error.value.fields == {"ad_ids[1]": "0 is reserved; ids are 1 or more"}
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda ctr: ctr.score(NOBODY, [-1]), "ad_ids"),
        (lambda ctr: ctr.score(NOBODY, [2**64]), "ad_ids"),
        (lambda ctr: ctr.score(NOBODY, np.array([1.5])), "ad_ids"),
        (lambda ctr: ctr.score(NOBODY, np.array([-3])), "ad_ids"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_field_before_it_is(ctr, call, field):
    with pytest.raises(InvalidArgumentError) as error:
        call(ctr)
    assert list(error.value.fields) == [field]


@pytest.mark.parametrize(
    ("ads", "error"),
    [
        ([404], NotFoundError),
        ([503], UnavailableError),
        ([500], VitrineError),
        ([BIG] * 200_000, ResourceExhaustedError),
    ],
)
def test_each_status_has_its_exception_and_the_client_works_on(ctr, ads, error):
    with pytest.raises(error):
        ctr.score(NOBODY, ads)
    assert ctr.score(NOBODY, [2]).pctrs.tolist() == [0.5]


def test_the_deadline_of_a_call_wins_over_the_clients(ctr):
    with pytest.raises(DeadlineExceededError):
        ctr.score(NOBODY, [1_000_500], timeout_s=0.05)
    with pytest.raises(DeadlineExceededError):
        ctr.score(NOBODY, [2], timeout_s=-1)


def test_clients_of_one_target_share_a_channel_until_the_last_one_closes(address):
    first, second = CtrClient(address), MatchingClient(address)
    assert first._channel is second._channel
    first.close()
    first.close()
    assert second.get_matches(1).revision == 4
    with pytest.raises(ValueError, match="closed"):
        first.score(NOBODY, [2])
    second.close()
    assert address not in {target for target, _ in channels._open}


def test_one_client_serves_many_threads(ctr):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda ad: ctr.score(NOBODY, [ad]).pctrs[0], range(1, 200)))
    np.testing.assert_array_equal(answers, (1 / np.arange(1, 200)).astype(np.float32))


class Faltering(SmallCtr):
    """UNAVAILABLE for the first `failures` calls."""

    def __init__(self, failures):
        super().__init__()
        self.failures = failures

    def Score(self, request, context):  # noqa: N802
        if len(self.calls) < self.failures:
            self.calls.append([])
            raise ServerUnavailableError("no model is loaded yet")
        return super().Score(request, context)


@pytest.mark.parametrize(("failures", "tries"), [(2, 3), (100, 4)])
def test_unavailable_is_tried_four_times_at_most(failures, tries):
    small = Faltering(failures)
    process = Process(Settings(), "ctr", lambda to: ctr_pb2_grpc.add_CtrServiceServicer_to_server(small, to))
    process.start()
    with CtrClient(process.address, timeout_s=30) as ctr:
        if tries > failures:
            assert ctr.score(NOBODY, [2]).pctrs.tolist() == [0.5]
        else:
            with pytest.raises(UnavailableError, match="no model is loaded yet"):
                ctr.score(NOBODY, [2])
    process.drain()
    assert len(small.calls) == tries


def test_a_call_that_is_not_unavailable_is_made_once():
    small = SmallCtr()
    process = Process(Settings(), "ctr", lambda to: ctr_pb2_grpc.add_CtrServiceServicer_to_server(small, to))
    process.start()
    with CtrClient(process.address) as ctr, pytest.raises(VitrineError):
        ctr.score(NOBODY, [500])
    process.drain()
    assert small.calls == [[500]]


def test_the_same_client_reaches_a_server_killed_and_restarted(tmp_path):
    with running(tmp_path) as server:
        address, port = server.address, server.address.rpartition(":")[2]
        ctr = CtrClient(address, timeout_s=60, wait_for_ready=True)
        assert ctr.score(NOBODY, [2]).pctrs.tolist() == [0.5]
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(ctr.score(NOBODY, [4]).pctrs.tolist()))
    waiting.start()  # begun while there is no server
    with running(tmp_path, "--port", port):
        waiting.join(60)
        assert answers == [[0.25]]
        with CtrClient(address, timeout_s=60) as impatient:
            assert impatient.score(NOBODY, [8]).pctrs.tolist() == [0.125]
    ctr.close()


def test_no_server_is_unavailable():
    with CtrClient("127.0.0.1:1") as ctr, pytest.raises((UnavailableError, DeadlineExceededError)):
        ctr.score(NOBODY, [2])


@given(st.dictionaries(st.text(), st.text()), st.text())
def test_fields_are_read_from_the_details_as_googles_own_classes_write_them(fields, message):
    bad = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
            for field, description in fields.items()
        ]
    )
    other, detail = AnyMessage(), AnyMessage()
    other.Pack(error_details_pb2.DebugInfo(detail=message))
    detail.Pack(bad)
    status = status_pb2.Status(code=3, message=message, details=[other, detail])
    metadata = [("x", "y"), ("grpc-status-details-bin", status.SerializeToString())]
    assert calls._violations(metadata) == fields


@given(st.binary())
def test_details_that_are_not_a_status_are_passed_over(junk):
    calls._violations([("grpc-status-details-bin", junk)])


def test_without_details_the_message_still_names_the_field():
    assert calls._named_in("ad_ids[1]: 0 is reserved") == {"ad_ids[1]": "0 is reserved"}
    assert calls._named_in("something else went wrong") == {}


def test_the_client_brings_in_nothing_beyond_its_three_dependencies():
    script = """
import json, sys
import google.protobuf, grpc, numpy
own = {name.partition(".")[0] for name in sys.modules}
import vitrine.client
added = {name.partition(".")[0] for name in sys.modules} - own - set(sys.stdlib_module_names)
print(json.dumps([sorted(added), sorted(name for name in sys.modules if name.startswith("vitrine."))]))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    packages, modules = json.loads(ended.stdout)
    assert packages == ["vitrine"]
    assert {name.split(".")[1] for name in modules} == {
        "ann_client", "api", "arguments", "calls", "channels", "client", "filters", "trace_context"
    }  # fmt: skip
