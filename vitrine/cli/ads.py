"""`vitrine ads`: what ads are from now on, sent as whole records to `ad-updates` (docs/matching-ads.md)."""

from pathlib import Path
from typing import Annotated

import typer

from vitrine.cli.topics import KafkaUrl

app = typer.Typer(help="Define, pause, resume and end ads while matching runs.", no_args_is_help=True)

Namespace = Annotated[str, typer.Option("--namespace", envvar="VITRINE_NAMESPACE", help="prefix of names")]
Store = Annotated[
    str, typer.Option("--store", envvar="VITRINE_STORE", help="folder or fsspec URL; for ads of the catalog")
]
AdId = Annotated[int, typer.Argument(min=1, max=2**64 - 1, help="the ad")]
AdIds = Annotated[list[int], typer.Argument(min=1, max=2**64 - 1, help="the ads")]


@app.command()
def show(ad_id: AdId, store: Store = "", namespace: Namespace = "", kafka_url: KafkaUrl = "") -> None:
    """Show an ad as it is: its definition, its state, and what the clock says of its schedule and budget.

    Example:

        vitrine ads show 1000042
    """
    from vitrine.cli import ad_changes

    ad_changes.show(ad_id, store=store, namespace=namespace, kafka_url=kafka_url)


@app.command("set")
def define(
    ad_id: AdId,
    advertiser: Annotated[int | None, typer.Option(help="who pays")] = None,
    item: Annotated[int | None, typer.Option(help="the item advertised; 0 for none")] = None,
    bid: Annotated[
        list[str] | None, typer.Option(help="CROWD=BID, currency units a click; may be repeated")
    ] = None,
    drop: Annotated[list[int] | None, typer.Option(help="a crowd no longer bid on; may be repeated")] = None,
    avoid: Annotated[list[int] | None, typer.Option(help="a crowd whose members never see it; repeated")] = None,
    unavoid: Annotated[list[int] | None, typer.Option(help="such a crowd no longer; may be repeated")] = None,
    placement_groups: Annotated[int | None, typer.Option(help="mask, bit 0 the first group; 0: all")] = None,
    start_ms: Annotated[int | None, typer.Option(help="milliseconds since 1970 UTC; 0: no beginning")] = None,
    end_ms: Annotated[int | None, typer.Option(help="milliseconds since 1970 UTC; 0: no end")] = None,
    daily_budget: Annotated[float | None, typer.Option(help="currency units a UTC day; 0: no bound")] = None,
    max_impressions: Annotated[int | None, typer.Option(help="to one user within the window; 0: no bound")] = None,
    store: Store = "",
    namespace: Namespace = "",
    kafka_url: KafkaUrl = "",
) -> None:
    """Change an ad, or make a new one; what is not named stays as it is. One record, whole.

    Examples:

        vitrine ads set 1000042 --bid 17=0.8 --drop 18

        vitrine ads set 5000001 --advertiser 3 --item 42 --bid 17=0.5 --daily-budget 100
    """
    from vitrine.cli import ad_changes

    values = {
        "advertiser_id": advertiser,
        "item_id": item,
        "placement_groups": placement_groups,
        "start_ms": start_ms,
        "end_ms": end_ms,
        "daily_budget": daily_budget,
        "max_impressions": max_impressions,
    }
    ad_changes.define(
        ad_id,
        {name: value for name, value in values.items() if value is not None},
        bids=bid or [],
        drop=drop or [],
        avoid=avoid or [],
        unavoid=unavoid or [],
        store=store,
        namespace=namespace,
        kafka_url=kafka_url,
    )


@app.command()
def pause(ad_ids: AdIds, namespace: Namespace = "", kafka_url: KafkaUrl = "") -> None:
    """Hide ads from every list at once, until they are resumed.

    Example:

        vitrine ads pause 1000042 1000043
    """
    from vitrine.cli import ad_changes

    ad_changes.set_state(ad_ids, "paused", namespace=namespace, kafka_url=kafka_url)


@app.command()
def resume(ad_ids: AdIds, namespace: Namespace = "", kafka_url: KafkaUrl = "") -> None:
    """Show paused ads again. An ended ad stays ended.

    Example:

        vitrine ads resume 1000042
    """
    from vitrine.cli import ad_changes

    ad_changes.set_state(ad_ids, "active", namespace=namespace, kafka_url=kafka_url)


@app.command()
def end(ad_ids: AdIds, namespace: Namespace = "", kafka_url: KafkaUrl = "") -> None:
    """Take ads away for good: the next catalog made with `--updates` leaves them out.

    Example:

        vitrine ads end 1000042
    """
    from vitrine.cli import ad_changes

    ad_changes.set_state(ad_ids, "ended", namespace=namespace, kafka_url=kafka_url)


@app.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="JSON lines, one AdUpdate a line; - for stdin")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check, and send nothing")] = False,
    namespace: Namespace = "",
    kafka_url: KafkaUrl = "",
) -> None:
    """Send whole ads from a file, all or none: each line is checked before the first is sent.

    A line is an AdUpdate in protobuf's JSON, such as {"ad_id": 7, "state": "STATE_ACTIVE", "definition":
    {"advertiser_id": 3, "crowd_ids": [17], "bids": [0.5]}}; without a state the ad is active, without a definition
    it is as the catalog has it.

    Example:

        vitrine ads import ads.jsonl --dry-run
    """
    from vitrine.cli import ad_changes

    ad_changes.import_file(file, dry_run=dry_run, namespace=namespace, kafka_url=kafka_url)
