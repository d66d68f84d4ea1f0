"""`python -m experiments.truncation`."""

import typer

from experiments.truncation.command import main

if __name__ == "__main__":
    typer.run(main)
