"""The limit: a gRPC server in Python that answers ready-made bytes, on the runtime of every service."""

import os
import sys
from collections.abc import Sequence

import grpc
from pydantic import Field

from vitrine.runtime import logs, settings
from vitrine.runtime.server import serve
from vitrine.runtime.settings import Settings


class EchoSettings(Settings):
    """What the echo server can be told."""

    answer_bytes: int = Field(2_500, ge=1, description="Size of every answer.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM; the exit status."""
    config = settings.load(EchoSettings, argv, prog="python -m loadtest.echo")
    logs.setup(config.log_level, "echo")
    answer = os.urandom(config.answer_bytes)

    def call(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=bytes,  # the interceptor wraps what has one
        response_serializer=None,
    )
    generic = grpc.method_handlers_generic_handler("vitrine.loadtest.Echo", {"Call": handler})
    return serve(config, "echo", lambda server: server.add_generic_rpc_handlers((generic,)))


if __name__ == "__main__":
    sys.exit(main())
