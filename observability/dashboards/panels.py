"""What dashboards share: expressions over the chosen namespace, and panels that several of them show."""

from observability.dashboards.grafana import Panel, Query, graph, stat, table

_NAMESPACE = 'namespace=~"$namespace"'
_RATE = "$__rate_interval"


def of(metric: str, *matchers: str) -> str:
    """A metric's series in the namespace chosen: `of("vitrine_serving", 'job="ann"')`."""
    return f"{metric}{{{', '.join((*matchers, _NAMESPACE))}}}"


def rate(metric: str, *matchers: str) -> str:
    """A counter's increase a second."""
    return f"rate({of(metric, *matchers)}[{_RATE}])"


def total_rate(metric: str, *matchers: str, by: str = "") -> str:
    """A counter's increase a second, summed, by the labels `by`."""
    return f"sum {f'by ({by}) ' if by else ''}({rate(metric, *matchers)})"


def increase(metric: str, *matchers: str, by: str, over: str = "5m") -> str:
    """A counter's increase in a while, by the labels `by`."""
    return f"sum by ({by}) (increase({of(metric, *matchers)}[{over}]))"


def quantile(q: float, histogram: str, *matchers: str, by: str = "") -> str:
    """A quantile of a histogram, over the processes, by the labels `by`."""
    summed = total_rate(histogram + "_bucket", *matchers, by=f"{by}, le" if by else "le")
    return f"histogram_quantile({q}, {summed})"


def quantiles(histogram: str, *wanted: float) -> tuple[Query, ...]:
    """Quantiles of a histogram, named p50 and so on."""
    return tuple(Query(quantile(q, histogram), f"p{q * 100:g}") for q in wanted)


# Panels that several dashboards show.


def service_now(job: str, service: str, method: str, *, objective: float) -> list[Panel]:
    """A service at a glance. objective: of the method's p99, seconds, as in the rules file."""
    calls = f'grpc_service="{service}"'
    return [
        serving(job),
        stat(
            "Calls", "Answered a second.", "reqps", Query(total_rate("grpc_server_handled_total", calls), "calls")
        ),
        stat(
            "Failed",
            "Share of the calls of five minutes that failed by the service's fault.",
            "percentunit",
            Query(f"max ({of('vitrine:calls_failed:ratio_rate5m', calls)})", "failed"),
            (0.001, "orange"),
            (0.0144, "red"),
            decimals=2,
        ),
        stat(
            f"{method}, p99",
            "In the server, over five minutes.",
            "s",
            Query(f"max ({of('vitrine:latency_p99:5m', calls, _is('grpc_method', method))})", "p99"),
            (objective, "orange"),
        ),
        stat(
            "In flight",
            "Calls being handled now, over all processes.",
            "short",
            Query(f"sum ({of('grpc_server_in_flight', _is('job', job))})", "in flight"),
        ),
        stat(
            "Degraded",
            "Processes that answer with less than they should.",
            "short",
            Query(f"count ({of('vitrine_degraded', _is('job', job))} == 1) or vector(0)", "degraded"),
            (1, "orange"),
        ),
    ]


def service_calls(job: str, service: str) -> list[Panel]:
    """A service's calls over time: status, latency against its objective, callers refused."""
    calls = f'grpc_service="{service}"'
    return [
        graph(
            "Calls by status",
            "Answered a second.",
            "reqps",
            Query(
                total_rate("grpc_server_handled_total", calls, by="grpc_method, grpc_code"),
                "{{grpc_method}} {{grpc_code}}",
            ),
            stack=True,
        ),
        graph(
            "Latency",
            "From a worker thread's taking the call to its answer. Dashed: what p99 is held against.",
            "s",
            *(
                Query(
                    quantile(q, "grpc_server_handling_seconds", calls, by="grpc_method"),
                    f"{{{{grpc_method}}}} p{q * 100:g}",
                )
                for q in (0.5, 0.99)
            ),
            Query(f"vitrine:latency_objective:seconds{{{calls}}}", "{{grpc_method}} objective"),
            dashed="objective",
        ),
        graph(
            "Refused callers",
            "Calls a second of unknown tokens, methods not allowed and callers over their rate.",
            "reqps",
            Query(
                total_rate("vitrine_calls_refused_total", _is("job", job), by="caller, reason"),
                "{{caller}} {{reason}}",
            ),
        ),
    ]


