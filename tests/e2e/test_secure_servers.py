"""A matching system whose Kafka speaks TLS and SASL and whose Redis speaks TLS to one user; and who is kept out."""

from pathlib import Path

import grpc
import numpy as np
import pytest
from kafka import KafkaConsumer
from matching_live import live, wait_for

from tests.secure_servers import ENCODED, PASSWORD, SecureKafka, SecureRedis, running, why_no_secure_redis
from tests.security_kit import Authority
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.api.matching.v1.matching_pb2_grpc import MatchingServiceStub
from vitrine.cli.doctor import partitioning
from vitrine.errors import UnavailableError
from vitrine.runtime import kafka, redis
from vitrine.runtime.embedded import EmbeddedStack


@pytest.fixture(scope="module")
def secure_kafka(kafka_home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("secure-kafka")
    server = SecureKafka(folder / "kafka", Path(kafka_home), Authority(folder / "authority"))
    with running(server):
        yield server


@pytest.fixture(scope="module")
def secure_redis(tmp_path_factory):
    if missing := why_no_secure_redis():
        pytest.skip(f"needs a Redis with TLS: {missing}")
    folder = tmp_path_factory.mktemp("secure-redis")
    server = SecureRedis(folder / "redis", Authority(folder / "authority"))
    with running(server):
        yield server


def test_events_reach_lists_over_tls_alone_and_no_log_has_a_password(
    secure_kafka, secure_redis, namespace, tmp_path
):
    with (
        EmbeddedStack(kafka_url=secure_kafka.url, redis_url=secure_redis.url) as stack,
        live(stack, namespace, tmp_path) as run,
    ):
        worker = run.worker().wait_serving()
        server = run.server().wait_serving()
        run.send_random(np.random.default_rng(5), 300, users=40)
        run.check()
        with grpc.insecure_channel(server.address()) as channel:
            answer = MatchingServiceStub(channel).GetMatches(pb.GetMatchesRequest(user_id=1, k=5), timeout=5)
        assert answer.source == pb.SOURCE_STORED
        for process in (worker, server):
            said = process.log.read_text()
            assert not any(secret in said for secret in (PASSWORD, ENCODED, "s3cret"))


def test_a_plain_user_may_produce_and_librdkafka_gets_the_same_settings(secure_kafka):
    assert partitioning(secure_kafka.plain_url()).status == "ok"


@pytest.mark.parametrize("change", ["password", "certificate", "tls"])
def test_kafka_keeps_strangers_out_and_the_error_has_no_password(secure_kafka, tmp_path, change):
    url = secure_kafka.plain_url()
    if change == "password":
        url = url.replace(ENCODED, "wr0ng-" + ENCODED)
    elif change == "certificate":
        url = url.partition("&cert=")[0]
    else:
        url = f"kafka://{url.partition('@')[2].partition('?')[0]}"
    with pytest.raises(UnavailableError) as error:
        kafka.cluster_id(url, timeout_s=1)
    assert "s3cret" not in str(error.value)


def test_a_broker_of_another_authority_is_not_talked_to(secure_kafka, tmp_path):
    other = Authority(tmp_path, "stranger")
    url = secure_kafka.plain_url()
    ca = url.partition("ca=")[2].partition("&")[0]
    with pytest.raises(UnavailableError):
        kafka.cluster_id(url.replace(f"ca={ca}", f"ca={other.cert}"), timeout_s=1)


def test_redis_keeps_strangers_out_and_the_error_has_no_password(secure_redis):
    url = secure_redis.url
    for bad in (
        url.replace(ENCODED, "wr0ng"),
        url.replace("alice", "default"),
        url.partition("&ssl_certfile")[0],
        "redis://" + url.partition("://")[2].partition("?")[0],
    ):
        with redis.connect(bad) as client, pytest.raises(UnavailableError) as error:
            redis.wait_ready(client, timeout_s=0)
        assert not any(secret in str(error.value) for secret in ("s3cret", "wr0ng"))
    with redis.connect(url) as client:
        redis.wait_ready(client, timeout_s=5)


def test_a_consumer_reads_what_a_producer_sent(secure_kafka):
    producer = kafka.producer(secure_kafka.url)
    with kafka.admin(secure_kafka.url) as admin:
        admin.create_topics({"secure": {"num_partitions": 1, "replication_factor": 1}})
    producer.send("secure", b"over TLS").get(timeout=20)
    producer.close()
    settings = kafka.parse_url(secure_kafka.plain_url()).kwargs()
    consumer = KafkaConsumer("secure", **settings, auto_offset_reset="earliest", enable_auto_commit=False)
    found = []
    wait_for(lambda: found.extend(r.value for rs in consumer.poll(500).values() for r in rs) or found, 20)
    consumer.close()
    assert found == [b"over TLS"]
