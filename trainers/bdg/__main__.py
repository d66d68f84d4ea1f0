"""`python -m trainers.bdg`."""

import typer

from trainers.bdg.command import main

typer.run(main)
