"""The ctr server: settings, follow the model, serve, drain."""

import sys
from collections.abc import Sequence

from services.ctr.loading import load
from services.ctr.servicer import CtrServicer
from vitrine.api.ctr.v1 import ctr_pb2_grpc
from vitrine.artifacts import ArtifactError
from vitrine.ctr import model
from vitrine.errors import UnavailableError
from vitrine.runtime import logs, settings
from vitrine.runtime.follow import Followed, FollowSettings, open_store
from vitrine.runtime.server import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM; the exit status."""
    config = settings.load(FollowSettings, argv, prog="python -m services.ctr")
    logs.setup(config.log_level, "ctr")
    try:
        store = open_store(config)
    except (ArtifactError, UnavailableError) as error:
        print(f"python -m services.ctr: {error}", file=sys.stderr)
        return 1
    followed = Followed(config, store, model.KIND, load, max_schema=model.SCHEMA, trainer="des")
    return serve(
        config,
        "ctr",
        lambda server: ctr_pb2_grpc.add_CtrServiceServicer_to_server(CtrServicer(followed), server),
        ready={"model": lambda: followed.why_not_ready},
        degraded={"model_version": lambda: followed.refusal},
        on_drain=[followed.close],
    )
