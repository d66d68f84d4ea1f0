"""`python -m trainers.softmax`, under torchrun or alone."""

import typer

from trainers.softmax.job import main

typer.run(main)
