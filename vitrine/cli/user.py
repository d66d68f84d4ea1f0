"""`vitrine user`: what is kept of a user, and having it forgotten."""

import json
import time
from typing import Annotated, Any

import typer
from kafka.errors import KafkaError

from vitrine.api.events.v1.events_pb2 import Deletion, UserEvent
from vitrine.artifacts import ArtifactStore
from vitrine.cli.operate import NamespaceOption, RedisUrl, StoreOption, store_of
from vitrine.cli.topics import AsJson, KafkaUrl, required, told
from vitrine.errors import FieldError, NotFoundError, UnavailableError
from vitrine.matching import record, state
from vitrine.matching.catalog import KIND, SCHEMA, Catalog
from vitrine.matching.deletion import is_of
from vitrine.matching.events import RecordError
from vitrine.matching.store import Store
from vitrine.placement import bucket_of, qualify
from vitrine.runtime import audit, kafka, letters, topics

app = typer.Typer(help="See, or delete, what is kept of a user.", no_args_is_help=True)

UserId = Annotated[int, typer.Argument(min=1, help="the user's id")]


@app.command()
def show(
    user_id: UserId,
    redis_url: RedisUrl = "",
    namespace: NamespaceOption = "",
    store: StoreOption = "",
    as_json: AsJson = False,
) -> None:
    """Everything kept of a user: state and list. With a store the list's ads too, which it holds by number.

    Examples:

        vitrine user show 42 --redis-url redis://127.0.0.1:6379

        vitrine user show 42 --store ./artifacts --json
    """
    with told():
        held, listed = store_of(redis_url, namespace).read_user(user_id)
        if held is None and listed is None:
            raise NotFoundError(f"nothing is kept of user {user_id}")
        facts: dict[str, Any] = {"user_id": user_id, "bucket": bucket_of(user_id)}
        try:
            if held is not None:
                facts["state"] = {"bytes": len(held)} | _state(state.decode(held))
            if listed is not None:
                facts["list"] = {"bytes": len(listed)} | _list(listed, store, namespace)
        except RecordError as error:
            raise FieldError(f"user {user_id}", str(error)) from error
    if as_json:
        print(json.dumps(facts))
        return
    for part, value in facts.items():
        print(f"{part}  {value}" if not isinstance(value, dict) else part)
        for name, each in value.items() if isinstance(value, dict) else ():
            print(f"  {name}  {each}")


@app.command()
def delete(
    user_id: UserId,
    kafka_url: KafkaUrl = "",
    redis_url: RedisUrl = "",
    namespace: NamespaceOption = "",
    wait_s: Annotated[float, typer.Option(min=0, help="for a worker to carry it out")] = 60,
) -> None:
    """Have all forgotten that is kept of a user: state, list, and dead letters of the user's records.

    The deletion is an event in user-events. Replayed, what came before it stays forgotten. The user's records in
    Kafka end by the topic's retention. Safe to repeat.

    Example:

        vitrine user delete 42 --kafka-url kafka://127.0.0.1:9092 --redis-url redis://127.0.0.1:6379
    """
    with told():
        buckets, url = store_of(redis_url, namespace), required(kafka_url)
        topic, letter_topic = qualify(namespace, topics.USER_EVENTS), qualify(namespace, topics.DEAD_LETTERS)
        with audit.recorded("user.delete", f"user {user_id}", topic=topic) as details:
            offset = _append(url, topic, user_id)
            details["offset"] = offset
            _wait(buckets, user_id, offset, wait_s)
            # Only now: what could not be applied before the deletion has its letter by now.
            keys = [k for k, letter in letters.read(url, letter_topic).items() if is_of(letter, user_id, topic)]
            letters.forget(url, letter_topic, keys)
            details["letters"] = len(keys)
    print(f"user {user_id} is forgotten as of offset {offset}; {len(keys)} dead letters are gone")


def _append(url: str, topic: str, user_id: int) -> int:
    event = UserEvent(user_id=user_id, time_ms=int(time.time() * 1000), deletion=Deletion())
    producer = kafka.producer(url)
    try:
        sent = producer.send(topic, key=kafka.key_of(user_id), value=event.SerializeToString())
        return int(sent.get(timeout=30).offset)
    except KafkaError as error:
        raise UnavailableError(f"{topic} did not take the deletion ({error}); run it again") from error
    finally:
        producer.close(timeout=2)


def _wait(buckets: Store, user_id: int, offset: int, wait_s: float) -> None:
    bucket, deadline = bucket_of(user_id), time.monotonic() + wait_s
    while True:
        tombstone = buckets.read_deleted({bucket: [user_id]}).get(user_id)
        if tombstone is not None and state.decode(tombstone).deleted_offset >= offset:
            return
        if time.monotonic() >= deadline:
            raise UnavailableError(
                f"the deletion of user {user_id} is in the log, at offset {offset}, but no worker has carried it"
                f" out within {wait_s:.0f} s: start one, or `vitrine workers resume`, and run this again, for"
                " the dead letters"
            )
        time.sleep(0.1)


def _state(user: state.UserState) -> dict[str, Any]:
    """The state's fields, as JSON has them."""
    facts: dict[str, Any] = {
        name: getattr(user, name)
        for name in (
            "revision", "offset", "append_ms", "clock_ms", "items", "crowds", "towers_version", "bias", "changes",
            "total_changes", "refreshed_ms", "epoch", "listed",
        )
    }  # fmt: skip
    facts |= {"joined": sorted(user.joined), "blocked": sorted(user.blocked), "vec": user.vec.tolist()}
    facts["ads"] = {
        ad: {"impressions": seen.impressions, "clicks": seen.clicks, "last_ms": seen.last_ms}
        for ad, seen in user.ads.items()
    }
    if user.deleted_offset >= 0:
        facts["deleted"] = {"ms": user.deleted_ms, "offset": user.deleted_offset}
    return facts


def _list(listed: bytes, store: str, namespace: str) -> dict[str, Any]:
    """The list's header, and its entries where a store has the catalog."""
    header = record.open_record(listed)
    facts: dict[str, Any] = {
        name: getattr(header, name)
        for name in (
            "revision", "offset", "append_ms", "position", "epoch", "served", "catalog_version", "towers_version",
            "arm", "features",
        )
    }  # fmt: skip
    if not store:
        return facts
    path = ArtifactStore(store, namespace=namespace).fetch(KIND, header.catalog_version, max_schema=SCHEMA).path
    try:
        catalog = Catalog.load(path)
    except ValueError as error:
        raise FieldError("--store", str(error)) from error
    facts["rankings"] = [
        {
            "complete": ranking.complete,
            "floor": [ranking.floor_value, ranking.floor_ad],
            "ads": ranking.ads.tolist(),
            "values": ranking.values.tolist(),
            "crowds": ranking.crowds.tolist(),
        }
        for ranking in record.decode_opened(header, listed, catalog).rankings
    ]
    return facts
