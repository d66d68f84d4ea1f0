"""The console's process: settings, backend, application, serve, drain."""

import sys
from collections.abc import Sequence

from services.console.app import Console
from services.console.backend import Backend
from services.console.settings import ConsoleSettings
from vitrine.artifacts import ArtifactError
from vitrine.channels import Security
from vitrine.client import VitrineError
from vitrine.errors import UnavailableError
from vitrine.runtime import logs, settings
from vitrine.runtime.http import HttpFront
from vitrine.runtime.lifecycle import Lifecycle, run


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the console until SIGTERM; the exit status."""
    config = settings.load(ConsoleSettings, argv, prog="python -m services.console")
    logs.setup(config.log_level, "console")
    try:
        backend = Backend(config, Security.from_environment())
    except (ArtifactError, UnavailableError, VitrineError, ValueError) as error:
        print(f"python -m services.console: {error}", file=sys.stderr)
        return 1
    process = Lifecycle(
        config,
        "console",
        HttpFront(config, Console(backend).application),
        degraded={
            "catalog": lambda: backend.names.trouble or None,
            "photos": lambda: backend.photos.trouble or None,
        },
        on_drain=[backend.close],
    )
    return run(process)
