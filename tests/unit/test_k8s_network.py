"""Network policies: what the settings name can be reached, by those who name it, and nothing else can."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.deploy_kit import METRICS_PORT, PORTS
from tests.k8s_kit import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    Pod,
    combined,
    container_of,
    environment,
    kustomize,
    name_of,
    ours,
    pick,
    pods,
    selects,
)

OWN = {"kubernetes.io/metadata.name": "vitrine"}


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod's labels and named ports, its namespace's labels; or an address outside."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: Mapping[str, str] = field(default_factory=lambda: OWN)
    ports: Mapping[str, int] = field(default_factory=dict)
    outside: bool = False


def end(pod: Pod) -> End:
    named = {port["name"]: port["containerPort"] for c in pod.containers() for port in c.get("ports", ())}
    return End(pod.labels, ports=named)


def peer_is(peer: Mapping[str, Any], other: End) -> bool:
    if "ipBlock" in peer:
        return other.outside and peer["ipBlock"]["cidr"] == "0.0.0.0/0"
    if other.outside:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], other.namespace):
            return False
    elif other.namespace != OWN:
        return False
    return selects(peer.get("podSelector", {}), other.labels)


def port_is(wanted: Mapping[str, Any], target: End, port: int, protocol: str) -> bool:
    if wanted.get("protocol", "TCP") != protocol:
        return False
    first = target.ports.get(wanted["port"], -1) if isinstance(wanted["port"], str) else wanted["port"]
    return first <= port <= wanted.get("endPort", first)


def passes(objects, direction: str, this: End, other: End, target: End, port: int, protocol: str) -> bool:
    """Whether the policies of `this` end let the connection through in this direction."""
    key = {"Ingress": "from", "Egress": "to"}[direction]
    if this.outside or this.namespace != OWN:
        return True  # not ours to say
    policies = [
        item["spec"]
        for item in pick(objects, "NetworkPolicy")
        if direction in item["spec"]["policyTypes"] and selects(item["spec"]["podSelector"], this.labels)
    ]
    if not policies:
        return True
    return any(
        (not rule.get(key) or any(peer_is(peer, other) for peer in rule[key]))
        and (not rule.get("ports") or any(port_is(each, target, port, protocol) for each in rule["ports"]))
        for policy in policies
        for rule in policy.get(direction.lower(), ())
    )


def reaches(objects, source: End, target: End, port: int, protocol: str = "TCP") -> bool:
    return passes(objects, "Egress", source, target, target, port, protocol) and passes(
        objects, "Ingress", target, source, target, port, protocol
    )


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    made = {name: kustomize(K8S / "overlays" / name) for name in OVERLAYS}
    return {**made, "all": combined(tmp_path_factory.mktemp("network") / "all", COMPONENTS)}


def one(objects, where: str) -> End:
    (pod,) = [pod for pod in pods(objects) if pod.where.rpartition("/")[2] == where]
    return end(pod)


KAFKA = End({"strimzi.io/cluster": "vitrine"}, ports={"tcp-clients": 9092})
DNS = End({"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"})
FRONT_END = End({"app": "shop"}, {"vitrine/front-end": "true"})
PROMETHEUS = End({"app": "prometheus"}, {"vitrine/prometheus": "true"})
STRANGER, NEIGHBOUR = End({"app": "x"}, {"name": "elsewhere"}), End({"app": "x"})
OUTSIDE = End(outside=True)
PROCESSES = {"ann-shard-0": 7001, "matching": 7002, "ctr": 7003, "console": 7004}
UNCALLED = {"worker": METRICS_PORT, "clock": METRICS_PORT}
OF_SHARDS = {"ann-shard-1": 7001, "ann-router": 7005}


def addresses(pod: Pod, objects) -> set[tuple[str, int]]:
    """host:port of everything that a pod's variables name."""
    text = []
    for container in pod.containers():
        env, _ = environment(container, objects)
        text += [value for value in env.values() if value]
        for variable in container.get("env", ()):
            named = variable.get("valueFrom", {}).get("secretKeyRef")
            for secret in pick(objects, "Secret", named["name"]) if named else ():
                text.append(base64.b64decode(secret["data"][named["key"]]).decode())
    found = re.findall(r"(?:^|\s|//|=)([a-z][a-z0-9.-]*):(\d+)", " ".join(text))
    return {(host, int(port)) for host, port in found}


@pytest.mark.parametrize("name", [*OVERLAYS, "all"])
def test_every_address_in_a_pods_settings_can_be_reached_from_it(rendered, name):
    objects = rendered[name]
    seen = set()
    for pod in filter(ours, pods(objects)):
        for host, port in addresses(pod, objects):
            seen.add((host, port))
            targets = [KAFKA] if host == "vitrine-kafka-bootstrap" else []
            for service in pick(objects, "Service", host):
                chosen = {"matchLabels": service["spec"]["selector"]}
                targets += [end(p) for p in pods(objects) if selects(chosen, p.labels)]
            assert targets, f"{pod.where}: nobody is {host}"
            for target in targets:
                assert reaches(objects, end(pod), target, port), f"{pod.where} -> {host}:{port}"
    assert {("matching", 7002), ("worker", METRICS_PORT)} <= seen
    if name == "dev":
        assert {("vitrine-kafka-bootstrap", 9092), ("valkey", 6379)} <= seen


