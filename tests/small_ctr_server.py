"""A real CtrService process with answers that tests can count on; they start it, and call it over TCP.

The candidate decides what happens: 0 is a bad field, 404 is not found, 503 is unavailable, 500 is a bug with a
secret in its message, 1,000,000 + t answers after t milliseconds (t below a million); of any other ad a the click
probability is 1 / a.
"""

from __future__ import annotations

import contextlib
import json
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vitrine.api.ctr.v1 import ctr_pb2, ctr_pb2_grpc
from vitrine.errors import FieldError, NotFoundError, UnavailableError
from vitrine.runtime import settings
from vitrine.runtime.server import serve

SERVICE = "vitrine.api.ctr.v1.CtrService"


class Settings(settings.Settings):
    """The small ctr server of the tests."""

    load_ms: int = 0


class SmallCtr(ctr_pb2_grpc.CtrServiceServicer):
    """Answers by candidate, and notes the calls it began."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def Score(self, request, context):  # noqa: N802
        ads = list(request.ad_ids)
        self.calls.append(ads)
        for position, ad in enumerate(ads):
            if ad == 0:
                raise FieldError(f"ad_ids[{position}]", "0 is reserved; ids are 1 or more")
            if ad == 404:
                raise NotFoundError("no ad 404")
            if ad == 503:
                raise UnavailableError("no model is loaded yet")
            if ad == 500:
                raise RuntimeError("secret of the house")
            if 1_000_000 <= ad < 2_000_000:
                time.sleep((ad - 1_000_000) / 1000)
        return ctr_pb2.ScoreResponse(version="small-1", pctrs=[1 / ad for ad in ads], unknown_ads=1)


@dataclass
class Running:
    """A server process that listens at `address`; its metrics page is at `metrics`, its health port at `health`."""

    process: subprocess.Popen
    address: str
    metrics: str
    health: str
    log: Path
    tls: ssl.SSLContext | None = None  # what the metrics page is asked with, where it speaks TLS

    def page(self) -> str:
        address = f"{'http' if self.tls is None else 'https'}://{self.metrics}/metrics"
        with urllib.request.urlopen(address, timeout=10, context=self.tls) as answer:  # noqa: S310
            return answer.read().decode()

    def sample(self, name: str, **labels: str) -> float:
        """Sum of the samples of `name` that carry `labels`."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        rows = [line.rsplit(" ", 1) for line in self.page().splitlines() if line.startswith(name + "{")]
        return sum(float(value) for labelled, value in rows if all(w in labelled for w in wanted))


@contextlib.contextmanager
def running(tmp_path: Path, *flags: str) -> Iterator[Running]:
    """Starts the server and ends it with the block, whatever became of it meanwhile."""
    log = tmp_path / f"server-{time.monotonic_ns()}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.small_ctr_server", *flags],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
    try:
        line = process.stdout.readline()
        assert line, f"the server did not start: {log.read_text()}"
        said = json.loads(line)
        yield Running(process, said["address"], said["metrics"], said["health"], log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stdout.close()


def main() -> int:
    own = settings.load(Settings, prog="small-ctr")
    begin, small = time.monotonic(), SmallCtr()

    def model() -> str | None:
        return None if time.monotonic() - begin >= own.load_ms / 1000 else "still loading"

    return serve(
        own, "ctr", lambda to: ctr_pb2_grpc.add_CtrServiceServicer_to_server(small, to), ready={"model": model}
    )


if __name__ == "__main__":
    sys.exit(main())
