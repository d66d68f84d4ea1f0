"""A distributed trainer's command line, from its flags to its exit code."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import typer


def run(main: Callable[..., Any]) -> NoReturn:
    """Run `main` with this process's flags; end with its exit code, without taking the interpreter down.

    torch's threads live on after the process group. One that comes for the interpreter while that is being taken
    down is ended in the middle of C++, which aborts the process: about one job in forty ended so, its work done.
    """
    try:
        typer.run(main)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
