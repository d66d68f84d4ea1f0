"""A service with a stopwatch around its parts: `python -m loadtest.timed FILE MODULE [ARGUMENTS]`.

CPU time of the thread (not wall time, which counts the waits for the interpreter's lock) that a call spends in
deserialising, in the behaviour, in its native kernel or its Redis read, and in serialising; written to FILE as JSON
when the service ends. What the process uses beyond is gRPC: its threads, the interceptor, metrics. The stopwatch
costs a few microseconds a call itself, so a timed server serves for this alone.
"""

import atexit
import importlib
import json
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

# Inside the behaviours. What is not there, since the service does not use it, is passed over.
_INSIDE = {
    "vitrine.native:tower_pctr": "kernel",
    "vitrine.native:hamming_topk": "kernel",
    "vitrine.matching.answer:from_record": "protobuf",
    "vitrine.matching.store:Store.read_list": "store",
}


class Stopwatch:
    """CPU seconds and calls by part."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._calls: dict[str, int] = {}

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to `part`."""

        def timed(*arguments: Any, **named: Any) -> Any:
            begin = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                took = time.thread_time() - begin
                with self._lock:
                    self._seconds[part] = self._seconds.get(part, 0.0) + took
                    self._calls[part] = self._calls.get(part, 0) + 1

        return timed

    def write(self, file: Path) -> None:
        file.write_text(json.dumps({"seconds": self._seconds, "calls": self._calls}) + "\n")


def install(watch: Stopwatch) -> None:
    """Put the stopwatch around every method that is registered from now on, and around what is in _INSIDE."""
    make = grpc.unary_unary_rpc_method_handler

    def handler(behaviour: Any, request_deserializer: Any = None, response_serializer: Any = None) -> Any:
        if request_deserializer is None:  # the interceptor's own, around one that was made below
            return make(behaviour, request_deserializer, response_serializer)
        serialiser = watch.around("serialise", response_serializer) if response_serializer else None
        return make(
            watch.around("behaviour", behaviour),
            request_deserializer=watch.around("deserialise", request_deserializer),
            response_serializer=serialiser,
        )

    grpc.unary_unary_rpc_method_handler = handler  # type: ignore[assignment]
    for place, part in _INSIDE.items():
        module_name, path = place.split(":")
        *outer, name = path.split(".")
        holder: Any = importlib.import_module(module_name)
        for each in outer:
            holder = getattr(holder, each)
        setattr(holder, name, watch.around(part, getattr(holder, name)))


def main() -> None:
    """Run the module under the stopwatch."""
    file, module, *arguments = sys.argv[1:]
    watch = Stopwatch()
    install(watch)
    atexit.register(watch.write, Path(file))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