@pytest.mark.parametrize("name", [*OVERLAYS, "all"])
def test_every_pod_asks_for_names(rendered, name):
    for pod in pods(rendered[name]):
        for protocol in ("UDP", "TCP"):
            assert reaches(rendered[name], end(pod), DNS, 53, protocol), pod.where


@pytest.mark.parametrize("name", [*OVERLAYS, "all"])
def test_front_ends_reach_calls_and_pages_and_prometheus_reaches_metrics(rendered, name):
    objects = rendered[name]
    for process, port in (PROCESSES | UNCALLED | (OF_SHARDS if name == "all" else {})).items():
        target = one(objects, process)
        assert reaches(objects, FRONT_END, target, port) == (process not in UNCALLED), process
        assert not reaches(objects, FRONT_END, target, METRICS_PORT), process
        assert reaches(objects, PROMETHEUS, target, METRICS_PORT), process
        assert process in UNCALLED or not reaches(objects, PROMETHEUS, target, port), process


def test_every_process_reaches_a_collector_of_traces_and_no_job_does(rendered):
    collector = End({"app": "collector"}, {"vitrine/traces": "true"})
    for pod in pods(rendered["prod"]):
        assert reaches(rendered["prod"], end(pod), collector, 4317) == pod.lasting, pod.where


@pytest.mark.parametrize("name", [*OVERLAYS, "all"])
def test_strangers_and_unlabelled_neighbours_reach_nothing(rendered, name):
    objects = rendered[name]
    for pod in pods(objects):
        for port in {*end(pod).ports.values(), *PORTS.values(), METRICS_PORT, 7090, 29400}:
            for source in (STRANGER, NEIGHBOUR):
                assert not reaches(objects, source, end(pod), port), f"{pod.where}:{port}"
    assert not reaches(objects, NEIGHBOUR, OUTSIDE, 443)


def test_devs_redis_and_kafka_are_for_those_who_need_them(rendered):
    objects = rendered["dev"]
    valkey = one(objects, "valkey")
    assert {pod.where for pod in pods(objects) if reaches(objects, end(pod), valkey, 6379)} == {
        "Deployment/matching", "Deployment/worker",
    }  # fmt: skip
    assert {pod.where for pod in pods(objects) if reaches(objects, end(pod), KAFKA, 9092)} == {
        "Deployment/matching", "Deployment/worker", "Deployment/clock", "Deployment/console", "Job/demo",
        "StatefulSet/ann-shard-0",
    }  # fmt: skip
    assert reaches(objects, KAFKA, End({"app": "api"}, {"name": "default"}), 6443), (
        "Strimzi's pods need the API server"
    )


@pytest.mark.parametrize(
    ("variable", "ports", "scheme"),
    [("VITRINE_KAFKA_URL", (9092, 9093, 9094, 9098), ""), ("VITRINE_REDIS_URL", (6379, 6380), ""),
     ("VITRINE_STORE", (443,), "s3://")],
)  # fmt: skip
def test_production_lets_out_to_kafka_redis_and_the_store_those_and_only_those_who_use_them(
    rendered, variable, ports, scheme
):
    objects = rendered["prod"]
    for pod in filter(ours, pods(objects)):
        uses = False
        for told in pod.containers():
            container = container_of(pod, told, objects)
            needless = (
                bool(scheme) and container.args[1] == "topics"
            )  # it gets the store's URL with the other settings
            named = variable in container.env and (container.env[variable] or "").startswith(scheme)
            uses |= named and not needless
        for port in ports:
            assert reaches(objects, end(pod), OUTSIDE, port) == uses, f"{pod.where} -> {variable}, port {port}"


def test_pods_of_a_training_job_reach_each_other_on_any_port_and_nobody_else_does(rendered):
    objects = rendered["all"]
    training = [pod for pod in pods(objects) if pod.labels.get("vitrine/training")]
    assert {name_of(pod.owner) for pod in training} >= {"CronJob/train-des", "TrainingRuntime/vitrine-torch"}
    for pod in training:
        assert reaches(objects, end(pod), end(pod), 29400)
        assert reaches(objects, end(pod), end(pod), 41234)
        assert not reaches(objects, one(objects, "ctr"), end(pod), 41234)


def test_without_the_policies_everything_would_be_reached(rendered):
    """The check is able to fail: what it says of a stranger comes from the policies alone."""
    bare = [item for item in rendered["prod"] if item["kind"] != "NetworkPolicy"]
    assert reaches(bare, STRANGER, one(bare, "worker"), 7090)
    without_calls = [item for item in rendered["prod"] if item["metadata"]["name"] != "calls"]
    assert not reaches(without_calls, FRONT_END, one(without_calls, "ctr"), 7003)
