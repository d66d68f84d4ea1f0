"""Train and publish everything the services need, side by side, feeding the panel."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrine.cli.applications import trainer_arguments
from vitrine.cli.panel import Panel
from vitrine.cli.system import System

TRAINERS = {
    "catalog": "train catalog (crowd -> ads and bids)",
    "des": "train des (click rate, towers)",
    "softmax": "train softmax (picture encoder)",
    "bdg": "train bdg (binary index)",
}


@dataclass(frozen=True)
class Trained:
    """Result lines of the trainers, each there once it has published; `index` has the encoder's metrics too."""

    catalog: Future[dict[str, Any]]
    des: Future[dict[str, Any]]
    index: Future[dict[str, Any]]


def train(
    system: System, panel: Panel, pool: ThreadPoolExecutor, market: Path, store: Path, namespace: str, seed: int
) -> Trained:
    """Start all trainers: catalog, des and softmax at once, bdg after softmax; des and softmax as two processes.

    Each future raises RunError where its job fails.
    """
    work = system.folder / "work"
    common = ["--store", str(store), "--namespace", namespace]

    def run(name: str, *own: str) -> dict[str, Any]:
        def show(message: dict[str, Any]) -> None:
            total = message.get("total")
            panel.update(name, _figures(message["metrics"]), message["step"] / total if total else None)

        panel.start(name)
        try:
            result = system.run_job(
                name, trainer_arguments(name, 2), [*common, "--work", str(work / name), *own], show
            )
        except BaseException:
            panel.fail(name)
            raise
        published = ", ".join(f"{k} {v[:15]}" for k, v in result["artifacts"].items())
        panel.done(name, f"{_figures(result['metrics'])}  ->  {published}")
        return result

    def pictures() -> dict[str, Any]:
        encoder = run("softmax", "--images", str(market / "images.parquet"), "--seed", str(seed))
        index = run("bdg", "--seed", str(seed))
        return {**index, "metrics": {**encoder["metrics"], **index["metrics"]}}

    return Trained(
        catalog=pool.submit(run, "catalog", "--market", str(market)),
        des=pool.submit(run, "des", "--market", str(market), "--seed", str(seed)),
        index=pool.submit(pictures),
    )


_SHOWN = ("loss", "auc", "ctr_auc", "accuracy", "search_same_category_at_10", "recall_at_10", "ads", "postings")


def _figures(metrics: dict[str, Any]) -> str:
    shown = [(k, metrics[k]) for k in _SHOWN if k in metrics]
    return "  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v:,}" for k, v in shown)
