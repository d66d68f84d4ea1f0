"""The demo's terminal output: a list before and after its event, the final table, and where everything listens."""

from typing import Any

from rich.console import Console
from rich.table import Table

from vitrine.cli.demo.market import MarketView
from vitrine.cli.demo.walk import Ranked, Walk
from vitrine.cli.system import System
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.redact import redact_url

# Facts in the order shown: field, what it is, unit.
FACTS = [
    ("events_sent", "events sent", ""),
    ("events_applied", "events applied, after the worker was killed once", ""),
    ("dead_letters", "dead letters", ""),
    ("lists_stored", "ad lists stored", ""),
    ("lists_changed_by_event", "lists changed by one event", ""),
    ("event_to_list_ms_p50", "event to list, median", "ms"),
    ("event_to_list_ms_p99", "event to list, 99th percentile", "ms"),
    ("getmatches_ms_p50", "GetMatches, median", "ms"),
    ("score_ms_p50", "Score, median", "ms"),
    ("search_ms_p50", "Search by photo, median", "ms"),
    ("search_same_category_at_10", "neighbours of the photo's category", ""),
    ("same_category_by_pixels", "… by pixels", ""),
    ("same_category_by_chance", "… by chance", ""),
    ("ctr_auc", "AUC of the click model", ""),
    ("auc_by_crowd_overlap", "… by crowd overlap", ""),
    ("auc_by_popularity", "… by popularity", ""),
    ("seconds", "the whole run", "s"),
]


def written(value: float | int) -> str:
    """A figure for people: thousands apart, three digits after the point."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}".rstrip("0").rstrip(".")


def moved(ad: Ranked, rank: int) -> str:
    """How an ad came to its rank: new, risen by n, fallen by n, or nothing."""
    if ad.was is None:
        return "new"
    if ad.was > rank:
        return f"▲ {ad.was - rank}"
    return f"▼ {rank - ad.was}" if ad.was < rank else ""


def lists(console: Console, market: MarketView, seen: Walk) -> None:
    """The user's ten ads after the event, what moved, and each one's reason."""
    table = Table(title=f"user {seen.user_id}: {seen.event}", title_justify="left", expand=False)
    for column in ("#", "before", "after", "", "crowd", "bid", "pCTR", "value"):
        table.add_column(column, justify="right" if column in ("#", "bid", "pCTR", "value") else "left")
    for rank, (before, after) in enumerate(zip(seen.before, seen.after, strict=False), 1):
        change = moved(after, rank)
        style = "green" if change == "new" or change.startswith("▲") else ""
        table.add_row(
            str(rank),
            market.ad(before.ad_id),
            f"[{style}]{market.ad(after.ad_id)}[/]" if style else market.ad(after.ad_id),
            change,
            market.crowd(after.crowd_id),
            f"{after.bid:.3f}",
            f"{after.pctr:.4f}",
            f"{after.value:.5f}",
        )
    console.print(table)


def table(console: Console, facts: dict[str, Any], seen: Walk) -> None:
    """The final table."""
    rows = Table(title=f"Vitrine on {facts['data']} data (Kafka: {facts['kafka']}, Redis: {facts['redis']})")
    rows.add_column("what", overflow="fold")
    rows.add_column("figure", justify="right")
    for name, title, unit in FACTS:
        value = facts[name]
        text = written(value)
        if name == "lists_changed_by_event":
            text = f"{value} of {facts['lists_compared']}"
        if name == "score_ms_p50":
            title += f", {facts['score_candidates']} candidates"
        rows.add_row(title, f"{text} {unit}".rstrip())
    for title, seconds in seen.seconds.items():
        rows.add_row(f"[dim]walk: {title}[/dim]", f"[dim]{seconds:.1f} s[/dim]")
    console.print(rows)


def addresses(console: Console, system: System, stack: EmbeddedStack, namespace: str, user_id: int) -> None:
    """Where everything listens, and calls to try while it stays up."""
    address = f"http://{system.services['console'].address}"
    console.print(f"\n[bold]console: {address}[/bold], and this user: {address}/user/{user_id}", highlight=False)
    console.print(f"\nup until Ctrl-C, namespace {namespace}:", highlight=False)
    for service in system.services.values():
        console.print(
            f"  {service.name:<9} {service.address:<18} metrics http://{service.metrics}/metrics", highlight=False
        )
    console.print(redact_url(f"  Kafka     {stack.kafka_url}\n  Redis     {stack.redis_url}"), highlight=False)
    address = system.services["matching"].address
    console.print(
        "\ntry:\n  .venv/bin/buf curl --schema protos --protocol grpc --http2-prior-knowledge \\\n"
        f"""    -d '{{"userId": "{user_id}", "k": 5}}' \\\n"""
        f"    http://{address}/vitrine.api.matching.v1.MatchingService/GetMatches",
        highlight=False,
        soft_wrap=True,
    )
