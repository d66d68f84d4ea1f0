"""The ann server: settings, follow the indexes and their log, serve, drain."""

import sys
from collections.abc import Sequence

from services.ann import engines
from services.ann.indexes import Indexes
from services.ann.servicer import AnnServicer
from services.ann.settings import AnnSettings
from services.ann.updates import Writer
from vitrine.api.ann.v1 import ann_pb2_grpc
from vitrine.artifacts import ArtifactError
from vitrine.errors import UnavailableError
from vitrine.runtime import logs, settings
from vitrine.runtime.follow import open_store
from vitrine.runtime.server import serve


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM; the exit status."""
    config = settings.load(AnnSettings, argv, prog="python -m services.ann")
    logs.setup(config.log_level, "ann")
    try:
        engines.check(config.engine)
        indexes = Indexes(config, open_store(config))
    except (engines.EngineError, ArtifactError, UnavailableError) as error:
        print(f"python -m services.ann: {error}", file=sys.stderr)
        return 1
    writer = Writer(config.kafka_url, config.namespace) if config.kafka_url else None
    servicer = AnnServicer(
        indexes.served,
        writer,
        batches=config.batches,
        exact=config.engine != "graph",
        threads=config.threads,
    )
    return serve(
        config,
        "ann",
        lambda server: ann_pb2_grpc.add_AnnServiceServicer_to_server(servicer, server),
        ready={"index": indexes.why_not_ready},
        degraded={"index_version": indexes.refusal, "updates": indexes.trouble},
        on_drain=[indexes.close, *([writer.close] if writer is not None else [])],
    )
