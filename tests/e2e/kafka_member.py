"""A consumer in a process of its own, for tests that kill it: prints one JSON line an assignment."""

import json
import sys
from collections.abc import Mapping, Sequence

from vitrine.runtime.consume import ConsumerLoop, Record


class _Printer:
    def assigned(self, partitions: list[int]) -> Mapping[int, int]:
        print(json.dumps({"assigned": partitions}), flush=True)
        return dict.fromkeys(partitions, 0)

    def revoked(self, partitions: list[int]) -> None:
        print(json.dumps({"revoked": partitions}), flush=True)

    def batch(self, records: Mapping[int, Sequence[Record]]) -> None:
        pass

    def idle(self) -> None:
        pass


if __name__ == "__main__":
    url, topic, group, member = sys.argv[1:]
    ConsumerLoop(url, topic, group, _Printer(), member=member).run()
