"""The ctr server: settings, servicer, watch the store, serve, drain."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, model_validator

from services.ctr.loading import Loader
from services.ctr.servicer import CtrServicer
from vitrine.api.ctr.v1 import ctr_pb2_grpc
from vitrine.artifacts import ArtifactError, ArtifactStore, Watcher
from vitrine.ctr import model
from vitrine.errors import UnavailableError
from vitrine.runtime import logs, settings
from vitrine.runtime.server import serve


class CtrSettings(settings.Settings):
    """What the ctr server can be told."""

    ref: str = Field("stable", min_length=1, description="Ref of the ctr-model artifact to follow.")
    poll_s: float = Field(1, gt=0, description="Time between looks whether the ref names another version.")
    cache: Path | None = Field(None, description="Folder for fetched artifacts; the user's cache folder if unset.")

    @model_validator(mode="after")
    def _complete(self) -> "CtrSettings":
        if not self.store:
            raise ValueError("--store (or VITRINE_STORE) is required")
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM; the exit status."""
    config = settings.load(CtrSettings, argv, prog="python -m services.ctr")
    logs.setup(config.log_level, "ctr")
    try:
        store = ArtifactStore(config.store, namespace=config.namespace, cache=config.cache)
    except (ArtifactError, UnavailableError) as error:
        print(f"python -m services.ctr: {error}", file=sys.stderr)
        return 1
    loader = Loader()
    watcher = Watcher(
        store,
        model.KIND,
        loader.load,
        max_schema=model.SCHEMA,
        ref=config.ref,
        interval_s=config.poll_s,
        on_refused=loader.note_refusal,
    )
    return serve(
        config,
        "ctr",
        lambda server: ctr_pb2_grpc.add_CtrServiceServicer_to_server(CtrServicer(loader), server),
        ready={"model": lambda: loader.why_not_ready},
        degraded={"model_version": lambda: loader.refusal},
        on_drain=[watcher.close],
    )
