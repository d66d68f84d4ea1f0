"""The job: validate the market's tables, order bids by crowd and ad, let ad updates win, number, publish."""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import typer

from trainers.catalog.numbers import numbered
from trainers.catalog.postings import write_postings
from trainers.catalog.updates import Read, read_updates
from trainers.runtime.progress import Progress, failed, result
from trainers.runtime.tasks import Tasks, fingerprint
from vitrine.artifacts import ArtifactError, ArtifactStore
from vitrine.data.market import Market
from vitrine.data.schemas import DataError
from vitrine.data.validate import validate
from vitrine.errors import FieldError, UnavailableError
from vitrine.matching.catalog import (
    ALL_GROUPS,
    CROWD_NAMES_FILE,
    CROWD_NAMES_SCHEMA,
    FILES,
    KIND,
    SCHEMA,
    TITLES_FILE,
    TITLES_SCHEMA,
    Catalog,
    CatalogError,
    Meta,
    build_item_crowds,
)

TABLES = ("crowds", "ads", "bids", "items", "negatives")
DAY_MS = 86_400_000
HOUR_MS = 3_600_000

Metrics = dict[str, float | int | str]


@dataclass(frozen=True, slots=True)
class Options:
    """What a catalog is made with; `Meta` has the first three.

    previous: version whose numbers go on; the newest where None
    updates:  Kafka URL of the `ad-updates` that win over the tables
    """

    half_life_ms: int = 30 * DAY_MS
    cap_window_ms: int = DAY_MS
    groups: tuple[str, ...] = ("default",)
    previous: str | None = None
    updates: str | None = None


def main(
    market: Annotated[Path, typer.Option(help="market folder (docs/data.md)")],
    store: Annotated[str, typer.Option(envvar="VITRINE_STORE", help="artifact store: a folder or an fsspec URL")],
    namespace: Annotated[str, typer.Option(envvar="VITRINE_NAMESPACE", help="prefix of the artifact's name")] = "",
    work: Annotated[Path | None, typer.Option(help="folder of finished tasks, to resume from")] = None,
    half_life_days: Annotated[float, typer.Option(min=0.001, help="after which an event's weight halves")] = 30.0,
    cap_window_hours: Annotated[
        float, typer.Option(min=0.001, help="after an ad's last impression to a user its cap starts anew")
    ] = 24.0,
    group: Annotated[list[str] | None, typer.Option(help="placement groups, bit 0 first; up to four times")] = None,
    updates: Annotated[
        str | None, typer.Option(help="kafka://host:port of ad-updates that win over the tables")
    ] = None,
    previous: Annotated[
        str | None, typer.Option(help="catalog whose numbers go on; the store's newest where left out")
    ] = None,
) -> None:
    """Turn a market's crowds, ads, bids, negatives and items into the `catalog` artifact and publish it.

    Example:

        python -m trainers.catalog --market ./market --store ./store --work ./work/catalog
    """
    options = Options(
        round(half_life_days * DAY_MS),
        round(cap_window_hours * HOUR_MS),
        tuple(group or ("default",)),
        previous,
        updates,
    )
    scratch = tempfile.TemporaryDirectory(prefix="vitrine-catalog-") if work is None else nullcontext(str(work))
    try:
        with scratch as folder:
            train(market, store, namespace=namespace, work=Path(folder), options=options)
    except (DataError, ArtifactError, CatalogError, FieldError, UnavailableError, OSError) as error:
        failed("catalog", error)
        raise typer.Exit(1) from None


def train(market_folder: Path, store: str, *, namespace: str, work: Path, options: Options) -> str:
    """Publish the catalog of a market and return its version; finished tasks under `work` are not done again.

    Raises DataError where the market's tables are wrong.
    """
    tasks = Tasks(work)
    artifacts = ArtifactStore(store, namespace=namespace)
    meta = Meta(options.half_life_ms, options.cap_window_ms, options.groups)
    meta.check()
    with Progress("catalog", total=5) as progress:
        market = Market(market_folder)
        there = [table for table in TABLES if market.has(table)]
        inputs = [f"schema {SCHEMA}", *(fingerprint(market.path(table)) for table in there)]
        progress.update(1)
        tasks.run("validate", inputs, lambda out: validate(market.folder, there))
        progress.update(2)
        postings = tasks.run("postings", inputs, lambda out: write_ads(market, out))
        progress.update(3)
        items = tasks.run("items", inputs, lambda out: write_items(market, out))
        progress.update(4)
        # The last step depends on the store and the topic, which go on: it is done each time.
        with tempfile.TemporaryDirectory(dir=work, prefix=".catalog-") as folder:
            read = assemble((postings, items), meta, artifacts, options, namespace, Path(folder))
            metrics = measure(read)
            published = artifacts.publish(KIND, Path(folder), schema=SCHEMA, offsets=read.offsets, metrics=metrics)
        progress.update(5, postings=float(metrics["postings"]))
    result("catalog", {KIND: published.version}, {**metrics, "tasks_resumed": len(tasks.resumed)})
    return published.version


