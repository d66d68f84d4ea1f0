"""The matching server: settings, catalog and towers, the tail of ad-updates, the servicer, serve, drain."""

import sys

from services.matching.rematch import RematchLog
from services.matching.servicer import MatchingServicer, PausedAds, StoreWatch
from services.matching.settings import ServerSettings, load_matcher
from vitrine.api.matching.v1 import matching_pb2_grpc
from vitrine.artifacts import ArtifactError
from vitrine.errors import UnavailableError
from vitrine.matching.store import Store
from vitrine.placement import qualify
from vitrine.runtime import logs, redis, settings, topics
from vitrine.runtime.readings import redis_contact
from vitrine.runtime.server import serve
from vitrine.runtime.tail import Tail, one_by_one


def main(argv: list[str]) -> int:
    """Runs the server until SIGTERM; the exit status."""
    config = settings.load(ServerSettings, argv, prog="python -m services.matching server")
    logs.setup(config.log_level, "matching")
    try:
        matcher = load_matcher(config)
        timeout_s = config.redis_timeout_ms / 1000
        client = redis.connect(config.redis_url, timeout_s=timeout_s, connect_timeout_s=timeout_s)
    except (ArtifactError, ValueError, UnavailableError) as error:
        print(f"python -m services.matching server: {error}", file=sys.stderr)
        return 1
    store = Store(client, config.namespace)
    paused = PausedAds()
    ad_updates = qualify(config.namespace, topics.AD_UPDATES)
    tail = Tail(config.kafka_url, ad_updates, one_by_one(ad_updates, paused.apply))
    watch = StoreWatch(store.ping)
    redis_contact.add(lambda: {"": watch.seconds_since_contact})
    rematches = RematchLog(config.kafka_url, config.namespace)
    servicer = MatchingServicer(matcher, store, paused, watch, rematches)

    def kafka_silent() -> str | None:
        """Ad updates may have been missed for longer than the bound, so paused ads may be shown: stop serving."""
        if tail.error is not None:
            return str(tail.error)
        if not tail.caught_up.is_set():
            return f"{tail.topic} is not read whole yet"
        silent = tail.seconds_since_contact
        return f"no word from Kafka for {silent:.0f} s" if silent > config.staleness_bound_s else None

    return serve(
        config,
        "matching",
        lambda server: matching_pb2_grpc.add_MatchingServiceServicer_to_server(servicer, server),
        ready={"kafka": kafka_silent},
        degraded={"redis": lambda: watch.lost},
        on_drain=[tail.close, watch.close, rematches.close],
    )