def processes(job: str, *, follows: bool = False, waits: bool = True) -> list[Panel]:
    """A job's processes: CPU, memory, conditions, artifacts.

    follows: it serves what a ref names, so it may refuse a version. waits: it has checks to pass before it serves
    """
    own = _is("job", job)
    panels = [
        graph(
            "CPU", "Cores in use.", "short", Query(rate("process_cpu_seconds_total", own), "{{instance}}"), width=6
        ),
        graph(
            "Memory", "Resident.", "bytes", Query(of("process_resident_memory_bytes", own), "{{instance}}"), width=6
        ),
        graph(
            "Not ready, degraded",
            "1 where a check fails; the log has the reason in words.",
            "short",
            Query(f"max by (reason) ({of('vitrine_degraded', own)})", "degraded: {{reason}}"),
            *([Query(f"max by (check) ({of('vitrine_not_ready', own)})", "not ready: {{check}}")] if waits else []),
            width=6,
            most=1,
        ),
        graph(
            "Restarts, lost spans",
            "In an hour: restarts under one address; batches of spans that the trace collector did not take.",
            "short",
            Query(f"changes({of('process_start_time_seconds', own)}[1h])", "restarts {{instance}}"),
            Query(
                increase("vitrine_trace_export_failures_total", own, by="instance", over="1h"), "lost {{instance}}"
            ),
            width=6,
        ),
        table(
            "Artifacts in use",
            "Versions by process; two versions of one name for long mean that a replica refuses the newer one.",
            f"sum by (name, version, instance) ({of('vitrine_artifact_info', own)})",
            "name",
            "version",
            "instance",
        ),
    ]
    if follows:
        panels.append(
            graph(
                "Versions refused",
                "In an hour; the old version is served on.",
                "short",
                Query(
                    increase("vitrine_artifact_refused_total", own, by="name, instance", over="1h"),
                    "{{name}} {{instance}}",
                ),
                width=12,
            )
        )
    return panels


def serving(job: str) -> Panel:
    return stat(
        "Serving",
        "Processes whose health says SERVING.",
        "short",
        Query(f"sum ({of('vitrine_serving', _is('job', job))})", "serving"),
    )


def contact(*matchers: str, by: str, width: int = 8) -> Panel:
    """Since when Redis and Kafka have not answered."""
    return graph(
        "Since Redis and Kafka answered",
        "Both are asked about once a second; the worst by what is named.",
        "s",
        Query(f"max by ({by}) ({of('vitrine_redis_contact_age_seconds', *matchers)})", f"Redis {{{{{by}}}}}"),
        Query(f"max by ({by}) ({of('vitrine_kafka_contact_age_seconds', *matchers)})", f"Kafka {{{{{by}}}}}"),
        width=width,
    )


def answers() -> Panel:
    return graph(
        "Answers by source",
        "GetMatches: the user's own list, or a fallback: there is none, it is too old, or Redis is away.",
        "reqps",
        Query(total_rate("vitrine_matching_answers_total", by="source"), "{{source}}"),
        stack=True,
    )


def oldest_event(*, width: int = 4) -> Panel:
    return stat(
        "Oldest event waiting",
        "Age of the oldest event that is not applied yet.",
        "s",
        Query(f"max ({of('vitrine_matching_backlog_age_seconds')})", "age"),
        (10, "orange"),
        (60, "red"),
        width=width,
    )


def backlog_age() -> Panel:
    return graph(
        "Backlog age",
        "Since the append of the oldest event not yet applied, by partition; 0 where nothing waits.",
        "s",
        Query(f"max by (partition) ({of('vitrine_matching_backlog_age_seconds')})", "{{partition}}"),
    )


def events_and_lists(*, width: int = 8) -> Panel:
    return graph(
        "Events in, lists out",
        "Applied and written a second.",
        "cps",
        Query(total_rate("vitrine_matching_events_applied_total"), "events"),
        Query(total_rate("vitrine_matching_lists_written_total"), "lists"),
        width=width,
    )


def time_in_batches() -> Panel:
    return graph(
        "Time in batches",
        "Share of a worker's time: near 1, it is at its limit.",
        "percentunit",
        Query(rate("vitrine_matching_batch_seconds_sum"), "{{instance}}"),
        most=1,
    )


def unread_ad_updates() -> Panel:
    return graph(
        "Ad updates not yet applied",
        "A paused ad is shown until its record is read.",
        "short",
        Query(of("vitrine_tail_lag_records"), "{{topic}} {{job}} {{instance}}"),
    )


def _is(label: str, value: str) -> str:
    return f'{label}="{value}"'
