"""How services and trainers are started: by module name, with the applications' root on the path."""

import os
from pathlib import Path

import typer

SERVICES = {"ann": ["services.ann"], "matching": ["services.matching", "server"], "ctr": ["services.ctr"]}
DISTRIBUTED = ("des", "softmax")
PLAIN = ("bdg", "catalog")


def applications_root() -> Path:
    """The folder that holds `services/` and `trainers/`: the checkout, or the image's root.

    Raises typer.Exit(2) where there is none: the bare wheel has the library alone.
    """
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "services" / "__init__.py").is_file():
            return root
    typer.echo("vitrine: services/ and trainers/ are not here; run in a checkout or in the image", err=True)
    raise typer.Exit(2)


def application_environment() -> dict[str, str]:
    """This process's environment with the applications' root on the module path."""
    path = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(applications_root()), path]))}


def trainer_arguments(trainer: str, processes: int) -> list[str]:
    """Arguments of Python that start a trainer: under torchrun where it is a distributed program."""
    if trainer in DISTRIBUTED and processes > 1:
        return ["-m", "trainers.runtime.launch", str(processes), f"trainers.{trainer}"]
    return ["-m", f"trainers.{trainer}"]
