"""The topics of one namespace: made as the design says, compared where they already exist."""

from collections.abc import Mapping
from dataclasses import dataclass

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import KafkaError, for_code

from vitrine.errors import FieldError, UnavailableError
from vitrine.placement import BUCKETS, qualify
from vitrine.runtime import audit
from vitrine.runtime.kafka import admin, answering, parse_url
from vitrine.runtime.redact import redact_url
from vitrine.runtime.settings import NAMESPACE

USER_EVENTS = "user-events"
AD_UPDATES = "ad-updates"
ITEM_UPDATES = "item-updates"
DEAD_LETTERS = "dead-letters"

_APPEND_TIME = {"message.timestamp.type": "LogAppendTime"}
_COMPACTED = _APPEND_TIME | {"cleanup.policy": "compact"}
_DELETED = _APPEND_TIME | {"cleanup.policy": "delete"}


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it should be, or as it is: full name, partitions, and the settings that matter here."""

    name: str
    partitions: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Created:
    """What `create` did: names made and names that were there already; `notice` is for people."""

    made: list[str]
    kept: list[str]
    notice: str


class TopicMismatchError(ValueError):
    """A topic exists, but not as it should be."""


def wanted(namespace: str, partitions: int = 8) -> list[Topic]:
    """The namespace's topics.

    Raises FieldError where `partitions` is not a power of two up to BUCKETS, or the namespace is no plain word.
    """
    if not NAMESPACE.fullmatch(namespace):
        raise FieldError("namespace", f"{namespace!r} is not at most 64 letters, digits, '-' and '_'")
    if not 1 <= partitions <= BUCKETS or partitions & (partitions - 1):
        raise FieldError(
            "partitions",
            f"{partitions} is not a power of two from 1 to {BUCKETS}; buckets could not belong to one partition",
        )
    return [
        Topic(qualify(namespace, USER_EVENTS), partitions, _DELETED),
        Topic(
            qualify(namespace, AD_UPDATES), 1, _COMPACTED
        ),  # one order of all: its offset is the catalog position
        Topic(qualify(namespace, ITEM_UPDATES), partitions, _COMPACTED),
        Topic(qualify(namespace, DEAD_LETTERS), 1, _COMPACTED),
    ]


def create(
    url: str,
    namespace: str,
    partitions: int = 8,
    replication: int = 1,
    *,
    retention_ms: int | None = None,
    timeout_s: float = 30.0,
) -> Created:
    """Makes the topics that are missing, and waits until they can be written to.

    retention_ms: how long `user-events` are kept (-1: for ever); None leaves the cluster's default.
    Raises TopicMismatchError where one exists otherwise, before any is made; FieldError for a bad argument;
    UnavailableError where the cluster does not answer or refuses.
    """
    topics = wanted(namespace, partitions)
    if replication < 1:
        raise FieldError("replication", f"{replication} is not a number of replicas; 1 or more")
    if parse_url(url).memory:
        notice = "the in-memory broker makes topics by itself when they are first used, with 4 partitions each"
        return Created([], [topic.name for topic in topics], notice)
    with admin(url) as client:
        try:
            there = {topic.name: topic for topic in _describe(client, [topic.name for topic in topics])}
            kept = [topic for topic in topics if topic.name in there]
            problems = [text for topic in kept for text in _differences(topic, there[topic.name])]
            if problems:
                raise TopicMismatchError("\n".join(problems))
            missing = [topic for topic in topics if topic.name not in there]
            if missing:
                extra = {} if retention_ms is None else {topics[0].name: {"retention.ms": str(retention_ms)}}
                names = " ".join(topic.name for topic in missing)
                with audit.recorded("topics.create", names, partitions=partitions, replication=replication):
                    _make(client, missing, replication, extra, int(timeout_s * 1000))
        except KafkaError as error:
            raise UnavailableError(f"Kafka at {redact_url(url)} did not make the topics: {error}") from error
    return Created(
        [topic.name for topic in missing],
        [topic.name for topic in kept],
        f"{len(missing)} made, {len(kept)} were there",
    )


def existing(url: str, namespace: str) -> list[Topic]:
    """Those of the namespace's topics that exist, as they are. Raises UnavailableError."""
    names = [topic.name for topic in wanted(namespace)]
    with admin(url) as client:
        try:
            return _describe(client, names, with_settings=not parse_url(url).memory)
        except KafkaError as error:
            raise UnavailableError(f"Kafka at {redact_url(url)} did not describe its topics: {error}") from error


def records(url: str, topic: str) -> int:
    """Records ever appended to a topic; 0 where it does not exist, as on the in-memory broker before the first.

    Raises UnavailableError where the cluster does not answer.
    """
    with answering(url):
        consumer = KafkaConsumer(**parse_url(url).kwargs(), enable_auto_commit=False)
        try:
            places = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
            return sum(consumer.end_offsets(places).values()) if places else 0
        finally:
            consumer.close()


def _make(
    client: KafkaAdminClient,
    topics: list[Topic],
    replication: int,
    extra: Mapping[str, Mapping[str, str]],
    timeout_ms: int,
) -> None:
    new = [
        NewTopic(t.name, t.partitions, replication, topic_configs={**t.settings, **extra.get(t.name, {})})
        for t in topics
    ]
    client.create_topics(new, timeout_ms=timeout_ms)
    client.wait_for_topics([topic.name for topic in topics], timeout_ms=timeout_ms)


def _describe(client: KafkaAdminClient, names: list[str], *, with_settings: bool = True) -> list[Topic]:
    there = set(client.list_topics())
    names = [name for name in names if name in there]
    if not names:
        return []
    counts = {}
    for found in client.describe_topics(names):
        if found["error_code"]:
            raise for_code(found["error_code"])(found["name"])
        counts[found["name"]] = len(found["partitions"])
    settings: dict[str, dict[str, str]] = {}
    if with_settings:
        keys = ["message.timestamp.type", "cleanup.policy"]
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, configs=dict.fromkeys(keys)) for name in names]
        described = client.describe_configs(resources, config_filter="all")["topic"]
        settings = {name: {key: described[name][key]["value"] for key in keys} for name in names}
    return [Topic(name, counts[name], settings.get(name, {})) for name in names]


def _differences(want: Topic, have: Topic) -> list[str]:
    found = []
    if have.partitions != want.partitions:
        found.append(
            f"topic {want.name} has {have.partitions} partitions, not {want.partitions}: ask for that "
            "many, or use a fresh VITRINE_NAMESPACE (more partitions would send keys elsewhere than their history)"
        )
    for key, value in want.settings.items():
        if have.settings.get(key) != value:
            found.append(
                f"topic {want.name} has {key}={have.settings.get(key)}, not {value}: alter it (kafka-configs.sh "
                f"--alter --entity-type topics --entity-name {want.name} --add-config {key}={value})"
            )
    return found
