"""The `vitrine` command: starts services and trainers by module name, and holds the operator's tools."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from vitrine.artifacts import ArtifactError
from vitrine.cli.ads import app as ads_app
from vitrine.cli.applications import (
    DISTRIBUTED,
    EXPERIMENTS,
    PLAIN,
    SERVICES,
    already_published,
    application_environment,
    trainer_arguments,
)
from vitrine.cli.artifacts import app as artifacts_app
from vitrine.cli.callers import app as callers_app
from vitrine.cli.data import app as data_app
from vitrine.cli.deadletters import app as deadletters_app
from vitrine.cli.demo import demo as run_demo
from vitrine.cli.doctor import doctor as run_doctor
from vitrine.cli.index import app as index_app
from vitrine.cli.replay import replay as run_replay
from vitrine.cli.topics import app as topics_app
from vitrine.cli.user import app as user_app
from vitrine.cli.workers import app as workers_app
from vitrine.errors import UnavailableError


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vitrine {version('vitrine-serving')}")
        raise typer.Exit


app = typer.Typer(
    name="vitrine",
    help="Serve display ads and visual search from logs, pictures and graphs.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
app.add_typer(artifacts_app, name="artifacts")
app.add_typer(index_app, name="index")
app.add_typer(topics_app, name="topics")
app.add_typer(ads_app, name="ads")
app.add_typer(data_app, name="data")
app.add_typer(callers_app, name="callers")
app.add_typer(user_app, name="user")
app.add_typer(deadletters_app, name="deadletters")
app.add_typer(workers_app, name="workers")
app.command("replay")(run_replay)
app.command("demo")(run_demo)
app.command("doctor")(run_doctor)


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# Everything after the name belongs to the process that is started, --help too.
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def _become(arguments: list[str]) -> None:
    """Replace this process, so that signals and the exit code are the application's own."""
    environment = application_environment()
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *arguments], environment)  # noqa: S606


def _choose(name: str, names: tuple[str, ...], what: str) -> None:
    if name not in names:
        raise typer.BadParameter(f"{name!r} is not a {what}: choose from {', '.join(names)}")


@app.command(context_settings=_PASS_ON)
def serve(
    context: typer.Context,
    service: Annotated[str, typer.Argument(help="ann, ann-router, matching, matching-clock, ctr or console")],
) -> None:
    """Start a gRPC service, or the console. Flags after its name are its own; each is a VITRINE_ variable too.

    Examples:

        vitrine serve ann --store ./store --port 7001

        vitrine serve ann-router --port 7005 --shards '127.0.0.1:7001,127.0.0.1:7011;127.0.0.1:7021'

        vitrine serve matching --store ./store --redis-url redis://127.0.0.1:6379 --kafka-url kafka://127.0.0.1:9092

        vitrine serve console --port 7004 --matching-address 127.0.0.1:7002 --store ./store

        vitrine serve ctr --help
    """
    _choose(service, tuple(SERVICES), "service")
    module, *role = SERVICES[service]
    _become(["-m", module, *role, *context.args])


@app.command(context_settings=_PASS_ON, add_help_option=False)
def work(context: typer.Context) -> None:
    """Start a matching worker: it applies user events and keeps every user's ad list fresh."""
    _become(["-m", "services.matching", "worker", *context.args])


@app.command(context_settings=_PASS_ON, add_help_option=False)
def loadtest(context: typer.Context) -> None:
    """Bring the whole system up on this machine and load it: knees, latencies, where the time goes."""
    _become(["-m", "loadtest", *context.args])


@app.command(context_settings=_PASS_ON)
def experiment(context: typer.Context, experiment: Annotated[str, typer.Argument(help="truncation")]) -> None:
    """Run an experiment on simulated markets. Flags after its name are its own.

    Example:

        vitrine experiment truncation --quick
    """
    _choose(experiment, EXPERIMENTS, "experiment")
    _become(["-m", f"experiments.{experiment}", *context.args])


@app.command(context_settings=_PASS_ON)
def train(
    context: typer.Context,
    trainer: Annotated[str, typer.Argument(help="des, softmax, bdg or catalog")],
    processes: Annotated[
        int, typer.Option(min=1, max=1024, help="processes of des and softmax on this machine")
    ] = 2,
    once: Annotated[
        bool, typer.Option("--once", help="do nothing where the store has what the trainer publishes")
    ] = False,
) -> None:
    """Run a trainer; it ends in a published artifact. These options stand before its name, its own flags after.

    Examples:

        vitrine train catalog --market ./market --store ./store

        vitrine train --processes 2 des --market ./market --store ./store

        vitrine train softmax --images ./market/images.parquet --store ./store

        vitrine train bdg --store ./store

        vitrine train des --help
    """
    _choose(trainer, DISTRIBUTED + PLAIN, "trainer")
    if "--help" in context.args:
        processes = 1  # one of them tells it
    elif once:
        try:
            published = already_published(trainer, context.args)
        except (ArtifactError, UnavailableError) as error:
            typer.echo(f"vitrine train: {error}", err=True)
            raise typer.Exit(1) from None
        if published:
            typer.echo(f"{trainer}: {published} is there already")
            return
    _become([*trainer_arguments(trainer, processes), *context.args])


def main() -> None:
    """Entry point of the `vitrine` script."""
    app()
