"""The ann server: settings, servicer, watch the store, serve, drain."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from services.ann.loading import Loader
from services.ann.servicer import AnnServicer
from vitrine.ann import index
from vitrine.api.ann.v1 import ann_pb2_grpc
from vitrine.artifacts import ArtifactError, ArtifactStore, Watcher
from vitrine.errors import UnavailableError
from vitrine.runtime import logs, settings
from vitrine.runtime.server import serve


class AnnSettings(settings.Settings):
    """What the ann server can be told."""

    ref: str = Field("stable", min_length=1, description="Ref of the binary-index artifact to follow.")
    poll_s: float = Field(1, gt=0, description="Time between looks whether the ref names another version.")
    cache: Path | None = Field(None, description="Folder for fetched artifacts; the user's cache folder if unset.")

    @model_validator(mode="after")
    def _complete(self) -> "AnnSettings":
        if not self.store:
            raise ValueError("--store (or VITRINE_STORE) is required")
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM; the exit status."""
    config = settings.load(AnnSettings, argv, prog="python -m services.ann")
    logs.setup(config.log_level, "ann")
    try:
        store = ArtifactStore(config.store, namespace=config.namespace, cache=config.cache)
    except (ArtifactError, UnavailableError) as error:
        print(f"python -m services.ann: {error}", file=sys.stderr)
        return 1
    loader = Loader(store)
    servicer = AnnServicer(loader, threads=config.threads)
    watcher = Watcher(
        store,
        index.KIND,
        loader.load,
        max_schema=index.SCHEMA,
        ref=config.ref,
        interval_s=config.poll_s,
        on_refused=loader.note_refusal,
    )
    return serve(
        config,
        "ann",
        lambda server: ann_pb2_grpc.add_AnnServiceServicer_to_server(servicer, server),
        ready={"index": lambda: loader.why_not_ready},
        degraded={"index_version": lambda: loader.refusal},
        on_drain=[watcher.close],
    )
