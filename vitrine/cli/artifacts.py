"""`vitrine artifacts`: what a store holds, whether it is whole, which version is served."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from vitrine.artifacts import ArtifactError, ArtifactStore, Manifest
from vitrine.cli.topics import KafkaUrl
from vitrine.errors import UnavailableError
from vitrine.runtime import audit

app = typer.Typer(help="Look into an artifact store, check it, roll back and prune.", no_args_is_help=True)

Store = Annotated[str, typer.Option("--store", envvar="VITRINE_STORE", help="folder or fsspec URL")]
Namespace = Annotated[str, typer.Option("--namespace", envvar="VITRINE_NAMESPACE", help="prefix of artifact names")]
Name = Annotated[str, typer.Argument(help="artifact, such as catalog or towers")]
Version = Annotated[str, typer.Argument(help="version or ref")]
Ref = Annotated[str, typer.Option(help="ref to move: stable or canary")]
Delay = Annotated[
    float,
    typer.Option("--in-s", min=0, help="of matching: rules the user events appended so many seconds from now on"),
]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on stdout instead of tables")]


@app.command("ls")
def list_versions(
    name: Annotated[str | None, typer.Argument(help="artifact; all of them where left out")] = None,
    store: Store = "",
    namespace: Namespace = "",
    as_json: AsJson = False,
) -> None:
    """List versions, newest last, with the refs that name them and their metrics.

    A version whose manifest cannot be read is listed with the reason.

    Examples:

        vitrine artifacts ls --store ./artifacts

        vitrine artifacts ls catalog --store s3://bucket/artifacts --json
    """
    with _opened(store, namespace) as artifacts:
        rows = [
            (each, version, *_described(artifacts, each, version))
            for each in ([name] if name else artifacts.names())
            for version in artifacts.versions(each)
        ]
        refs = {each: artifacts.refs(each) for each in {row[0] for row in rows}}
        if as_json:
            _print_json(
                [
                    {
                        "name": each,
                        "version": version,
                        "refs": _naming(refs[each], version),
                        "manifest": asdict(manifest) if manifest else None,
                        "problem": problem or None,
                    }
                    for each, version, manifest, problem in rows
                ]
            )
            return
        console = Console(highlight=False)
        widest = max((len(row[0]) for row in rows), default=0)
        for each, version, manifest, problem in rows:
            served = ", ".join(_naming(refs[each], version))
            size = _readable(sum(entry["size"] for entry in manifest.files.values())) if manifest else "?"
            console.print(
                f"{each:<{widest}}  {version}  {size:>10}  [green]{served}[/green]".rstrip(), soft_wrap=True
            )
            if manifest is None:
                console.print(f"  [red]damaged:[/red] {escape(problem)}", soft_wrap=True)
            elif manifest.metrics:
                console.print(Padding(Text(_metrics(manifest), "dim"), (0, 0, 0, 2)))
        if not rows:
            typer.echo(
                f"no {name or 'artifact'} in {artifacts.root}" + (f", namespace {namespace}" * bool(namespace))
            )


@app.command()
def show(
    name: Name,
    version: Version = "stable",
    store: Store = "",
    namespace: Namespace = "",
    as_json: AsJson = False,
) -> None:
    """Show the manifest of one version: parents, topic offsets, metrics, files.

    Examples:

        vitrine artifacts show towers --store ./artifacts

        vitrine artifacts show towers 20261124T073400123456-1a2b3c4d --json
    """
    with _opened(store, namespace) as artifacts:
        manifest = artifacts.manifest(name, version)
        refs = _naming(artifacts.refs(name), manifest.version)
        if as_json:
            _print_json({**asdict(manifest), "refs": refs})
            return
        facts = Table.grid(padding=(0, 2))
        facts.add_row("artifact", manifest.name)
        facts.add_row("version", manifest.version)
        facts.add_row("refs", ", ".join(refs) or "none")
        facts.add_row("kind, schema", f"{manifest.kind}, {manifest.schema}")
        facts.add_row("created", manifest.created)
        facts.add_row("parents", "\n".join(f"{parent} {v}" for parent, v in manifest.parents.items()) or "none")
        for topic, partitions in manifest.offsets.get("topics", {}).items():
            facts.add_row(f"offsets of {escape(topic)}", ", ".join(f"{p}: {o}" for p, o in partitions.items()))
        if manifest.offsets:
            facts.add_row("Kafka cluster", escape(manifest.offsets["cluster"]))
        facts.add_row("metrics", escape(_metrics(manifest).replace("  ", "\n")) or "none")
        files = Table("file", "size", Column("SHA-256 begins", no_wrap=True))
        for file, entry in manifest.files.items():
            files.add_row(file, _readable(entry["size"]), entry["sha256"][:16])
        console = Console()
        console.print(facts)
        console.print(files)


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="artifact; all of them where left out")] = None,
    version: Annotated[str | None, typer.Argument(help="version or ref; every version where left out")] = None,
    store: Store = "",
    namespace: Namespace = "",
) -> None:
    """Read every byte and compare with the manifests; exit code 1 where anything differs.

    Examples:

        vitrine artifacts verify --store ./artifacts

        vitrine artifacts verify catalog stable --store s3://bucket/artifacts
    """
    with _opened(store, namespace) as artifacts:
        pairs = [
            (each, one)
            for each in ([name] if name else artifacts.names())
            for one in ([version] if version else artifacts.versions(each))
        ]
        if name and not pairs:
            raise ArtifactError(f"no {name} in {artifacts.root}" + (f", namespace {namespace}" * bool(namespace)))
        damaged = 0
        for each, one in pairs:
            try:
                artifacts.verify(each, one)
                typer.echo(f"ok       {each} {one}")
            except ArtifactError as error:
                damaged += 1
                typer.echo(f"damaged  {error}")
        typer.echo(f"{len(pairs)} checked, {damaged} damaged")
        if damaged:
            raise typer.Exit(1)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="artifact, or matching: its catalog and towers together")],
    to: Annotated[str | None, typer.Option(help="version or ref; the one published before, where left out")] = None,
    ref: Ref = "stable",
    store: Store = "",
    namespace: Namespace = "",
    kafka_url: KafkaUrl = "",
    in_s: Delay = 2.0,
) -> None:
    """Let a ref name the version before, or another one; running services follow it.

    Matching follows the records of `activate` instead: `rollback matching` activates what was active before.

    Examples:

        vitrine artifacts rollback matching

        vitrine artifacts rollback towers --store ./artifacts

        vitrine artifacts rollback towers --to 20261124T073400123456-1a2b3c4d

        vitrine artifacts rollback towers --ref canary --to stable
    """
    if name == "matching":
        if to is not None or ref != "stable":
            raise typer.BadParameter("matching has no refs; `vitrine artifacts activate` names versions")
        from vitrine.cli.activation import roll_back

        roll_back(in_s=in_s, store=store, namespace=namespace, kafka_url=kafka_url)
        return
    with _opened(store, namespace) as artifacts:
        with audit.recorded("artifacts.rollback", f"{name} {ref}", namespace=namespace, store=store) as told:
            told["version"] = artifacts.rollback(name, to, ref)
        typer.echo(f"{name}: {ref} is {told['version']}")


@app.command()
def activate(
    catalog: Annotated[str, typer.Option(help="version or ref; as active now, or stable, where left out")] = "",
    towers: Annotated[
        str, typer.Option(help="of arm a, version or ref; as active now, or stable, where left out")
    ] = "",
    arm_b: Annotated[str, typer.Option("--arm-b", help="towers of arm b, version or ref")] = "",
    share: Annotated[
        int | None, typer.Option(min=0, max=1000, help="users in arm b, of 1,000; 0 ends it; as now where left out")
    ] = None,
    in_s: Delay = 2.0,
    store: Store = "",
    namespace: Namespace = "",
    kafka_url: KafkaUrl = "",
) -> None:
    """Let matching work from a catalog and towers: a record in ad-updates, for all its processes at once.

    User events appended from its time on are folded under it. A list made under another one stays until its user's
    next event, or until `vitrine match-all`.

    Examples:

        vitrine artifacts activate --catalog stable --towers stable

        vitrine artifacts activate --arm-b 20261124T073400123456-1a2b3c4d --share 100

        vitrine artifacts activate --share 0
    """
    from vitrine.cli import activation  # here: most commands need no catalog

    activation.activate(
        catalog, towers, arm_b, share, in_s=in_s, store=store, namespace=namespace, kafka_url=kafka_url
    )


@app.command()
def prune(
    name: Name,
    keep: Annotated[int, typer.Option(min=0, help="how many of the newest versions stay")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    store: Store = "",
    namespace: Namespace = "",
) -> None:
    """Remove old versions and publishes that were cut off more than an hour ago.

    What a ref names stays, and so does what a remaining version of any artifact was made from.

    Examples:

        vitrine artifacts prune embeddings --keep 3 --dry-run --store ./artifacts

        vitrine artifacts prune embeddings --keep 3 --store ./artifacts
    """
    with _opened(store, namespace) as artifacts:
        if dry_run:
            removed = artifacts.prune(name, keep, dry_run=True)
        else:
            with audit.recorded("artifacts.prune", name, namespace=namespace, store=store, keep=keep) as told:
                told["removed"] = removed = artifacts.prune(name, keep)
        for version in removed:
            typer.echo(f"{'would remove' if dry_run else 'removed'} {name} {version}")
        typer.echo(f"{len(removed)} of {name}; {len(artifacts.versions(name))} are there")


@contextmanager
def _opened(store: str, namespace: str) -> Iterator[ArtifactStore]:
    """The store; its errors become one line on stderr and exit code 1."""
    try:
        yield ArtifactStore(store, namespace=namespace)
    except (ArtifactError, UnavailableError) as error:
        typer.echo(f"vitrine artifacts: {error}", err=True)
        raise typer.Exit(1) from error


def _described(artifacts: ArtifactStore, name: str, version: str) -> tuple[Manifest | None, str]:
    try:
        return artifacts.manifest(name, version), ""
    except ArtifactError as error:
        return None, str(error)


def _naming(refs: dict[str, str], version: str) -> list[str]:
    return sorted(ref for ref, named in refs.items() if named == version)


def _metrics(manifest: Manifest) -> str:
    return "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in manifest.metrics.items())


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def _readable(size: int) -> str:
    """A size in bytes with a binary unit."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
