"""Events that a visitor fires: one `UserEvent` into `user-events`, and what is kept until its list has come."""

import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from kafka import KafkaProducer
from kafka.errors import KafkaError

from vitrine import trace_context
from vitrine.api.events.v1.events_pb2 import AdBlock, AdClick, CrowdChange, ItemAction, UserEvent
from vitrine.errors import UnavailableError
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics

_MOST_FIRED = 1_000

# Kind -> (what it is about, what the page says of it).
KINDS = {
    "purchase": ("item", "bought"),
    "view": ("item", "looked at"),
    "click": ("ad", "clicked"),
    "block": ("ad", "blocked"),
    "join": ("crowd", "joined"),
    "leave": ("crowd", "left"),
}


def user_event(kind: str, user_id: int, target: int, time_ms: int) -> UserEvent:
    """The message; `kind` is one of KINDS, `target` the id that it is about."""
    event = UserEvent(user_id=user_id, time_ms=time_ms)
    if kind in ("purchase", "view"):
        action = ItemAction.ACTION_PURCHASE if kind == "purchase" else ItemAction.ACTION_VIEW
        event.item.CopyFrom(ItemAction(item_id=target, action=action))
    elif kind == "click":
        event.click.CopyFrom(AdClick(ad_id=target, request_id=f"console-{secrets.token_hex(8)}"))
    elif kind == "block":
        event.block.CopyFrom(AdBlock(ad_id=target))
    else:
        change = CrowdChange.CHANGE_JOIN if kind == "join" else CrowdChange.CHANGE_LEAVE
        event.crowd.CopyFrom(CrowdChange(crowd_id=target, change=change))
    return event


class Sender:
    """Appends events to `user-events`. Connects when first used, and again after a failure."""

    def __init__(self, url: str, namespace: str, *, timeout_s: float) -> None:
        self._url, self._topic = url, qualify(namespace, topics.USER_EVENTS)
        self._timeout_s = timeout_s
        self._producer: KafkaProducer | None = None
        self._lock = threading.Lock()

    def send(self, event: UserEvent) -> None:
        """Returns when the broker has it; UnavailableError where it does not answer in time."""
        if not self._url:
            raise UnavailableError("no Kafka is set; start the console with VITRINE_KAFKA_URL")
        try:
            self._connected().send(
                self._topic,
                key=kafka.key_of(event.user_id),
                value=event.SerializeToString(),
                headers=trace_context.headers(),
            ).get(timeout=self._timeout_s)
        except KafkaError as error:
            raise UnavailableError(f"Kafka did not take the event within {self._timeout_s:g} s: {error}") from error

    def close(self) -> None:
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=self._timeout_s)
                self._producer = None

    def _connected(self) -> KafkaProducer:
        if not self._lock.acquire(timeout=self._timeout_s):
            raise UnavailableError("Kafka has not answered an earlier event yet")
        try:
            if self._producer is None:
                wait_ms = int(self._timeout_s * 1000)
                self._producer = kafka.producer(
                    self._url,
                    linger_ms=0,
                    bootstrap_timeout_ms=wait_ms,
                    max_block_ms=wait_ms,
                    request_timeout_ms=wait_ms,
                    delivery_timeout_ms=wait_ms + 10,
                )
            return self._producer
        finally:
            self._lock.release()


@dataclass(frozen=True)
class Fired:
    """An event whose list is awaited: what the list was before it.

    sent: monotonic seconds of the broker's word; ads: before the event, best first
    """

    user_id: int
    said: str
    revision: int
    ads: tuple[int, ...]
    sent: float = field(default_factory=time.monotonic)


class FiredEvents:
    """The last fired events by token, so that a poll can say what has changed since."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Fired] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, fired: Fired) -> str:
        token = secrets.token_urlsafe(12)
        with self._lock:
            self._kept[token] = fired
            while len(self._kept) > _MOST_FIRED:
                self._kept.popitem(last=False)
        return token

    def get(self, token: str) -> Fired | None:
        with self._lock:
            return self._kept.get(token)
