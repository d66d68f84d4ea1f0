"""The matching server: settings, artifacts, the tail of ad-updates, the servicer, serve, drain."""

import sys

from services.matching.artifacts import Artifacts
from services.matching.rematch import RematchLog
from services.matching.servicer import MatchingServicer
from services.matching.serving import Serving
from services.matching.settings import ServerSettings
from services.matching.watch import StoreWatch
from vitrine.api.matching.v1 import matching_pb2_grpc
from vitrine.artifacts import ArtifactError
from vitrine.errors import UnavailableError
from vitrine.matching.store import Store
from vitrine.runtime import logs, redis, settings
from vitrine.runtime.readings import redis_contact
from vitrine.runtime.server import serve


def main(argv: list[str]) -> int:
    """Runs the server until SIGTERM; the exit status."""
    config = settings.load(ServerSettings, argv, prog="python -m services.matching server")
    logs.setup(config.log_level, "matching")
    try:
        timeout_s = config.redis_timeout_ms / 1000
        client = redis.connect(config.redis_url, timeout_s=timeout_s, connect_timeout_s=timeout_s)
        serving = Serving(config, Artifacts(config))
    except (ArtifactError, ValueError, UnavailableError) as error:
        print(f"python -m services.matching server: {error}", file=sys.stderr)
        return 1
    store = Store(client, config.namespace)
    watch = StoreWatch(store.ping)
    redis_contact.add(lambda: {"": watch.seconds_since_contact})
    rematches = RematchLog(config.kafka_url, config.namespace)
    servicer = MatchingServicer(lambda: serving.now, store, watch, rematches)
    return serve(
        config,
        "matching",
        lambda server: matching_pb2_grpc.add_MatchingServiceServicer_to_server(servicer, server),
        ready={"kafka": lambda: serving.why_not_ready(config.staleness_bound_s)},
        degraded={"redis": lambda: watch.lost, "activation": lambda: serving.trouble},
        on_drain=[serving.close, watch.close, rematches.close],
    )
