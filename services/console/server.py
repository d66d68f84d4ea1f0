"""The console's process: settings, callers, backend, application, serve, drain."""

import sys
from collections.abc import Sequence

from services.console.app import Console
from services.console.backend import Backend
from services.console.settings import ConsoleSettings
from vitrine.artifacts import ArtifactError
from vitrine.channels import Security
from vitrine.errors import UnavailableError
from vitrine.runtime import callers, logs, settings
from vitrine.runtime.http import HttpFront
from vitrine.runtime.lifecycle import Lifecycle, run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the console until SIGTERM; the exit status."""
    config = settings.load(ConsoleSettings, argv, prog="python -m services.console")
    logs.setup(config.log_level, "console")
    try:
        backend = Backend(config, Security.from_environment())
    except (ArtifactError, UnavailableError, ValueError) as error:
        print(f"python -m services.console: {error}", file=sys.stderr)
        return 1
    known = callers.of_settings(config)
    process = Lifecycle(
        config,
        "console",
        HttpFront(config, Console(backend, known).application),
        callers=known,
        degraded={
            "catalog": lambda: backend.names.trouble,
            "photos": lambda: backend.photos.trouble,
            "catalog_version": lambda: backend.names.refusal,
            "photos_version": lambda: backend.photos.refusal,
        },
        on_drain=[backend.close],
    )
    return run(process)
