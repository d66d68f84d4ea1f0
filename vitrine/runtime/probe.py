"""`python -m vitrine.runtime.probe [HOST:PORT]`: asks a process's health port once; for containers' health checks.

Not a command of `vitrine`: that takes 1.3 s to import all it can do, this 0.2 s, and it runs every few seconds.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from vitrine.runtime.health import is_serving


def main(argv: Sequence[str] | None = None) -> int:
    """0 where the process says SERVING, else 1 and a line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m vitrine.runtime.probe", description=__doc__)
    parser.add_argument(
        "address",
        nargs="?",
        default=f"127.0.0.1:{os.environ.get('VITRINE_HEALTH_PORT', '')}",
        help="health port, by default this machine's VITRINE_HEALTH_PORT",
    )
    parser.add_argument("--service", default="", help="'live', or a gRPC service; by default the whole process")
    asked = parser.parse_args(argv)
    if asked.address.endswith(":"):
        parser.error("say which address, or set VITRINE_HEALTH_PORT")
    if is_serving(asked.address, asked.service):
        return 0
    print(f"{asked.address}: not serving {asked.service}".rstrip(), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
