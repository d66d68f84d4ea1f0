"""`python -m trainers.des`, or `torchrun --standalone --nproc-per-node 2 -m trainers.des`."""

import sys

import typer

from trainers.des.main import main

try:
    typer.run(main)
except KeyboardInterrupt:
    sys.exit(130)
