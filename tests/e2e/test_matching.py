"""Matching end to end: an event goes in at Kafka, and the list that the server answers with changes."""

import time
from collections.abc import Iterator

import grpc
import pytest
from matching_kit import START_MS
from matching_live import SERVED, Live, live, wait_for

from vitrine.api.events.v1.events_pb2 import AdUpdate
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.api.matching.v1.matching_pb2_grpc import MatchingServiceStub
from vitrine.data.replay import user_event
from vitrine.matching import state
from vitrine.placement import qualify
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.health import is_serving


@pytest.fixture(scope="module")
def own_stack(kafka_home: str) -> Iterator[EmbeddedStack]:
    """A stack of this module's own: its Redis is killed."""
    with EmbeddedStack(kafka_home=kafka_home) as started:
        yield started


@pytest.fixture
def run(own_stack: EmbeddedStack, namespace: str, tmp_path) -> Iterator[Live]:
    with live(own_stack, namespace, tmp_path) as started:
        yield started


def test_an_event_changes_the_list_and_everything_lost_still_answers(run: Live):
    worker, server = run.worker(), run.server()
    worker.wait_serving()
    server.wait_serving()
    with grpc.insecure_channel(server.address()) as channel:
        stub = MatchingServiceStub(channel)

        def matches(user_id: int, k: int = SERVED) -> pb.GetMatchesResponse:
            return stub.GetMatches(pb.GetMatchesRequest(user_id=user_id, k=k), timeout=5)

        # An unknown user gets the fallback.
        unknown = matches(42)
        assert unknown.source == pb.SOURCE_FALLBACK_NO_LIST
        assert len(unknown.ad_ids) == SERVED
        assert (unknown.revision, unknown.age_ms) == (0, 0)

        # An event, and the list is the user's own; another, and it changes.
        item = run.catalog.items.tolist()
        run.send(user_event("purchase", 42, START_MS, item[0], 0, 0))
        wait_for(lambda: matches(42).revision == 1, 20)
        first = matches(42)
        run.send(user_event("purchase", 42, START_MS + 1, item[5], 0, 0))
        wait_for(lambda: matches(42).revision == 2, 20)
        second = matches(42)
        assert first.source == second.source == pb.SOURCE_STORED
        assert list(first.ad_ids) != list(second.ad_ids)
        assert second.catalog_version == run.matcher.catalog_version
        assert second.towers_version == run.matcher.towers_version
        assert list(second.values) == sorted(second.values, reverse=True)
        assert second.age_ms < 20_000

        # The context is the state's features.
        held, _ = run.store.read_user(42)
        keys, weights = state.features(state.decode(held))
        assert list(second.context.keys) == keys.tolist()
        assert list(second.context.weights) == weights.tolist()

        # Explain gives the list's very values, and names what is not in it.
        ads = [*second.ad_ids, 999_961]
        explained = stub.Explain(pb.ExplainRequest(user_id=42, ad_ids=ads), timeout=5)
        listed = explained.explanations[:-1]
        assert [e.value for e in listed] == list(second.values)
        assert [e.bid for e in listed] == list(second.bids)
        assert [e.crowd_id for e in listed] == list(second.crowd_ids)
        assert [e.rank for e in listed] == list(range(1, SERVED + 1))
        assert {e.verdict for e in listed} == {pb.VERDICT_LISTED}
        assert explained.explanations[-1].verdict == pb.VERDICT_UNKNOWN_AD
        assert set(explained.user_crowd_ids) == set(state.decode(held).crowds)
        with pytest.raises(grpc.RpcError) as missing:
            stub.Explain(pb.ExplainRequest(user_id=43, ad_ids=[3]), timeout=5)
        assert missing.value.code() == grpc.StatusCode.NOT_FOUND

        # A paused ad is hidden at once, and back when it is active again.
        best = second.ad_ids[0]

        def set_state(ad_state: AdUpdate.State.ValueType) -> None:
            update = AdUpdate(ad_id=best, state=ad_state)
            topic = qualify(run.namespace, "ad-updates")
            run.producer.send(topic, key=b"%d" % best, value=update.SerializeToString()).get(timeout=10)

        set_state(AdUpdate.STATE_PAUSED)
        wait_for(lambda: best not in matches(42).ad_ids, 20)
        assert list(matches(42).ad_ids)[: SERVED - 1] == list(second.ad_ids)[1:]
        paused = stub.Explain(pb.ExplainRequest(user_id=42, ad_ids=[best]), timeout=5).explanations[0]
        assert (paused.verdict, paused.rank) == (pb.VERDICT_PAUSED, 1)
        set_state(AdUpdate.STATE_ACTIVE)
        wait_for(lambda: list(matches(42).ad_ids) == list(second.ad_ids), 20)

        # Bad requests, each named; the server is alive after them.
        for request, field in [
            (pb.GetMatchesRequest(user_id=42, k=0), "k: 0"),
            (pb.GetMatchesRequest(user_id=42, k=100_000), "k: 100000"),
            (pb.GetMatchesRequest(k=1), "user_id"),
        ]:
            with pytest.raises(grpc.RpcError, match=field) as refused:
                stub.GetMatches(request, timeout=5)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        for ad_ids in ([], [1] * 1_001):
            with pytest.raises(grpc.RpcError, match="ad_ids"):
                stub.Explain(pb.ExplainRequest(user_id=42, ad_ids=ad_ids), timeout=5)

        # Redis killed: the fallback answers, the process says degraded, and goes on serving.
        run.stack.kill_redis()
        lost = matches(42)
        assert lost.source == pb.SOURCE_FALLBACK_STORE_LOST
        assert len(lost.ad_ids) == SERVED
        wait_for(lambda: server.metric("vitrine_degraded") == 1, 20)
        assert is_serving(server.address("health"))
        run.stack.start_redis()
        wait_for(lambda: matches(42).source == pb.SOURCE_STORED, 20)
        assert list(matches(42).ad_ids) == list(second.ad_ids)
        run.check()
        assert worker.metric("vitrine_matching_events_applied_total") == 2


