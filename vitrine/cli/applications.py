"""How services and trainers are started: by module name, with the applications' root on the path."""

import os
from itertools import pairwise
from pathlib import Path

import typer

from vitrine.artifacts import ArtifactStore

SERVICES = {
    "ann": ["services.ann"],
    "ann-router": ["services.ann.router"],
    "matching": ["services.matching", "server"],
    "matching-clock": ["services.matching", "clock"],
    "ctr": ["services.ctr"],
    "console": ["services.console"],
}
DISTRIBUTED = ("des", "softmax")
PLAIN = ("bdg", "catalog")
EXPERIMENTS = ("truncation",)


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


def published_kinds(trainer: str) -> tuple[str, ...]:
    """What a trainer publishes, its last artifact last."""
    # Not at the top: the rooms need the extension, and `vitrine doctor` must run to say that it does not load.
    from vitrine.ann import embeddings, index
    from vitrine.ctr import model
    from vitrine.matching import catalog

    return {
        "catalog": (catalog.KIND,),
        "des": (model.KIND, model.TOWERS_KIND),
        "softmax": (embeddings.KIND,),
        "bdg": (index.KIND,),
    }[trainer]


def already_published(trainer: str, flags: list[str]) -> str | None:
    """`name version` of all that a trainer publishes, where the store has a stable version of each; else None.

    flags: the trainer's own. Raises ArtifactError, UnavailableError.
    """
    folder = _given(flags, "store")
    if not folder:
        return None  # the trainer says so
    store = ArtifactStore(folder, namespace=_given(flags, "namespace"))
    served = {name: store.refs(name).get("stable") for name in published_kinds(trainer)}
    return ", ".join(f"{name} {version}" for name, version in served.items()) if all(served.values()) else None


def _given(flags: list[str], name: str) -> str:
    """The value of `--name VALUE` or `--name=VALUE`, else of the variable VITRINE_NAME."""
    for flag, following in pairwise([*flags, ""]):
        if flag == f"--{name}":
            return following
        if flag.startswith(f"--{name}="):
            return flag.partition("=")[2]
    return os.environ.get(f"VITRINE_{name.upper()}", "")
