"""What the pages stand on: clients, artifacts, the event sender and the scraper, each of which may be away."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.console.events import FiredEvents, Sender
from services.console.fresh import Fresh
from services.console.letters import Letters
from services.console.recall import Curves
from services.console.scrape import Scraper
from services.console.settings import ConsoleSettings, parse_pages
from services.console.shown import Names, Photos
from services.console.uploads import Uploads
from vitrine.ann import embeddings
from vitrine.artifacts import ArtifactStore, LocalArtifact, Manifest
from vitrine.channels import Security
from vitrine.client import AnnClient, CtrClient, MatchingClient
from vitrine.errors import UnavailableError
from vitrine.matching import catalog
from vitrine.runtime import follow

T = TypeVar("T")

_NEWEST = 6  # versions of an artifact that are shown


class Followed(Generic[T]):
    """The version of an artifact that a ref names, or why there is none: pages do without."""

    def __init__(
        self,
        store: ArtifactStore | None,
        name: str,
        load: Callable[[LocalArtifact], T],
        *,
        schema: int,
        trainer: str,
        config: ConsoleSettings,
    ) -> None:
        self.current: T | None = None
        self._name, self._load = name, load
        self._followed = store and follow.Followed(
            config, store, name, self._take, max_schema=schema, trainer=trainer
        )

    @property
    def trouble(self) -> str | None:
        """Why there is nothing, or not the newest; None where all is well."""
        if self._followed is None:
            return f"the console was started without VITRINE_STORE, so there is no {self._name}"
        return self.refusal or (None if self.current is not None else self._followed.why_not_ready)

    @property
    def refusal(self) -> str | None:
        """Why the version that the ref names is not shown; None where it is."""
        return None if self._followed is None else self._followed.refusal

    def close(self) -> None:
        if self._followed is not None:
            self._followed.close(2)

    def _take(self, artifact: LocalArtifact) -> T:
        self.current = self._load(artifact)
        return self.current


@dataclass(frozen=True)
class Published:
    """Artifacts of the store: the newest versions of each, and what the refs name."""

    manifests: list[Manifest] = field(default_factory=list)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)


class Shelf:
    """The store's manifests, looked at no more often than every few seconds; a manifest never changes."""

    def __init__(self, store: ArtifactStore | None, *, wait_s: float) -> None:
        self._store = store
        self._seen: dict[tuple[str, str], Manifest] = {}
        self._fresh = Fresh(self._look, what="the store", wait_s=wait_s)

    def published(self) -> Published:
        """Raises UnavailableError without a store or out of its reach, ArtifactError where it is damaged."""
        if self._store is None:
            raise UnavailableError("no store is set; start the console with VITRINE_STORE")
        return self._fresh.get()

    def _look(self) -> Published:
        store, found = self._store, Published()
        assert store is not None
        for name in store.names()[:200]:
            versions = store.versions(name)
            found.refs[name] = store.refs(name)
            wanted = list(dict.fromkeys([*found.refs[name].values(), *reversed(versions[-_NEWEST:])]))
            for version in wanted:
                if version in versions:
                    found.manifests.append(self._manifest(store, name, version))
        known = {(m.name, m.version) for m in found.manifests}
        self._seen = {key: manifest for key, manifest in self._seen.items() if key in known}
        return found

    def _manifest(self, store: ArtifactStore, name: str, version: str) -> Manifest:
        key = name, version
        if key not in self._seen:
            self._seen[key] = store.manifest(name, version)
        return self._seen[key]


class Backend:
    """Everything that a page asks. A client is None where its address is not set."""

    def __init__(self, config: ConsoleSettings, security: Security | None = None) -> None:
        """Raises ArtifactError and ValueError for settings that cannot be right, UnavailableError for the store."""
        self.config = config
        self.store = None
        if config.store:
            self.store = follow.open_store(config)
        timeout = {"timeout_s": config.timeout_s, "security": security}
        self.ann = AnnClient(config.ann_address, **timeout) if config.ann_address else None
        self.matching = MatchingClient(config.matching_address, **timeout) if config.matching_address else None
        self.ctr = CtrClient(config.ctr_address, **timeout) if config.ctr_address else None
        self.names = Followed(
            self.store, catalog.KIND, Names.load, schema=catalog.SCHEMA, trainer="catalog", config=config
        )
        self.photos = Followed(
            self.store, embeddings.KIND, Photos.load, schema=embeddings.SCHEMA, trainer="softmax", config=config
        )
        self.shelf = Shelf(self.store, wait_s=config.timeout_s)
        self.sender = Sender(config.kafka_url, config.namespace, timeout_s=config.timeout_s)
        self.letters = Letters(config.kafka_url, config.namespace, timeout_s=config.timeout_s)
        self.fired = FiredEvents()
        self.uploads = Uploads()
        self.curves = Curves()
        self.scraper = Scraper(
            parse_pages(config.metrics_pages),
            interval_s=config.scrape_s,
            timeout_s=config.timeout_s,
            tls=_tls(security),
        )
        self.scraper.start()

    def close(self) -> None:
        """Ends every thread and connection."""
        self.scraper.close()
        self.names.close()
        self.photos.close()
        self.sender.close()
        for client in (self.ann, self.matching, self.ctr):
            if client is not None:
                client.close()


def _tls(security: Security | None) -> ssl.SSLContext | None:
    """What metrics pages behind TLS are read with."""
    if security is None or security.ca is None:
        return None
    context = ssl.create_default_context(cafile=security.ca)
    if security.cert is not None:
        context.load_cert_chain(security.cert, security.key, password="")
    return context
