"""Stored lists as they are served: where answers come from, how old they are, what is paused."""

from observability.dashboards.grafana import Json, Query, dashboard, graph
from observability.dashboards.panels import (
    answers,
    contact,
    increase,
    of,
    processes,
    quantiles,
    service_calls,
    service_now,
    unread_ad_updates,
)

_SERVICE = "vitrine.api.matching.v1.MatchingService"


def board() -> Json:
    """The dashboard."""
    return dashboard(
        "vitrine-matching",
        "Vitrine: matching",
        "Stored lists as they are served: where answers come from, how old they are, what is paused.",
        [
            ("Now", service_now("matching", _SERVICE, "GetMatches", objective=0.025)),
            ("Calls", service_calls("matching", _SERVICE)),
            (
                "Answers",
                [
                    answers(),
                    graph(
                        "Share of fallbacks",
                        "Of the answers of five minutes.",
                        "percentunit",
                        Query(of("vitrine:fallbacks:ratio_rate5m"), "fallbacks {{namespace}}"),
                        most=1,
                    ),
                    graph(
                        "Age of the lists served",
                        "Since the append of the last event that a list reflects: when its user was last here.",
                        "s",
                        *quantiles("vitrine_matching_list_age_seconds", 0.5, 0.9),
                    ),
                    contact('job="matching"', by="instance"),
                    unread_ad_updates(),
                    graph(
                        "Ad updates passed over",
                        "Records that could not be applied, in five minutes.",
                        "short",
                        Query(
                            increase("vitrine_tail_skipped_records_total", 'job="matching"', by="topic, instance"),
                            "{{topic}} {{instance}}",
                        ),
                    ),
                ],
            ),
            ("Processes", processes("matching")),
        ],
    )
