"""`vitrine data`: make, convert and check a market folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
from kafka import KafkaProducer
from kafka.errors import KafkaError
from rich.console import Console

from vitrine.cli.progress import stages
from vitrine.data import beauty, simulator, validate
from vitrine.data.market import META_FILE
from vitrine.data.replay import user_events
from vitrine.data.validate import DataError
from vitrine.errors import FieldError, NotFoundError, UnavailableError
from vitrine.placement import qualify
from vitrine.runtime import audit, logs, topics
from vitrine.runtime.kafka import key_of, parse_url, producer

app = typer.Typer(
    help="Make, convert and check the Parquet folder that everything is trained from.", no_args_is_help=True
)
_console = Console(stderr=True)


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="folder to write")],
    users: Annotated[int, typer.Option(min=1, help="how many users")] = 5_000,
    ads: Annotated[int, typer.Option(min=1, help="how many ads")] = 2_000,
    seed: Annotated[int, typer.Option(min=0, help="of every draw; the same seed gives the same market")] = 1,
    once: Annotated[bool, typer.Option("--once", help="leave a market alone that is there already")] = False,
) -> None:
    """Write a simulated market of any size.

    Example:

        vitrine data simulate ./market --users 100000 --ads 20000 --seed 7
    """
    if once and (out / META_FILE).exists():  # written last
        typer.echo(f"{out} holds a market already")
        return
    with _told("simulate"), stages(_console, "simulate") as progress:
        simulator.write_market(out, users=users, ads=ads, seed=seed, progress=progress)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="folder of the Beauty and clothing files", exists=True, file_okay=False)
    ],
    out: Annotated[Path, typer.Argument(help="folder to write")],
    seed: Annotated[int, typer.Option(min=0, help="of the bids")] = 1,
) -> None:
    """Turn the Beauty interactions and the clothing photos into a market folder.

    Example:

        vitrine data convert ../shared/data ./market
    """
    if not beauty.recognise(source):
        raise typer.BadParameter(f"{source} does not hold the Beauty and clothing files (docs/data.md)")
    with _told("convert"), stages(_console, "convert") as progress:
        beauty.convert(source, out, seed=seed, progress=progress)


@app.command("validate")
def check(folder: Annotated[Path, typer.Argument(help="market folder", exists=True, file_okay=False)]) -> None:
    """Check every file of a market folder; says file, row and column of what is wrong.

    Example:

        vitrine data validate ./market
    """
    try:
        with stages(_console, "validate") as progress:
            validate.validate(folder, progress=progress)
    except DataError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{folder} is a valid market")


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(help="market folder", exists=True, file_okay=False)],
    kafka_url: Annotated[str, typer.Option(envvar="VITRINE_KAFKA_URL", help="kafka://host:port[,host:port]")],
    namespace: Annotated[str, typer.Option(envvar="VITRINE_NAMESPACE", help="prefix of the topic's name")] = "",
    once: Annotated[
        bool, typer.Option("--once", help="send nothing where the topic holds as many records already")
    ] = False,
) -> None:
    """Send a market's recorded events through `user-events`: this is how history fills the users' state.

    Sent twice, they count twice; with --once a topic that holds fewer records, but some, is refused.

    Example:

        vitrine data replay ./market --kafka-url kafka://127.0.0.1:9092
    """
    topic = qualify(namespace, topics.USER_EVENTS)
    logs.setup("critical", "replay")  # the libraries' words on a broker that is away add nothing
    with _told("replay"):
        validate.validate(folder, ("events",))
        missing = topic not in {there.name for there in topics.existing(kafka_url, namespace)}
        if missing and not parse_url(kafka_url).memory:  # which makes topics when they are first used
            raise NotFoundError(f"topic {topic} does not exist; `vitrine topics create` makes it")
        file = folder / "events.parquet"
        total: int = pq.read_metadata(file).num_rows
        there = topics.records(kafka_url, topic) if once else 0
        if 0 < there < total:
            raise FieldError(
                "--once",
                f"{topic} holds {there:,} of {total:,} events, nobody knows which, so the others cannot be sent"
                " without counting some twice; replay into a fresh VITRINE_NAMESPACE",
            )
        if there < total:
            with audit.recorded("data.replay", topic, events=total, folder=str(folder)):
                _send(file, total, producer(kafka_url), topic)
    typer.echo(f"{max(there, total):,} events in {topic}")


def _send(file: Path, total: int, sending: KafkaProducer, topic: str) -> None:
    """Sends a file's `total` events, every one acknowledged; UnavailableError where some were not."""
    lost: list[Exception] = []
    with stages(_console, "replay") as progress:
        for sent, event in enumerate(user_events(file)):
            record = sending.send(topic, key=key_of(event.user_id), value=event.SerializeToString())
            record.add_errback(lost.append)
            if sent % 1_000 == 0:
                progress("events", sent / total)
        sending.flush()
        progress("events", 1.0)
    sending.close()
    if lost:
        raise UnavailableError(
            f"{len(lost):,} of {total:,} events did not reach {topic} ({lost[0]}); the others would count twice, so"
            " replay into a fresh VITRINE_NAMESPACE"
        )


@contextmanager
def _told(command: str) -> Iterator[None]:
    """Errors that people can do something about are one message and exit code 1."""
    try:
        yield
    except (DataError, FieldError, NotFoundError, UnavailableError, KafkaError, OSError) as error:
        typer.echo(f"vitrine data {command}: {error}", err=True)
        raise typer.Exit(1) from None
