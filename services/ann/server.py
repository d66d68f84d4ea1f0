"""The ann server: settings, follow the index, serve, drain."""

import sys
from collections.abc import Sequence

from services.ann.loading import load
from services.ann.servicer import AnnServicer
from vitrine.ann import index
from vitrine.api.ann.v1 import ann_pb2_grpc
from vitrine.artifacts import ArtifactError
from vitrine.errors import UnavailableError
from vitrine.runtime import logs, settings
from vitrine.runtime.follow import Followed, FollowSettings, open_store
from vitrine.runtime.server import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM; the exit status."""
    config = settings.load(FollowSettings, argv, prog="python -m services.ann")
    logs.setup(config.log_level, "ann")
    try:
        store = open_store(config)
    except (ArtifactError, UnavailableError) as error:
        print(f"python -m services.ann: {error}", file=sys.stderr)
        return 1
    followed = Followed(
        config, store, index.KIND, lambda artifact: load(artifact, store), max_schema=index.SCHEMA, trainer="bdg"
    )
    servicer = AnnServicer(followed, threads=config.threads)
    return serve(
        config,
        "ann",
        lambda server: ann_pb2_grpc.add_AnnServiceServicer_to_server(servicer, server),
        ready={"index": lambda: followed.why_not_ready},
        degraded={"index_version": lambda: followed.refusal},
        on_drain=[followed.close],
    )
