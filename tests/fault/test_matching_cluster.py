"""Workers and server on a real Redis Cluster, while slots move between its nodes."""

import grpc
import numpy as np
import pytest
from matching_live import Live, live
from redis_cluster_kit import Nodes, redis_cluster

from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.api.matching.v1.matching_pb2_grpc import MatchingServiceStub
from vitrine.placement import bucket_of
from vitrine.runtime.embedded import EmbeddedStack


@pytest.mark.slow
def test_slots_that_move_under_two_workers_leave_every_state_and_list_as_one_pass_does(stack, namespace, tmp_path):
    rng = np.random.default_rng(9)
    (tmp_path / "nodes").mkdir()
    with redis_cluster(tmp_path / "nodes") as nodes:
        over = EmbeddedStack(kafka_url=stack.kafka_url, redis_url=nodes.url)
        with over, live(over, namespace, tmp_path) as run:
            workers = [run.worker(name).wait_serving() for name in ("one", "two")]
            server = run.server().wait_serving()
            for step in range(6):
                run.send_random(rng, 400, users=60)
                move_some(nodes, run, rng, 3)
                if step == 3:
                    workers[0].kill()
                    workers[0] = run.worker("one")
            run.check()
            with grpc.insecure_channel(server.address()) as channel:
                stub = MatchingServiceStub(channel)
                for user_id in range(1, 61):
                    answer = stub.GetMatches(pb.GetMatchesRequest(user_id=user_id, k=5), timeout=5)
                    assert answer.source in (pb.SOURCE_STORED, pb.SOURCE_FALLBACK_NO_LIST)
                    assert answer.ad_ids


def move_some(nodes: Nodes, run: Live, rng: np.random.Generator, count: int) -> None:
    """Slots of buckets that users are in go to the next node."""
    for user_id in rng.integers(1, 61, count).tolist():
        slot = run.store.client.keyslot(run.store.key(bucket_of(user_id), "mark"))
        nodes.move(slot, (nodes.owner_of(slot) + 1) % 3)
