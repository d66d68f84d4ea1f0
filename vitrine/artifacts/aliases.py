"""Aliases of indexes: one small object of the store says which artifact a name stands for, and stood for before.

`<root>/<namespace>._aliases` is JSON, replaced whole: {"aliases": {alias: [index, the one before]}}. Its name
cannot be an artifact's. Nothing is locked: a writer writes first and looks second, so that of two writers who cross
at least one is told.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from vitrine.artifacts.manifest import ArtifactError, MissingArtifactError, check_name
from vitrine.artifacts.store import ArtifactStore
from vitrine.errors import UnavailableError
from vitrine.placement import qualify

log = logging.getLogger(__name__)

KEPT = 2  # indexes of an alias: the one that it stands for, and the one before
_MAX_ALIASES = 1_000
_MAX_BYTES = 1 << 20


class Aliases:
    """What aliases stand for, read from memory and kept fresh by a thread until `close`.

    What was read last holds on while the store cannot be reached, or while the object is damaged (`trouble`). The
    first read is made at once: ArtifactError and UnavailableError are its, so that nothing starts without them.
    """

    def __init__(self, store: ArtifactStore, *, interval_s: float = 1.0) -> None:
        self._store = store
        self._interval_s = interval_s
        self._found = {alias: names[0] for alias, names in read(store).items()}
        self._trouble: str | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aliases", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str | None:
        """Why the aliases may be those of a while ago; None where they are fresh."""
        return self._trouble

    def resolve(self, name: str) -> str:
        """The index that an alias stands for; any other name stands for itself."""
        return self._found.get(name, name)

    def poll(self) -> None:
        """Looks once, now. Raises nothing."""
        try:
            found = {alias: names[0] for alias, names in read(self._store).items()}
        except (ArtifactError, UnavailableError) as error:
            self._tell(str(error))
            return
        for alias, index in found.items():
            if self._found.get(alias) != index:
                log.info("alias %s is %s", alias, index)
        self._found = found
        self._tell(None)

    def close(self) -> None:
        """Looks no more."""
        self._closed.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed.wait(self._interval_s):
            self.poll()

    def _tell(self, trouble: str | None) -> None:
        """Logs a trouble when it begins and when it ends."""
        if trouble != self._trouble:
            self._trouble = trouble
            if trouble:
                log.warning("aliases are not read again: %s", trouble)
            else:
                log.info("aliases are read again")


def read(store: ArtifactStore) -> dict[str, list[str]]:
    """{alias: [index, the one before]}, by alias. Raises ArtifactError where the object is damaged."""
    key = _key(store)
    try:
        data = store.objects.read(key, _MAX_BYTES)
    except FileNotFoundError:
        return {}
    try:
        found = _checked(json.loads(data)) if len(data) <= _MAX_BYTES else None
    except (ValueError, RecursionError):
        found = None
    if found is None:
        raise ArtifactError(
            f"{store.root}/{key}: does not hold aliases; remove it and set them anew: vitrine index alias set"
        )
    return found


def set_alias(store: ArtifactStore, alias: str, index: str) -> str | None:
    """Lets an alias stand for an index that has a stable version; returns the one that it stood for before."""
    check_name(alias)
    if alias == index or alias in store.names():
        raise ArtifactError(f"alias {alias}: is the name of an artifact; use one that no artifact has")
    try:
        store.resolve(index)
    except MissingArtifactError as error:
        raise ArtifactError(f"alias {alias}: {index} has no stable version to serve ({error})") from error
    before: list[str] = []

    def change(aliases: dict[str, list[str]]) -> None:
        if alias not in aliases and len(aliases) >= _MAX_ALIASES:
            raise ArtifactError(
                f"alias {alias}: there are {len(aliases)} aliases, the most there can be; remove some"
            )
        before[:] = aliases.get(alias, [])
        aliases[alias] = [index, *(name for name in before if name != index)][:KEPT]

    _write(store, alias, change)
    return before[0] if before else None


def remove(store: ArtifactStore, alias: str) -> None:
    """Lets an alias stand for nothing."""

    def change(aliases: dict[str, list[str]]) -> None:
        _known(store, aliases, alias)
        del aliases[alias]

    _write(store, alias, change)


def rollback(store: ArtifactStore, alias: str) -> str:
    """Lets an alias stand for the index before its present one, which is kept as the one before; returns it."""
    found: list[str] = []

    def change(aliases: dict[str, list[str]]) -> None:
        names = _known(store, aliases, alias)
        if len(names) < 2:
            raise ArtifactError(
                f"alias {alias}: stood for nothing before {names[0]}; vitrine index alias set names one"
            )
        found[:] = [names[1], names[0]]
        aliases[alias] = list(found)

    _write(store, alias, change)
    return found[0]


def _write(store: ArtifactStore, alias: str, change: Callable[[dict[str, list[str]]], None]) -> None:
    aliases = read(store)
    change(aliases)
    document = {"aliases": dict(sorted(aliases.items()))}
    store.objects.put(_key(store), json.dumps(document, indent=1).encode())
    if read(store).get(alias) != aliases.get(alias):
        raise ArtifactError(f"alias {alias}: somebody else has written aliases meanwhile; list them, and try again")


def _known(store: ArtifactStore, aliases: Mapping[str, list[str]], alias: str) -> list[str]:
    if alias not in aliases:
        there = ", ".join(aliases) or "none"
        raise MissingArtifactError(
            f"alias {alias[:100]!r}: there is no such alias in {store.root}; there are: {there}"
        )
    return aliases[alias]


def _key(store: ArtifactStore) -> str:
    return qualify(store.namespace, "_aliases")


def _checked(document: Any) -> dict[str, list[str]]:
    """The document's aliases; ValueError where it has another form."""
    aliases = document["aliases"] if isinstance(document, dict) and document.keys() == {"aliases"} else None
    if not isinstance(aliases, dict) or len(aliases) > _MAX_ALIASES:
        raise ValueError("no aliases")
    for alias, names in aliases.items():
        if not isinstance(names, list) or not 1 <= len(names) <= KEPT:
            raise ValueError(f"{alias} names no indexes")
        try:
            for name in (alias, *names):
                check_name(name if isinstance(name, str) else "")
        except ArtifactError as error:
            raise ValueError(str(error)) from error
    return aliases
