"""`python -m services.matching worker` and `python -m services.matching server`."""

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
    print(
        "usage: python -m services.matching worker|server [flags]; --help after the role lists them",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
