"""The router's process: settings, channels to the replicas, serve, drain."""

import sys
from collections.abc import Sequence

from services.ann.router.servicer import RouterServicer
from services.ann.router.settings import RouterSettings, parse_shards
from services.ann.router.shards import Fleet
from vitrine.api.ann.v1 import ann_pb2_grpc
from vitrine.channels import Security
from vitrine.runtime import logs, settings
from vitrine.runtime.server import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the router until SIGTERM; the exit status."""
    config = settings.load(RouterSettings, argv, prog="python -m services.ann.router")
    logs.setup(config.log_level, "ann-router")
    try:
        fleet = Fleet(parse_shards(config.shards), Security.from_environment(), look_s=config.look_s)
    except ValueError as error:  # a file of VITRINE_CLIENT_*
        print(f"python -m services.ann.router: {error}", file=sys.stderr)
        return 2
    servicer = RouterServicer(fleet, hedge_s=config.hedge_ms / 1000)
    return serve(
        config,
        "ann-router",
        lambda server: ann_pb2_grpc.add_AnnServiceServicer_to_server(servicer, server),
        ready={"shards": lambda: fleet.why_not_ready},
        degraded={"shards": lambda: fleet.degraded},
        on_drain=[fleet.close],
    )
