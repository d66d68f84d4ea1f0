"""The router under load while replicas are killed, vanish as a whole shard, or are rolled to another version."""

import threading
import time
from collections import Counter

import grpc
import pytest
from ann_kit import unit_vectors
from ann_shards import DIM, SHARDS, running

from loadtest import engine
from tests.waiting import wait_for
from vitrine.ann.index import Options
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.client import UnavailableError
from vitrine.runtime import process

ASKED = unit_vectors(7, 1, DIM)
RATE = 60.0  # searches a second; each is one for every shard
K = 10


class Searches:
    """Calls as the engine drives them, each held to what the one index says; none is tried twice by the client."""

    def __init__(self, target, expected):
        channel = grpc.insecure_channel(target, [("grpc.enable_retries", 0)])
        self._search = ann_pb2_grpc.AnnServiceStub(channel).Search
        self._request = ann_pb2.SearchRequest(vectors=ASKED.tobytes(), k=K, exact=True)
        self._expected = expected  # version -> ids
        self.versions = Counter()

    def send(self, number):
        return self._search.future(self._request, timeout=5)

    def wrong(self, number, found):
        versions = {each.version for each in found.shards}
        self.versions[tuple(sorted(versions))] += 1
        if any(each.error for each in found.shards):
            return f"not from every shard: {found.shards}"
        if len(versions) > 1:
            return None  # which the test counts; no one version can say what is right
        right = list(found.item_ids) == self._expected[found.version]
        return None if right else f"wrong answer: {found.item_ids}"


class Load:
    """An open loop in a thread, until `end`."""

    def __init__(self, target, expected):
        self.searches = Searches(target, expected)
        self._stopped, self._found = threading.Event(), []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        self._found.append(engine.open_loop(self.searches, RATE, 120, stopped=self._stopped.is_set))

    def end(self):
        self._stopped.set()
        self._thread.join()
        return self._found[0]


def expected(made):
    options = Options(K, exact=True)
    return {version: whole.search_vectors(ASKED, options).ids.tolist() for version, whole in made.wholes.items()}


def test_a_killed_replica_fails_no_search_while_the_shards_other_one_lives(tmp_path):
    with running(tmp_path, replicas=2) as (made, client):
        router = made.services["router"]
        load = Load(router.address(), expected(made))
        try:
            time.sleep(0.7)
            made.services["ann-1-0"].kill()
            time.sleep(1.0)
            made.replica(1, 0).wait_serving()
            wait_for(lambda: router.metric("vitrine_ann_router_ready_replicas") == 4, 20, router.said)
            made.services["ann-1-1"].kill()
            time.sleep(1.0)
        finally:
            seen = load.end()
        assert seen.failures == {}
        assert seen.sent > RATE

        made.services["ann-1-0"].kill()
        wait_for(lambda: router.metric("vitrine_ann_router_ready_replicas") == 2, 20, router.said)
        dead = f"shard 1 of {SHARDS}"
        with pytest.raises(UnavailableError, match=dead):
            client.search(ASKED, k=K)
        partial = client.search(ASKED, k=K, exact=True, allow_partial=True)
        assert [bool(each.error) for each in partial.shards] == [False, True]
        assert dead in partial.shards[1].error
        assert partial.shards[1].version == ""
        (version,) = made.wholes
        assert partial.version == version
        assert len(partial.ids[0]) == K
        assert router.serving(), "callers who take a part are still answered"
        assert router.metric("vitrine_ann_router_partial_answers_total") == 1

        made.replica(1, 0).wait_serving()
        wait_for(lambda: router.metric("vitrine_ann_router_ready_replicas") == 3, 20, router.said)
        assert client.search(ASKED, k=K, exact=True).ids[0].tolist() == expected(made)[version]


@pytest.mark.slow
def test_replicas_rolled_to_another_version_fail_no_search_and_every_answer_is_of_one_version(tmp_path):
    """First one replica of each shard, then the others, as StatefulSets do: each version is whole somewhere."""
    with running(tmp_path, replicas=2, drain_delay_ms="500") as (made, client):
        router = made.services["router"]
        (old,) = made.wholes
        new = made.publish(1, ref="canary")
        load = Load(router.address(), expected(made))
        try:
            time.sleep(0.3)
            for number in range(2):
                for shard in range(SHARDS):
                    assert process.stop(made.services[f"ann-{shard}-{number}"].process, grace_s=30) == 0
                    made.replica(shard, number, ref="canary").wait_serving()
                    wait_for(lambda: router.metric("vitrine_ann_router_ready_replicas") == 4, 20, router.said)
            wait_for(lambda: client.search(ASKED, k=K).version == new, 20)
            time.sleep(0.3)
        finally:
            seen = load.end()
        assert seen.failures == {}
        assert seen.sent > RATE
        assert set(load.searches.versions) == {(old,), (new,)}
