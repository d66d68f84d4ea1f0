"""`vitrine index`: which index an alias stands for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from vitrine.artifacts import ArtifactError, ArtifactStore, aliases
from vitrine.cli.artifacts import AsJson, Namespace, Store
from vitrine.errors import UnavailableError
from vitrine.runtime import audit

app = typer.Typer(help="Say which index a name stands for.", no_args_is_help=True)
alias_app = typer.Typer(help="Switch an alias to another index, and back.", no_args_is_help=True)
app.add_typer(alias_app, name="alias")

Alias = Annotated[str, typer.Argument(help="name that callers ask for, such as shop")]


@alias_app.command("set")
def set_alias(
    alias: Alias,
    index: Annotated[str, typer.Argument(help="artifact that it stands for, such as binary-index-b")],
    store: Store = "",
    namespace: Namespace = "",
) -> None:
    """Let an alias stand for an index; running services follow it.

    Examples:

        vitrine index alias set shop binary-index --store ./artifacts
    """
    with _opened(store, namespace) as artifacts:
        with audit.recorded("aliases.set", alias, namespace=namespace, store=store, index=index) as told:
            told["before"] = aliases.set_alias(artifacts, alias, index)
        typer.echo(f"{alias} is {index}" + (f", was {told['before']}" if told["before"] else ""))


@alias_app.command("list")
def list_aliases(store: Store = "", namespace: Namespace = "", as_json: AsJson = False) -> None:
    """List aliases, what each stands for, and what it stood for before.

    Examples:

        vitrine index alias list --store ./artifacts
    """
    with _opened(store, namespace) as artifacts:
        found = aliases.read(artifacts)
        if as_json:
            typer.echo(json.dumps({name: {"index": kept[0], "before": kept[1:]} for name, kept in found.items()}))
            return
        for name, kept in found.items():
            typer.echo(f"{name}  {kept[0]}" + (f"  before: {', '.join(kept[1:])}" if kept[1:] else ""))
        if not found:
            typer.echo(f"no alias in {artifacts.root}" + (f", namespace {namespace}" * bool(namespace)))


@alias_app.command("remove")
def remove(alias: Alias, store: Store = "", namespace: Namespace = "") -> None:
    """Let an alias stand for nothing; calls that name it get NOT_FOUND.

    Examples:

        vitrine index alias remove shop --store ./artifacts
    """
    with _opened(store, namespace) as artifacts:
        with audit.recorded("aliases.remove", alias, namespace=namespace, store=store):
            aliases.remove(artifacts, alias)
        typer.echo(f"{alias} is removed")


@alias_app.command("rollback")
def rollback(alias: Alias, store: Store = "", namespace: Namespace = "") -> None:
    """Let an alias stand for the index before; a second time goes forward again.

    Examples:

        vitrine index alias rollback shop --store ./artifacts
    """
    with _opened(store, namespace) as artifacts:
        with audit.recorded("aliases.rollback", alias, namespace=namespace, store=store) as told:
            told["index"] = aliases.rollback(artifacts, alias)
        typer.echo(f"{alias} is {told['index']}")


@contextmanager
def _opened(store: str, namespace: str) -> Iterator[ArtifactStore]:
    """The store; its errors become one line on stderr and exit code 1."""
    try:
        yield ArtifactStore(store, namespace=namespace)
    except (ArtifactError, UnavailableError) as error:
        typer.echo(f"vitrine index: {error}", err=True)
        raise typer.Exit(1) from error
