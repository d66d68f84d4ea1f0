"""`python -m trainers.bdg`."""

import typer

from trainers.bdg.train import main

typer.run(main)
