"""Rematch requests into `user-events`: the owner of the user's bucket reads them in the user's order."""

import secrets
import threading
import time

from kafka import KafkaProducer
from kafka.errors import KafkaError

from vitrine import trace_context
from vitrine.api.events.v1.events_pb2 import Rematch, UserEvent
from vitrine.api.matching.v1.matching_pb2 import RematchResponse
from vitrine.errors import UnavailableError
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics


class RematchLog:
    """Appends requests. Connects when first used, and again after a failure; safe for threads."""

    def __init__(self, url: str, namespace: str) -> None:
        self._url, self._topic = url, qualify(namespace, topics.USER_EVENTS)
        self._producer: KafkaProducer | None = None
        self._lock = threading.Lock()

    def append(self, user_id: int, timeout_s: float) -> RematchResponse:
        """Returns when the broker has the request, and where.

        Raises UnavailableError where it does not say so within the timeout; the request may be in the log then, and
        asking again makes the list once more, the same.
        """
        deadline = time.monotonic() + timeout_s
        event = UserEvent(
            user_id=user_id,
            time_ms=int(time.time() * 1000),
            rematch=Rematch(request_id=trace_context.ids().get("trace_id") or secrets.token_hex(16)),
        )
        try:
            sent = self._connected(deadline).send(
                self._topic,
                key=kafka.key_of(user_id),
                value=event.SerializeToString(),
                headers=trace_context.headers(),
            )
            there = sent.get(timeout=_left_s(deadline))
        except KafkaError as error:
            raise UnavailableError(
                f"the log did not take the request within {timeout_s:.1f} s ({error}); ask again"
            ) from error
        return RematchResponse(request_id=event.rematch.request_id, partition=there.partition, offset=there.offset)

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=2)
                self._producer = None

    def _connected(self, deadline: float) -> KafkaProducer:
        if not self._lock.acquire(timeout=_left_s(deadline)):
            raise UnavailableError("Kafka has not answered an earlier request yet; ask again")
        try:
            if self._producer is None:
                self._producer = kafka.producer(
                    self._url,
                    linger_ms=0,
                    bootstrap_timeout_ms=2_000,
                    max_block_ms=2_000,
                    request_timeout_ms=10_000,
                    delivery_timeout_ms=10_010,
                )
            return self._producer
        finally:
            self._lock.release()


def _left_s(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())
