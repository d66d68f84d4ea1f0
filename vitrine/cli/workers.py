"""`vitrine workers`: have the matching workers stop applying and go on, and `vitrine replay`: send them back."""

import json
from typing import Annotated

import typer

from vitrine.cli.operate import NamespaceOption, RedisUrl, store_of
from vitrine.cli.topics import AsJson, KafkaUrl, required, told
from vitrine.runtime import audit

app = typer.Typer(help="Pause and resume the matching workers, and see how far they are.", no_args_is_help=True)


@app.command()
def pause(
    why: Annotated[str, typer.Argument(help="shown by the workers and by `status`")] = "paused by the operator",
    redis_url: RedisUrl = "",
    namespace: NamespaceOption = "",
) -> None:
    """Have every worker stop applying within about a second. They keep their partitions, and lists are served on.

    Example:

        vitrine workers pause 'moving Redis' --redis-url redis://127.0.0.1:6379
    """
    with told(), audit.recorded("workers.pause", namespace or "matching", why=why):
        store_of(redis_url, namespace).pause(why)
    print(f"paused: {why}")


@app.command()
def resume(redis_url: RedisUrl = "", namespace: NamespaceOption = "") -> None:
    """Have the workers go on, from their watermarks."""
    with told(), audit.recorded("workers.resume", namespace or "matching"):
        store_of(redis_url, namespace).resume()
    print("resumed")


@app.command()
def status(
    kafka_url: KafkaUrl = "", redis_url: RedisUrl = "", namespace: NamespaceOption = "", as_json: AsJson = False
) -> None:
    """Say whether the workers are paused, and how far the watermarks of each partition are behind its log."""
    from vitrine.cli.replay import behind

    with told():
        store = store_of(redis_url, namespace)
        paused, rows = store.paused(), behind(store, required(kafka_url), namespace)
    if as_json:
        print(json.dumps({"paused": paused, "partitions": rows}))
        return
    print(f"paused  {paused or 'no'}")
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
