"""Where a call's CPU time goes: gRPC, protobuf, the kernel or the store, the rest of the behaviour."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import cores


@dataclass(frozen=True)
class Shares:
    """Microseconds of CPU a call. `grpc` is what the process used beyond its methods.


    protobuf:  deserialise, fill from a stored record, serialise
    kernel:    native code, which has released the interpreter's lock
    store:     the Redis read
    system:    what of the total the operating system used
    behaviour: the rest of the servicer
    """

    total: float
    system: float
    protobuf: float
    kernel: float
    store: float
    behaviour: float

    @property
    def grpc(self) -> float:
        return max(0.0, self.total - self.protobuf - self.kernel - self.store - self.behaviour)

    def summary(self) -> dict[str, Any]:
        """us a call, and each part's share of the total."""
        parts = {n: getattr(self, n) for n in ("grpc", "protobuf", "kernel", "store", "behaviour")}
        return {
            "us_per_call": round(self.total, 1),
            **{f"share_{name}": round(us / self.total, 3) if self.total else 0.0 for name, us in parts.items()},
            "share_system": round(self.system / self.total, 3) if self.total else 0.0,
        }


def measure(pid: int, file: Path, drive: Callable[[], object], end: Callable[[], object]) -> Shares:
    """Drive a timed service (`loadtest.timed`, writing `file`), end it and read its stopwatch."""
    user, system = cores.cpu_seconds(pid)
    drive()
    user_after, system_after = cores.cpu_seconds(pid)
    end()
    watch = json.loads(file.read_text())
    seconds, calls = watch["seconds"], max(1, watch["calls"].get("serialise", 0))

    def us(*parts: str) -> float:
        return float(sum(seconds.get(part, 0.0) for part in parts) / calls * 1e6)

    inside = us("kernel", "store", "protobuf")
    return Shares(
        total=(user_after - user + system_after - system) / calls * 1e6,
        system=(system_after - system) / calls * 1e6,
        protobuf=us("deserialise", "protobuf", "serialise"),
        kernel=us("kernel"),
        store=us("store"),
        behaviour=max(0.0, us("behaviour") - inside),
    )
