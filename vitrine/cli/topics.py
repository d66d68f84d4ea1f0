"""`vitrine topics`: make a namespace's topics, and see whether they are as they should be."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitrine.artifacts import ArtifactError
from vitrine.errors import FieldError, NotFoundError, UnavailableError
from vitrine.runtime import logs, topics
from vitrine.runtime.kafka import LogLostError

app = typer.Typer(help="Make and look at the Kafka topics.", no_args_is_help=True)

KafkaUrl = Annotated[
    str, typer.Option("--kafka-url", envvar="VITRINE_KAFKA_URL", help="kafka://host:port[,host:port]")
]
Namespace = Annotated[str, typer.Option("--namespace", envvar="VITRINE_NAMESPACE", help="prefix of topic names")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on stdout instead of a table")]


@app.command()
def create(
    kafka_url: KafkaUrl = "",
    namespace: Namespace = "",
    partitions: Annotated[
        int, typer.Option(help="partitions of user-events and item-updates; a power of two up to 1024")
    ] = 8,
    replication: Annotated[int, typer.Option(help="copies of each partition; 3 in production")] = 1,
    retention_ms: Annotated[
        int | None,
        typer.Option(help="how long user-events are kept, -1 for ever; else the cluster's default"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the topics that are missing; leave alone, after comparing, those that exist.

    All stamp the broker's append time; ad-updates, item-updates and dead-letters are compacted. The number of
    partitions cannot be changed later without a fresh namespace: it bounds the number of matching workers.

    Examples:

        vitrine topics create --kafka-url kafka://127.0.0.1:9092

        vitrine topics create --namespace blue --partitions 64 --replication 3 --retention-ms 604800000
    """
    with told():
        done = topics.create(required(kafka_url), namespace, partitions, replication, retention_ms=retention_ms)
    if as_json:
        print(json.dumps({"made": done.made, "kept": done.kept, "notice": done.notice}))
        return
    for name in done.made:
        print(f"made  {name}")
    for name in done.kept:
        print(f"kept  {name}")
    print(done.notice)


@app.command("ls")
def list_topics(kafka_url: KafkaUrl = "", namespace: Namespace = "", as_json: AsJson = False) -> None:
    """List the namespace's topics with their partitions and settings, and those that are missing.

    Examples:

        vitrine topics ls --kafka-url kafka://127.0.0.1:9092

        vitrine topics ls --namespace blue --json
    """
    with told():
        there = topics.existing(required(kafka_url), namespace)
    names = {topic.name for topic in there}
    missing = [topic.name for topic in topics.wanted(namespace) if topic.name not in names]
    if as_json:
        found = [{"name": t.name, "partitions": t.partitions, "settings": dict(t.settings)} for t in there]
        print(json.dumps({"topics": found, "missing": missing}))
        return
    table = Table("topic", "partitions", "settings")
    for topic in there:
        table.add_row(topic.name, str(topic.partitions), " ".join(f"{k}={v}" for k, v in topic.settings.items()))
    for name in missing:
        table.add_row(name, "", "missing: `vitrine topics create` makes it")
    Console().print(table)


@app.command()
def bury(
    kafka_url: KafkaUrl = "",
    namespace: Namespace = "",
    store: Annotated[str, typer.Option("--store", envvar="VITRINE_STORE", help="folder or fsspec URL")] = "",
    older_than_h: Annotated[float, typer.Option(min=0, help="hours; longer than any build takes")] = 168,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="count, and write nothing")] = False,
) -> None:
    """Turn deletions in item-updates into tombstones, which compaction drops.

    Only those that every retained binary-index contains, of items that no retained embeddings have: no rollback and
    no build brings their items back.

    Examples:

        vitrine topics bury --kafka-url kafka://127.0.0.1:9092 --store ./artifacts --dry-run
    """
    from vitrine.cli.bury import bury_deletions

    with told():
        done = bury_deletions(
            required(kafka_url), namespace, store, age_ms=int(older_than_h * 3_600_000), dry_run=dry_run
        )
    print(f"buried  {done.buried}{' (dry run)' if dry_run else ''}")
    print(f"needed  {done.needed}")


def required(kafka_url: str) -> str:
    """The URL. Raises FieldError where there is none."""
    if not kafka_url:
        raise FieldError("--kafka-url", "say which cluster, here or in VITRINE_KAFKA_URL")
    return kafka_url


@contextmanager
def told() -> Iterator[None]:
    """Errors that people can do something about are one message and exit code 1."""
    logs.setup("critical", "topics")  # the libraries' words on a broker that is away add nothing
    try:
        yield
    except (
        FieldError,
        NotFoundError,
        UnavailableError,
        topics.TopicMismatchError,
        ArtifactError,
        LogLostError,
    ) as error:
        Console(stderr=True).print(f"[red]{escape(str(error))}[/red]")
        raise typer.Exit(1) from None
