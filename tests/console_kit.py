"""What the console's tests share: photos, an index of them, named ads, and a whole live system with a console."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ann_kit import write_encoder
from ctr_kit import random_model
from matching_kit import small_catalog
from matching_live import Live, Service

from vitrine.ann import embeddings, hashing, index, pictures
from vitrine.ann.encoder import Encoder
from vitrine.ann.index import BinaryIndex
from vitrine.artifacts import ArtifactStore
from vitrine.ctr import model
from vitrine.data.pictures import CATEGORIES, draw
from vitrine.matching import catalog
from vitrine.runtime import process
from vitrine.runtime.embedded import EmbeddedStack

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather be given httpx2
    from starlette.testclient import TestClient

__all__ = ["LOOKER", "NASTY", "TOKEN", "System", "TestClient", "photo_ids", "publish_photos", "whole_system"]

PHOTOS = 240
TOKEN, LOOKER = "may-do-all", "may-look-alone"

# Browsers must show these as they stand.
NASTY = '<img src=x onerror="alert(1)">&amp;\N{RIGHT-TO-LEFT OVERRIDE}\'"'


def photo_ids() -> np.ndarray:
    """Items of the small catalog first, so that its ads have photos."""
    return np.arange(1, PHOTOS + 1, dtype=np.uint64) * 7


def publish_photos(store: ArtifactStore, folder: Path, *, over_recall: int = 4) -> str:
    """`embeddings` of drawn photos, every fourth of the test split, and the `binary-index` of the others."""
    source = folder / "embeddings"
    source.mkdir()
    ids = photo_ids()
    categories = [CATEGORIES[i % len(CATEGORIES)] for i in range(PHOTOS)]
    images = [draw(1, int(id), category) for id, category in zip(ids, categories, strict=True)]
    write_encoder(source / embeddings.ENCODER_FILE, 32)
    encoder = Encoder(source / embeddings.ENCODER_FILE)
    vectors = encoder.encode(np.stack([pictures.load(image) for image in images]))
    split = np.where(np.arange(PHOTOS) % 4 == 3, "test", "train")
    np.save(source / "ids.npy", ids)
    np.save(source / "vectors.npy", vectors)
    columns = [pa.array(ids), split.tolist(), categories, images]
    pq.write_table(pa.table(columns, schema=embeddings.THUMBNAILS_SCHEMA), source / embeddings.THUMBNAILS_FILE)
    parent = store.publish(embeddings.KIND, source, schema=embeddings.SCHEMA)
    rows = np.flatnonzero(split == "train")
    function = hashing.fit(vectors[rows], 64, seed=0)
    made = BinaryIndex.of(ids[rows], vectors[rows], function, over_recall=over_recall)
    (folder / "index").mkdir()
    made.write(folder / "index")
    parents = {embeddings.KIND: parent.version}
    return store.publish(index.KIND, folder / "index", schema=index.SCHEMA, parents=parents).version


def write_names(folder: Path) -> None:
    """Titles of the small catalog's ads and names of its crowds, beside its arrays; one of each is nasty."""
    held = small_catalog()
    titles = [f"ad of item {i}" for i in range(len(held.ads))]
    names = [f"crowd named {i}" for i in range(len(held.crowds))]
    titles[0], names[0] = NASTY, NASTY
    pq.write_table(pa.table([held.ads, titles], schema=catalog.TITLES_SCHEMA), folder / catalog.TITLES_FILE)
    pq.write_table(
        pa.table([held.crowds, names], schema=catalog.CROWD_NAMES_SCHEMA), folder / catalog.CROWD_NAMES_FILE
    )


def write_callers(file: Path) -> Path:
    """A file of two callers: TOKEN may all, LOOKER may read."""
    entries = (("operator", TOKEN, ["console/*"]), ("guest", LOOKER, ["console/read"]))
    file.write_text(
        "".join(
            f'[[callers]]\nname = "{name}"\ntoken_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
            f"methods = {json.dumps(methods)}\n"
            for name, token, methods in entries
        )
    )
    return file


class System:
    """A live system: worker, matching, ann, ctr, and consoles over them."""

    def __init__(self, live: Live, folder: Path) -> None:
        self.live, self.folder = live, folder
        self.services: dict[str, Service] = {}
        self.environment: dict[str, str] = {}

    def start(self, name: str, arguments: list[str], **settings: str) -> Service:
        extra = {f"VITRINE_{key.upper()}": value for key, value in settings.items()}
        self.services[name] = Service(arguments, self.environment | extra, self.folder, name)
        return self.services[name]

    def console(self, name: str = "console", **settings: str) -> Service:
        """A console over everything that serves, with further settings."""
        running = {"matching": self.live.services[1], "worker": self.live.services[0], **self.services}
        pages = ",".join(
            f"{n}=http://{s.address('metrics')}/metrics" for n, s in running.items() if n[:7] != "console"
        )
        addresses = {f"{n}_address": running[n].address() for n in ("ann", "matching", "ctr")}
        given = {"metrics_pages": pages, "scrape_s": "0.3", "poll_s": "0.2"} | addresses | settings
        return self.start(name, ["services.console"], **given)


@contextmanager
def whole_system(stack: EmbeddedStack, namespace: str, folder: Path) -> Iterator[System]:
    """Everything but the console, serving, with a few users who have lists."""
    live = Live(stack, namespace, folder)
    system = System(live, folder)
    try:
        store = ArtifactStore(folder / "store", namespace=namespace)
        write_names(folder / "catalog")
        store.publish(catalog.KIND, folder / "catalog", schema=catalog.SCHEMA)
        publish_photos(store, folder)
        (folder / "model").mkdir()
        random_model().write(folder / "model")
        store.publish(model.KIND, folder / "model", schema=model.SCHEMA)
        system.environment = os.environ | {
            "PYTHONPATH": os.getcwd(),
            "VITRINE_NAMESPACE": namespace,
            "VITRINE_STORE": str(folder / "store"),
            "VITRINE_KAFKA_URL": stack.kafka_url,
            "OMP_NUM_THREADS": "1",
        }
        worker, server = live.worker(), live.server()
        ann, ctr = system.start("ann", ["services.ann"]), system.start("ctr", ["services.ctr"])
        live.send_random(np.random.default_rng(5), 1_500, users=60, poison=0.01)
        for service in (worker, server, ann, ctr):
            service.wait_serving()
        live.wait_applied()
        yield system
    finally:
        for service in system.services.values():
            process.stop(service.process)
        live.close()
