"""The limit: a gRPC server in Python that answers ready-made bytes, on the runtime of every service."""

import os
import sys
from collections.abc import Sequence

import grpc
from google.protobuf import descriptor_pool, empty_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, MethodOptions
from pydantic import Field

from vitrine.runtime import logs, settings
from vitrine.runtime.server import serve
from vitrine.runtime.settings import Settings

SERVICE = "vitrine.loadtest.Echo"


def declare() -> None:
    """Says what the method is, as a proto would: one that only reads, which is not audited."""
    file = FileDescriptorProto(name="vitrine/loadtest/echo.proto", package="vitrine.loadtest", syntax="proto3")
    file.dependency.append(empty_pb2.DESCRIPTOR.name)
    method = file.service.add(name="Echo").method.add(name="Call")
    method.input_type = method.output_type = ".google.protobuf.Empty"
    method.options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


class EchoSettings(Settings):
    """What the echo server can be told."""

    answer_bytes: int = Field(2_500, ge=1, description="Size of every answer.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server until SIGTERM; the exit status."""
    config = settings.load(EchoSettings, argv, prog="python -m loadtest.echo")
    logs.setup(config.log_level, "echo")
    declare()
    answer = os.urandom(config.answer_bytes)

    def call(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=bytes,  # the interceptor wraps what has one
        response_serializer=None,
    )
    generic = grpc.method_handlers_generic_handler(SERVICE, {"Call": handler})
    return serve(config, "echo", lambda server: server.add_generic_rpc_handlers((generic,)))


if __name__ == "__main__":
    sys.exit(main())