def test_the_server_stops_serving_once_kafka_is_silent_beyond_the_bound(run: Live):
    server = run.server(staleness_bound_s="2").wait_serving()
    run.stack.kill_kafka()
    killed = time.monotonic()
    try:
        wait_for(lambda: not is_serving(server.address("health")), 30)
        assert time.monotonic() - killed > 1  # not before the bound, counted from the last word
        with grpc.insecure_channel(server.address()) as channel:
            answer = MatchingServiceStub(channel).GetMatches(pb.GetMatchesRequest(user_id=1, k=1), timeout=5)
            assert len(answer.ad_ids) == 1  # calls in between are still answered
            with pytest.raises(grpc.RpcError) as refused:
                MatchingServiceStub(channel).Rematch(pb.RematchRequest(user_id=1), timeout=9)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        run.stack.start_kafka()
    wait_for(lambda: is_serving(server.address("health")), 30)


def test_the_in_memory_broker_carries_events_to_lists(namespace: str, tmp_path):
    with EmbeddedStack(kafka_home="") as memory, live(memory, namespace, tmp_path) as run:
        assert memory.kafka_kind == "memory"
        run.worker().wait_serving()
        server = run.server().wait_serving()
        for user_id in range(1, 21):
            run.send(user_event("purchase", user_id, START_MS, int(run.catalog.items[user_id]), 0, 0))
        run.wait_applied()
        with grpc.insecure_channel(server.address()) as channel:
            answer = MatchingServiceStub(channel).GetMatches(pb.GetMatchesRequest(user_id=7, k=3), timeout=5)
        assert (answer.source, answer.revision, len(answer.ad_ids)) == (pb.SOURCE_STORED, 1, 3)
