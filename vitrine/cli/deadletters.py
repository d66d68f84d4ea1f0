"""`vitrine deadletters`: records that could not be applied, and sending them again once they can be."""

import json
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitrine.api.events.v1.events_pb2 import DeadLetter
from vitrine.cli.operate import NamespaceOption
from vitrine.cli.topics import AsJson, KafkaUrl, required, told
from vitrine.errors import FieldError
from vitrine.matching.events import parse_event
from vitrine.placement import qualify
from vitrine.runtime import audit, letters, topics

app = typer.Typer(help="See records that could not be applied, and send them again.", no_args_is_help=True)

Topic = Annotated[str, typer.Option(help="only records of this topic, by its full name")]
User = Annotated[int, typer.Option(min=0, help="only records under this user's key")]


@app.command("list")
def list_letters(
    kafka_url: KafkaUrl = "",
    namespace: NamespaceOption = "",
    topic: Topic = "",
    user: User = 0,
    limit: Annotated[int, typer.Option(min=1, help="show at most so many, the newest")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the dead letters: where each record lies, when it was appended, and why it could not be applied.

    Examples:

        vitrine deadletters list --kafka-url kafka://127.0.0.1:9092

        vitrine deadletters list --user 42 --json
    """
    with told():
        found = _chosen(required(kafka_url), namespace, topic, user)
    shown = list(found.items())[-limit:]
    if as_json:
        rows = [
            {
                "key": key.decode(errors="replace"),
                "append_time_ms": letter.append_time_ms,
                "record_key": letter.key.decode(errors="replace"),
                "bytes": len(letter.value),
                "reason": letter.reason,
            }
            for key, letter in shown
        ]
        print(json.dumps({"letters": rows, "total": len(found)}))
        return
    table = Table("letter", "appended", "key", "bytes", "reason")
    for key, letter in shown:
        when = datetime.fromtimestamp(letter.append_time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        words = (key, when, letter.key, str(len(letter.value)), letter.reason)
        table.add_row(*(escape(w if isinstance(w, str) else w.decode(errors="replace")) for w in words))
    Console().print(table)
    print(f"{len(shown)} of {len(found)}")


@app.command()
def resend(
    letter: Annotated[
        list[str] | None, typer.Argument(help="letters by their keys, topic/partition/offset")
    ] = None,
    kafka_url: KafkaUrl = "",
    namespace: NamespaceOption = "",
    topic: Topic = "",
    user: User = 0,
    everything: Annotated[bool, typer.Option("--all", help="every letter that the options leave")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be sent, and send nothing")] = False,
) -> None:
    """Append records to their topics again, and take their letters back.

    For records that can be applied now: by a newer worker, or in the partition that their key belongs to. One that
    still cannot be read, or that is not held whole, is left where it is. An event counts as of its own time.

    Examples:

        vitrine deadletters resend user-events/3/1207 --kafka-url kafka://127.0.0.1:9092

        vitrine deadletters resend --all --topic user-events --dry-run
    """
    with told():
        if bool(letter) == everything:
            raise FieldError("LETTER", "name letters, or say --all")
        url = required(kafka_url)
        found = _chosen(url, namespace, topic, user)
        if letter:
            missing = [key for key in letter if key.encode() not in found]
            if missing:
                raise FieldError("LETTER", f"{missing[0]}: there is no such letter; `vitrine deadletters list`")
            found = {key.encode(): found[key.encode()] for key in letter}
        user_events = qualify(namespace, topics.USER_EVENTS)
        if dry_run:
            left = _left(found, user_events)
        else:
            target = qualify(namespace, topics.DEAD_LETTERS)
            with audit.recorded("deadletters.resend", target, letters=len(found)) as details:
                left = letters.resend(url, target, found, lambda each: _check(each, user_events))
                details["left"] = len(left)
    for key, reason in left.items():
        print(f"left  {key.decode(errors='replace')}: {reason}")
    print(f"sent  {len(found) - len(left)}{' (dry run)' if dry_run else ''}")


def _chosen(url: str, namespace: str, topic: str, user: int) -> dict[bytes, DeadLetter]:
    found = letters.read(url, qualify(namespace, topics.DEAD_LETTERS))
    return {
        key: each
        for key, each in found.items()
        if (not topic or each.topic == topic) and (not user or each.key == b"%d" % user)
    }


def _left(found: dict[bytes, DeadLetter], user_events: str) -> dict[bytes, str]:
    left = {}
    for key, letter in found.items():
        try:
            letters.check_whole(letter)
            _check(letter, user_events)
        except ValueError as error:
            left[key] = str(error)
    return left


def _check(letter: DeadLetter, user_events: str) -> None:
    """Raises RecordError where a worker of this version could not apply the record either."""
    if letter.topic == user_events:
        parse_event(letter.key, letter.value)
