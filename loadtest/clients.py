"""Generator processes: each holds its connections open and runs the steps it is told, a JSON line each way.

`Fleet` starts them and adds up what they measured; `python -m loadtest.clients` is one of them. It ends when its
standard input does, so none outlives whoever started it.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from loadtest import engine, traffic
from loadtest.measured import Measured, merge
from loadtest.traffic import Population, Targets
from vitrine.channels import Security
from vitrine.cli.system import RunError

WARM_S = 0.3


AT_MOST_S = 300.0  # of a step that its driver does not end


class GeneratorError(RunError):
    """A generator process failed; the message is its last words."""


class Fleet:
    """`processes` generators that share a rate. Safe for one caller at a time; `close` ends them."""

    def __init__(
        self,
        targets: Targets,
        *,
        processes: int = 1,
        cores: Sequence[int] = (),
        market: Path | None = None,
        users: int = 0,
        seed: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        market: folder to draw users, ads and pictures from; without one, users and ads are 1 to `users`
        cores:  that the generators are kept on; all where empty
        """
        spec = {"targets": asdict(targets), "market": str(market) if market else "", "users": users}
        self._step = seed
        self._children = []
        for number in range(processes):
            child = subprocess.Popen(
                [sys.executable, "-m", "loadtest.clients"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=environment, start_new_session=True,  # a terminal's Ctrl-C is for whoever started them
            )  # fmt: skip
            self._children.append(child)
            self._tell(child, {**spec, "seed": seed + number, "cores": list(cores)})

    def open_loop(self, kind: str, rate: float, seconds: float) -> Measured:
        """One step; every step draws its send times anew."""
        share = rate / len(self._children)
        return self._run({"kind": kind, "rate": share, "seconds": seconds})

    @contextmanager
    def driving(self, kind: str, rate: float) -> Iterator["Future[Measured]"]:
        """One step without a warm-up that lasts as long as the block; its result is there after it."""
        step = {"kind": kind, "rate": rate / len(self._children), "seconds": AT_MOST_S, "warm_s": 0.0}
        with ThreadPoolExecutor(1, thread_name_prefix="load") as pool:
            driven = pool.submit(self._run, step)
            try:
                yield driven
            finally:
                for child in self._children:
                    self._tell(child, {"stop": True})

    def closed_loop(self, kind: str, concurrency: int, seconds: float) -> Measured:
        """The throughput of `concurrency` callers in all."""
        share = max(1, concurrency // len(self._children))
        return self._run({"kind": kind, "concurrency": share, "seconds": seconds})

    def _run(self, step: dict[str, Any]) -> Measured:
        for number, child in enumerate(self._children):
            self._step += 1
            self._tell(child, {**step, "seed": self._step * 1000 + number})
        return merge([self._hear(child) for child in self._children])

    def _tell(self, child: "subprocess.Popen[str]", message: dict[str, Any]) -> None:
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(message) + "\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise GeneratorError(_last_words(child)) from None

    def _hear(self, child: "subprocess.Popen[str]") -> Measured:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise GeneratorError(_last_words(child))
        answer = json.loads(line)
        if "error" in answer:
            raise GeneratorError(answer["error"])
        return Measured.from_json(answer)

    def close(self) -> None:
        """End the generators."""
        for child in self._children:
            child.kill()
            child.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()


def _last_words(child: "subprocess.Popen[str]") -> str:
    _, said = child.communicate(timeout=10)
    return f"a generator ended with {child.returncode}: {said[-2000:]}"


def main() -> None:
    """Read what to drive, then a step a line; write what each measured. A line "stop" ends the step under way."""
    sys.setswitchinterval(0.0005)  # the thread that sends must not wait 5 ms for the one that receives
    spec = json.loads(sys.stdin.readline())
    if spec["cores"]:
        os.sched_setaffinity(0, spec["cores"])
    generator = _Generator(spec)
    stopped = threading.Event()
    for line in sys.stdin:
        step = json.loads(line)
        if "stop" in step:
            stopped.set()
        else:
            stopped.clear()
            threading.Thread(target=generator.run, args=(step, stopped), daemon=True).start()
    os._exit(0)  # no join of channels and pools: nobody waits for their calls any more


class _Generator:
    """What one process drives; the calls of a kind, and their connections, are made when first asked for."""

    def __init__(self, spec: dict[str, Any]) -> None:
        everyone = np.arange(1, spec["users"] + 1, dtype=np.uint64)
        market = spec["market"]
        self._people = Population.of_market(Path(market)) if market else Population(everyone, everyone)
        self._targets, self._security = Targets(**spec["targets"]), Security.from_environment()
        self._seed = spec["seed"]
        self._calls: dict[str, traffic.Bytes | traffic.Flow] = {}

    def run(self, step: dict[str, Any], stopped: threading.Event) -> None:
        """Runs a step and writes its line."""
        try:
            answer = self._measure(step, stopped).to_json()
        except Exception as error:
            answer = {"error": f"{step['kind']}: {error!r}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    def _measure(self, step: dict[str, Any], stopped: threading.Event) -> Measured:
        kind = step["kind"]
        if kind not in self._calls:
            self._calls[kind] = traffic.build(
                kind, self._targets, self._people, seed=self._seed, security=self._security
            )
        call = self._calls[kind]
        before = call.events
        if "rate" in step:
            warm_s = step.get("warm_s", WARM_S)
            result = engine.open_loop(
                call, step["rate"], step["seconds"], seed=step["seed"], warm_s=warm_s, stopped=stopped.is_set
            )
        else:
            result = engine.closed_loop(call, step["concurrency"], step["seconds"])
        result.events = call.events - before
        return result


if __name__ == "__main__":
    main()
