"""The job: validate the market's tables, turn bids into postings and items into crowd lists, publish."""

import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.parquet as pq
import typer

from trainers.runtime.progress import Progress, failed, result
from trainers.runtime.tasks import Tasks, fingerprint
from vitrine.artifacts import ArtifactError, ArtifactStore
from vitrine.data.market import Market
from vitrine.data.schemas import DataError
from vitrine.data.validate import validate
from vitrine.errors import UnavailableError
from vitrine.matching.catalog import (
    CROWD_NAMES_FILE,
    CROWD_NAMES_SCHEMA,
    FILES,
    KIND,
    SCHEMA,
    TITLES_FILE,
    TITLES_SCHEMA,
    Catalog,
    build_item_crowds,
    build_postings,
)

TABLES = ("crowds", "ads", "bids", "items")
DAY_MS = 86_400_000

Metrics = dict[str, float | int | str]


def main(
    market: Annotated[Path, typer.Option(help="market folder (docs/data.md)")],
    store: Annotated[str, typer.Option(envvar="VITRINE_STORE", help="artifact store: a folder or an fsspec URL")],
    namespace: Annotated[str, typer.Option(envvar="VITRINE_NAMESPACE", help="prefix of the artifact's name")] = "",
    work: Annotated[Path | None, typer.Option(help="folder of finished tasks, to resume from")] = None,
    half_life_days: Annotated[float, typer.Option(min=0.001, help="after which an event's weight halves")] = 30.0,
) -> None:
    """Turn a market's crowds, ads, bids and items into the `catalog` artifact and publish it.

    Example:

        python -m trainers.catalog --market ./market --store ./store --work ./work/catalog
    """
    scratch = tempfile.TemporaryDirectory(prefix="vitrine-catalog-") if work is None else nullcontext(str(work))
    try:
        with scratch as folder:
            train(
                market, store, namespace=namespace, work=Path(folder), half_life_ms=round(half_life_days * DAY_MS)
            )
    except (DataError, ArtifactError, UnavailableError, OSError) as error:
        failed("catalog", error)
        raise typer.Exit(1) from None


def train(market_folder: Path, store: str, *, namespace: str, work: Path, half_life_ms: int) -> str:
    """Publish the catalog of a market and return its version; finished tasks under `work` are not done again.

    Raises DataError where the market's tables are wrong.
    """
    tasks = Tasks(work)
    with Progress("catalog", total=5) as progress:
        market = Market(market_folder)
        inputs = [f"schema {SCHEMA}", *(fingerprint(market.path(table)) for table in TABLES)]
        progress.update(1)
        tasks.run("validate", inputs, lambda out: validate(market.folder, TABLES))
        progress.update(2)
        postings = tasks.run("postings", inputs, lambda out: write_postings(market, out))
        progress.update(3)
        items = tasks.run("items", inputs, lambda out: write_items(market, out))
        progress.update(4)
        whole = tasks.run(
            "catalog",
            [postings.name, items.name, str(half_life_ms)],
            lambda out: assemble(postings, items, half_life_ms, out),
        )
        metrics = measure(Catalog.load(whole))
        published = ArtifactStore(store, namespace=namespace).publish(KIND, whole, schema=SCHEMA, metrics=metrics)
        progress.update(5, postings=float(metrics["postings"]))
    result("catalog", {KIND: published.version}, {**metrics, "tasks_resumed": len(tasks.resumed)})
    return published.version


def write_postings(market: Market, out: Path) -> None:
    """Crowds, ads and the postings between them, and their names for display."""
    crowds = market.table("crowds").sort_by("crowd_id")
    ads = market.table("ads").sort_by("ad_id")
    crowd_ids, ad_ids = crowds["crowd_id"].to_numpy(), ads["ad_id"].to_numpy()
    indptr, posting_ads, bids = build_postings(
        crowd_ids, ad_ids, *(market.column("bids", name) for name in ("crowd_id", "ad_id", "bid"))
    )
    arrays = {
        "crowds": crowd_ids,
        "crowd_indptr": indptr,
        "posting_ads": posting_ads,
        "posting_bids": bids,
        "ads": ad_ids,
        "ad_advertisers": ads["advertiser_id"].to_numpy(),
        "ad_items": ads["item_id"].fill_null(0).to_numpy(),
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


def assemble(postings: Path, items: Path, half_life_ms: int, out: Path) -> None:
    """All files of the artifact in one folder, checked by reading them as the services do."""
    arrays = {
        name: np.load(path, mmap_mode="r", allow_pickle=False)
        for name, (file, _) in FILES.items()
        for path in (postings / file, items / file)
        if path.exists()
    }
    Catalog(**arrays, half_life_ms=half_life_ms).write(out)
    for names in (TITLES_FILE, CROWD_NAMES_FILE):
        shutil.copy(postings / names, out / names)
    Catalog.load(out)


def measure(catalog: Catalog) -> Metrics:
    """What the manifest says of a catalog."""
    sizes, per_item = catalog.crowd_sizes, np.diff(catalog.item_indptr)
    bids = catalog.posting_bids
    return {
        "ads": len(catalog.ads),
        "advertisers": len(np.unique(catalog.ad_advertisers)),
        "crowds": len(catalog.crowds),
        "items": len(catalog.items),
        "postings": len(bids),
        "crowd_size_median": float(np.median(sizes)) if len(sizes) else 0.0,
        "crowd_size_max": int(sizes.max(initial=0)),
        "crowds_without_ads": int((sizes == 0).sum()),
        "crowds_per_item_mean": float(per_item.mean()) if len(per_item) else 0.0,
        "bid_median": float(np.median(bids)) if len(bids) else 0.0,
        "bid_max": float(bids.max(initial=0.0)),
        "half_life_ms": catalog.half_life_ms,
    }


def _save(arrays: dict[str, np.ndarray], out: Path) -> None:
    for name, array in arrays.items():
        file, dtype = FILES[name]
        np.save(out / file, np.ascontiguousarray(array, dtype), allow_pickle=False)