def write_ads(market: Market, out: Path) -> None:
    """Crowds, ads, the postings between them, negative crowds, and names for display."""
    crowds = market.table("crowds").sort_by("crowd_id")
    ads = market.table("ads").sort_by("ad_id")
    crowd_ids, ad_ids = crowds["crowd_id"].to_numpy(), ads["ad_id"].to_numpy()
    write_postings(market, crowd_ids, ad_ids, out)

    def of(name: str) -> np.ndarray:
        return np.asarray(ads[name].fill_null(0).to_numpy())

    groups = of("placement_groups")
    neg_ads = np.searchsorted(ad_ids, market.column("negatives", "ad_id"))
    lengths = np.bincount(neg_ads, minlength=len(ad_ids))
    by_ad = market.column("negatives", "crowd_id")[np.argsort(neg_ads, kind="stable")]
    neg_indptr, neg_crowds = build_item_crowds(crowd_ids, lengths, by_ad)
    arrays = {
        "crowds": crowd_ids,
        "ads": ad_ids,
        "ad_advertisers": of("advertiser_id"),
        "ad_items": of("item_id"),
        "ad_groups": np.where(groups == 0, ALL_GROUPS, groups),
        "ad_caps": of("max_impressions"),
        "ad_schedule": np.stack([of("start_ms"), of("end_ms")], axis=1),
        "ad_budgets": of("daily_budget"),
        "neg_indptr": neg_indptr,
        "neg_crowds": neg_crowds,
    }
    _save(arrays, out)
    pq.write_table(ads.select(["ad_id", "title"]).cast(TITLES_SCHEMA), out / TITLES_FILE)
    pq.write_table(crowds.cast(CROWD_NAMES_SCHEMA), out / CROWD_NAMES_FILE)


def write_items(market: Market, out: Path) -> None:
    """The table item -> crowds."""
    table = market.table("items", ["item_id", "crowd_ids"]).sort_by("item_id").combine_chunks()
    lists = table["crowd_ids"].combine_chunks()
    indptr, crowds = build_item_crowds(
        np.sort(market.column("crowds", "crowd_id")), lists.value_lengths().to_numpy(), lists.flatten().to_numpy()
    )
    _save({"items": table["item_id"].to_numpy(), "item_indptr": indptr, "item_crowd_ordinals": crowds}, out)


def assemble(
    parts: Sequence[Path], meta: Meta, artifacts: ArtifactStore, options: Options, namespace: str, out: Path
) -> Read:
    """All files of the artifact in one folder, checked by reading them as the services do."""
    arrays = {
        name: np.load(part / file, mmap_mode="r", allow_pickle=False)
        for name, (file, _) in FILES.items()
        for part in parts
        if (part / file).exists()
    }
    catalog = Catalog(
        **arrays, half_life_ms=meta.half_life_ms, cap_window_ms=meta.cap_window_ms, groups=meta.groups
    )
    read = read_updates(options.updates, namespace, catalog) if options.updates else Read(catalog)
    read = replace(read, catalog=numbered(read.catalog, artifacts, options.previous))
    read.catalog.write(out)
    for names in (TITLES_FILE, CROWD_NAMES_FILE):
        shutil.copy(parts[0] / names, out / names)
    Catalog.load(out)
    return read


def measure(read: Read) -> Metrics:
    """What the manifest says of a catalog."""
    catalog = read.catalog
    sizes, per_item = catalog.crowd_sizes, np.diff(catalog.item_indptr)
    bids = catalog.posting_bids
    return {
        "ads": len(catalog.ads),
        "ads_in_no_crowd": int((np.diff(catalog.ad_postings[0]) == 0).sum()),
        "ads_not_live": int((catalog.ad_off != 0).sum()),
        "advertisers": len(np.unique(catalog.ad_advertisers)),
        "crowds": len(catalog.crowds),
        "items": len(catalog.items),
        "postings": len(bids),
        "negatives": len(catalog.neg_crowds),
        "crowd_size_median": float(np.median(sizes)) if len(sizes) else 0.0,
        "crowd_size_max": int(sizes.max(initial=0)),
        "crowds_without_ads": int((sizes == 0).sum()),
        "crowds_per_item_mean": float(per_item.mean()) if len(per_item) else 0.0,
        "bid_median": float(np.median(bids)) if len(bids) else 0.0,
        "bid_max": float(bids.max(initial=0.0)),
        "half_life_ms": catalog.half_life_ms,
        "updates_refused": read.refused,
    }


def _save(arrays: dict[str, np.ndarray], out: Path) -> None:
    for name, array in arrays.items():
        file, dtype = FILES[name]
        np.save(out / file, np.ascontiguousarray(array, dtype), allow_pickle=False)
