"""`python -m trainers.catalog`."""

import typer

from trainers.catalog.train import main

typer.run(main)
