"""What the server answers from: the ruling activation's catalog and towers, and the market as the tail has it.

One thread follows: it publishes each market that the tail has read, and when another activation comes to rule,
loads its artifacts beside what is served and swaps. Meanwhile lists of either are answered: numbers are the same.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.matching.artifacts import Artifacts, LoadedTowers, make_matcher
from services.matching.settings import MatchingSettings
from vitrine.matching.fallback import Fallback
from vitrine.matching.match import Matcher
from vitrine.matching.showing import Showing
from vitrine.matching.updates import Active, RecordError, Updates
from vitrine.placement import arm_of, qualify
from vitrine.runtime import logs, metrics, topics
from vitrine.runtime.consume import Record
from vitrine.runtime.readings import Readings
from vitrine.runtime.tail import Tail, skip

# A fallback is made anew at most so often, where the market has moved: it takes a match over all crowds.
_FRESH_S = 5.0
_LOOK_S = 0.25
_AGAIN_S = 5.0

_log = logs.get_logger(__name__)

ads = Readings(
    "vitrine_matching_ads", "Ads of the market: live, and not, and defined anew since the base.", "state"
)
position = Readings("vitrine_matching_market_position", "Next offset of ad-updates that is not shown yet.")


@dataclass(frozen=True, slots=True)
class Now:
    """One moment's answers: a call uses one from beginning to end.

    active:   the activation that rules; None before the first, where the settings' refs do
    matchers, fallbacks: by arm
    """

    active: Active | None
    showing: Showing
    matchers: Mapping[str, Matcher]
    fallbacks: Mapping[str, Fallback]

    @property
    def served(self) -> int:
        """The most ads that a list may serve."""
        return self.matchers["a"].served

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the placement groups."""
        return self.showing.market.catalog.groups

    def arm(self, user_id: int) -> str:
        """The model arm of a user."""
        return "a" if self.active is None else arm_of(user_id, self.active.other_share)


class Serving:
    """Keeps `now` as new as the tail of `ad-updates`. Raises as `Artifacts` does for the settings' refs."""

    def __init__(
        self, config: MatchingSettings, artifacts: Artifacts, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.trouble: str | None = None
        self._config, self._artifacts, self._clock = config, artifacts, clock
        catalog, version = artifacts.catalog(config.catalog)
        self._updates = Updates(catalog, version, catalog.offset)
        self._shown(None, self._updates, {"a": artifacts.towers(config.towers)})
        self._settled = False
        self._refused: tuple[int, float] = (-1, 0.0)  # epoch, when it was tried
        self._moved, self._closing = threading.Event(), threading.Event()
        topic = qualify(config.namespace, topics.AD_UPDATES)
        # From the beginning: activations may be older than any catalog.
        self.tail = Tail(config.kafka_url, topic, self._apply)
        ads.add(self._count)
        position.add(self._position)
        self._thread = threading.Thread(target=self._follow, name="serving", daemon=True)
        self._thread.start()

    def why_not_ready(self, staleness_bound_s: float) -> str | None:
        """Why it is not known what may be shown: the tail has ended or is behind, or Kafka is silent."""
        if self.tail.error is not None:
            return str(self.tail.error)
        if not self._settled:
            return self.trouble or f"{self.tail.topic} is not read whole yet"
        silent = self.tail.seconds_since_contact
        return f"no word from Kafka for {silent:.0f} s" if silent > staleness_bound_s else None

    def close(self) -> None:
        """Ends the tail and the thread."""
        self.tail.close()
        self._closing.set()
        self._moved.set()
        self._thread.join()
        ads.remove(self._count)
        position.remove(self._position)

    def _count(self) -> Mapping[str, float]:
        market = self.now.showing.market
        known = len(market.dead) + len(market.extra.ads) - int(market.redefined.sum())
        return {"live": market.live_ads, "off": known - market.live_ads, "redefined": len(market.extra.ads)}

    def _position(self) -> Mapping[str, float]:
        return {"": self.now.showing.market.position}

    def _apply(self, records: Mapping[int, Sequence[Record]]) -> int:
        skipped = 0
        for partition, some in records.items():
            for each in some:
                try:
                    self._updates.apply(each.offset, each.timestamp, each.key, each.value)
                except RecordError as error:
                    skipped += 1
                    skip(self.tail.topic, partition, each, str(error))
        self._moved.set()
        return skipped

    def _follow(self) -> None:
        while not self._closing.is_set():
            self._moved.wait(_LOOK_S)
            self._moved.clear()
            if not self.tail.caught_up.is_set():
                continue
            try:
                self._switch()
                self._publish()
                self._settled = self._settled or self.trouble is None
            except Exception as error:  # whatever is wrong with a market, what was is served on, and said to be old
                self.trouble = f"ad updates are not shown: {error!r}"
                _log.exception("ad updates are not shown")

    def _switch(self) -> None:
        """Loads what another activation names, and swaps."""
        active = self._updates.ruling(int(self._clock() * 1000))
        if active is None or active == self.now.active:
            self.trouble = None
            return
        epoch, tried = self._refused
        if epoch == active.offset and time.monotonic() - tried < _AGAIN_S:
            return
        try:
            catalog, version = self._artifacts.catalog(active.catalog_version)
            towers = {"a": self._artifacts.towers(active.towers_version)}
            if active.other_towers_version:
                towers["b"] = self._artifacts.towers(active.other_towers_version)
            with self.tail.held():
                updates = self._updates.over(catalog, version, catalog.offset)
                self._updates = updates
            self._shown(active, updates, towers)
        except Exception as error:  # an artifact that is gone, damaged or newer: what was active is served on
            self._refused = active.offset, time.monotonic()
            self.trouble = f"the activation at offset {active.offset} is not served: {error}"
            _log.error("activation refused", offset=active.offset, reason=str(error))
            return
        self.trouble = None
        _log.info("activated", offset=active.offset, catalog=version, towers=active.towers_version)

    def _shown(self, active: Active | None, updates: Updates, towers: Mapping[str, LoadedTowers]) -> None:
        """Serves from these from now on."""
        market = updates.market()
        showing = Showing(market).warm()
        epoch = -1 if active is None else active.offset
        matchers = {arm: make_matcher(market, each, self._config, epoch=epoch) for arm, each in towers.items()}
        fallbacks = {arm: Fallback(matcher, showing) for arm, matcher in matchers.items()}
        for fallback in fallbacks.values():
            fallback.best(1, 0)
        self._made = time.monotonic()
        self.now = Now(active, showing, matchers, fallbacks)
        metrics.artifact_served("catalog", market.catalog_version)
        metrics.artifact_served("towers", matchers["a"].towers_version)
        if "b" in matchers:
            metrics.artifact_served("towers-b", matchers["b"].towers_version)

    def _publish(self) -> None:
        """The market as the tail has it by now."""
        now, market = self.now, self._updates.market()
        made_of = now.matchers["a"].market
        if market is not now.showing.market:
            showing = Showing(market, now.showing.base).warm()
            self.now = now = Now(
                now.active,
                showing,
                now.matchers,
                {arm: each.moved(showing) for arm, each in now.fallbacks.items()},
            )
        if market is not made_of and time.monotonic() - self._made > _FRESH_S:
            matchers = {arm: matcher.moved(market) for arm, matcher in now.matchers.items()}
            fallbacks = {arm: Fallback(matcher, now.showing) for arm, matcher in matchers.items()}
            for fallback in fallbacks.values():
                fallback.best(1, 0)
            self._made = time.monotonic()
            self.now = Now(now.active, now.showing, matchers, fallbacks)
