"""`python -m services.matching worker`, `server` and `clock`."""

import sys


def main(argv: list[str]) -> int:
    """Runs the role named first; the flags after it are its own."""
    role, flags = (argv[0], argv[1:]) if argv else ("", [])
    if role == "worker":
        from services.matching import worker

        return worker.main(flags)
    if role == "server":
        from services.matching import server

        return server.main(flags)
    if role == "clock":
        from services.matching import clock

        return clock.main(flags)
    print(
        "usage: python -m services.matching worker|server|clock [flags]; --help after the role lists them",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
