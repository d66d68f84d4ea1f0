"""Every process runs, and every metric and label that a dashboard or rule uses is one that some process exports."""

import contextlib
import hashlib
import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from ann_kit import small_index, unit_vectors
from console_kit import System, whole_system
from prometheus_client.parser import text_string_to_metric_families
from promql import OBSERVABILITY, expressions, read, recorded

from tests.waiting import wait_for
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.artifacts import ArtifactStore
from vitrine.channels import Security
from vitrine.client import AnnClient, CtrClient, MatchingClient
from vitrine.data.pictures import CATEGORIES, draw
from vitrine.placement import qualify
from vitrine.runtime import process
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.local_servers import free_ports

JOBS = ("ann", "matching", "worker", "ctr", "console")
TOKEN = "metrics-test"  # noqa: S105
# What Prometheus adds by itself.
TARGET_LABELS = {"job", "instance"}
OF_PROMETHEUS = {"up": TARGET_LABELS}

Samples = dict[str, list[dict[str, str]]]  # name -> labels of its samples, `job` among them


@pytest.fixture(scope="module")
def system(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Every process behind tokens, after some traffic and some trouble of each kind."""
    folder = tmp_path_factory.mktemp("metrics")
    callers, token = folder / "callers.toml", folder / "token"
    token.write_text(TOKEN)
    methods = [
        f"vitrine.api.{s}/*" for s in ("ann.v1.AnnService", "matching.v1.MatchingService", "ctr.v1.CtrService")
    ]
    callers.write_text(
        f'[[callers]]\nname = "test"\ntoken_sha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"\n'
        f"methods = {json.dumps([*methods, 'console/*'])}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRINE_CALLERS", str(callers))
        patch.setenv("VITRINE_CLIENT_TOKEN_FILE", str(token))
        patch.setenv("VITRINE_POLL_S", "0.2")
        with whole_system(stack, "metrics-e2e", folder) as running:
            running.console().wait_serving()
            trouble(running)
            traffic(running)
            yield running


def services(system: System) -> dict[str, str]:
    """Job -> metrics page."""
    worker, server = system.live.services[:2]
    by_job = {"worker": worker, "matching": server, **system.services}
    assert set(by_job) == set(JOBS)
    return {job: by_job[job].address("metrics") for job in JOBS}


def trouble(system: System) -> None:
    """A version that ann and one that ctr refuses, and an ad update that is none."""
    store = ArtifactStore(system.folder / "store", namespace=system.live.namespace)
    (made := system.folder / "orphan").mkdir()
    small_index(1).write(made)
    store.publish("binary-index", made, schema=1, parents={})
    (empty := system.folder / "no model").mkdir()
    (empty / "model.json").write_text("{}")
    store.publish("ctr-model", empty, schema=1)
    topic = qualify(system.live.namespace, "ad-updates")
    system.live.producer.send(topic, key=b"3", value=b"\xff").get(timeout=20)
    pages = services(system)
    for job in ("ann", "ctr"):
        wait_for(lambda page=pages[job]: total(page, "vitrine_artifact_refused_total") > 0, 30)
    wait_for(lambda: total(pages["matching"], "vitrine_tail_skipped_records_total") > 0, 30)


def traffic(system: System) -> None:
    """Calls of every kind, some without a token, a page of the console and some events."""
    ann, ctr, matching = system.services["ann"], system.services["ctr"], system.live.services[1]
    system.live.send_random(np.random.default_rng(int(time.time())), 200, users=60, poison=0.02)
    with (
        AnnClient(ann.address(), timeout_s=10, security=Security(token=TOKEN)) as search,
        CtrClient(ctr.address(), timeout_s=10, security=Security(token=TOKEN)) as scoring,
        MatchingClient(matching.address(), timeout_s=10, security=Security(token=TOKEN)) as lists,
    ):
        search.search(unit_vectors(1, 3, search.stats().dim), k=5)
        search.search(picture=draw(1, 7, CATEGORIES[0]), k=5)
        for user_id in (1, 2, 3, 999_999):
            found = lists.get_matches(user_id, k=10)
            scoring.score(found.context, [*found.ads.tolist(), 424_242])
        lists.explain(1, found.ads[:3])
    for service, method in (
        (ann, "/vitrine.api.ann.v1.AnnService/Stats"),
        (ctr, "/vitrine.api.ctr.v1.CtrService/Score"),
        (matching, "/vitrine.api.matching.v1.MatchingService/GetMatches"),
    ):
        with grpc.insecure_channel(service.address()) as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(method)(pb.GetMatchesRequest().SerializeToString(), timeout=10)
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://{system.services['console'].address()}/search", timeout=10).read()
    system.live.wait_applied()


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as page:
        return str(page.read().decode())


def total(address: str, name: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(scrape(address))
        for sample in family.samples
        if sample.name == name
    )


@pytest.fixture(scope="module")
def exported(system: System) -> Samples:
    samples: Samples = {}
    for job, address in services(system).items():
        for family in text_string_to_metric_families(scrape(address)):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append({**sample.labels, "job": job, "instance": address})
    return samples


def problems(expr: str, exported: Samples) -> list[str]:
    """What `expr` asks for and nobody exports."""
    asked, rules = read(expr), recorded()
    found = [] if asked.metrics or expr.startswith("vector(") else ["asks for nothing"]
    known: set[str] = set()
    for name, matchers in asked.metrics:
        if name in rules:
            labels, series = rules[name][1], None
        elif name in OF_PROMETHEUS:
            labels, series = OF_PROMETHEUS[name], None
        elif name in exported:
            series = exported[name]
            labels = set().union(*series)
        else:
            found.append(f"nobody exports {name}")
            continue
        known |= labels
        for label, operator, value in matchers:
            if label not in labels:
                found.append(f"{name} has no label {label}")
            elif series and operator == "=":
                series = [labels for labels in series if labels.get(label) == value]
                if not series:
                    found.append(f"no sample of {name} with {label}={value!r} beside the other labels asked for")
    if known:
        found += [f"sums by {label}, which none of its metrics has" for label in sorted(asked.grouped - known)]
    return found


def test_every_process_is_scraped_and_says_that_it_serves(exported: Samples):
    assert sorted(labels["job"] for labels in exported["vitrine_serving"]) == sorted(JOBS)


def test_every_metric_and_label_used_is_exported(exported: Samples):
    wrong = [(where, problem) for where, expr in expressions() for problem in problems(expr, exported)]
    assert wrong == []


@pytest.mark.parametrize(
    ("expr", "told"),
    [
        ("sum(rate(vitrine_nobody_total[5m]))", "nobody exports vitrine_nobody_total"),
        ('vitrine_serving{pod="a"} == 1', "vitrine_serving has no label pod"),
        ("sum by (shard) (vitrine_ann_items)", "sums by shard"),
        ('vitrine_matching_lag_records{job="ann"}', "no sample of vitrine_matching_lag_records with job='ann'"),
        ("vitrine:calls:rate5m and on (job) vitrine_nothing > 1e3", "nobody exports vitrine_nothing"),
        ("vector(1)", ""),
        ('sum by (job) (vitrine_serving{job=~"a.*"}) or absent(up{job="x"})', ""),
    ],
)
def test_what_nobody_exports_is_found(exported: Samples, expr: str, told: str):
    found = problems(expr, exported)
    assert any(told in each for each in found) if told else found == []


@pytest.fixture
def prometheus(system: System, tmp_path: Path) -> Iterator[str]:
    """Prometheus with the rules of the repository, on the processes here; its address."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs Prometheus (Debian: apt install prometheus)")
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(OBSERVABILITY / "rules/*.yml")]
    pages = services(system)
    # One index has no router.
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] in pages]
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [pages[job["job_name"]]]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    log = (tmp_path / "prometheus.log").open("wb")
    started = process.spawn(
        ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
         f"--web.listen-address={address}"], stdout=log, stderr=log,
    )  # fmt: skip
    try:
        yield f"http://{address}"
    finally:
        process.stop(started)
        log.close()


def ask(prometheus: str, path: str, **query: str) -> Mapping:
    url = f"{prometheus}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        if error.code == 503:  # not ready yet
            return {}
        raise AssertionError(f"{query}: {error.read().decode()}") from error
    except urllib.error.URLError:
        return {}


@pytest.mark.slow
def test_every_expression_of_a_dashboard_gives_data_on_a_live_system(system: System, prometheus: str):
    def scraped() -> bool:
        targets = ask(prometheus, "targets").get("activeTargets", ())
        return len(targets) == len(JOBS) and all(target["health"] == "up" for target in targets)

    wait_for(scraped, 60)
    for _ in range(4):  # rates need increases between scrapes
        traffic(system)
        time.sleep(1.5)
    boards = [(where, expr) for where, expr in expressions() if not where.startswith("rule ")]

    def without_data() -> list[str]:
        return [
            f"{where}: {expr}"
            for where, expr in boards
            if not ask(
                prometheus, "query", query=expr.replace("$__rate_interval", "1m").replace("$namespace", ".*")
            )["result"]
        ]

    wait_for(lambda: not without_data(), 60, lambda: "no data:\n" + "\n".join(without_data()))
    rules = ask(prometheus, "rules")["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} == {"ok"}
