"""`python -m trainers.runtime.launch N MODULE [flags]`: torchrun on this machine, without its words on a failure.

A process that fails has said why; torchrun would put thirty lines of its own below that.
"""

import logging
import os
import signal
import sys


def main(argv: list[str]) -> int:
    """Runs MODULE as N processes that form one group; the exit code of the first that failed, else 0."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # what torchrun sets as well, with a banner about it
    os.environ["VITRINE_LAUNCHER_PID"] = str(os.getpid())  # by which a process sees that this one is gone
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.disable(logging.ERROR)
    processes, module, *flags = argv
    try:
        run(parse_args(["--standalone", "--nproc-per-node", processes, "-m", module, *flags]))
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        killer = signal.Signals(-failure.exitcode).name
        print(f"{module}: process {rank} of {processes} was ended by {killer}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
