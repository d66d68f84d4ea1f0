"""The manifests against the code: images, commands, variables, ports, topics, metrics, drains, partitions."""

import copy
import re
import tomllib
from importlib.metadata import version

import pytest
import yaml

from deploy import prometheus_rules
from services.ann.router.settings import parse_shards
from services.matching import worker
from tests.deploy_kit import METRICS_PORT, PORTS, ROOT, command_of, interpolated, problems, targets
from tests.k8s_kit import COMPONENTS, K8S, OVERLAYS, combined, container_of, kustomize, name_of, ours, pick, pods
from vitrine.cli.applications import DISTRIBUTED, PLAIN, SERVICES
from vitrine.placement import qualify
from vitrine.runtime import topics


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    made = {name: kustomize(K8S / "overlays" / name) for name in OVERLAYS}
    # training-gpu replaces what training says, so both are looked at.
    without = [name for name in COMPONENTS if name != "training-gpu"]
    folder = tmp_path_factory.mktemp("settings")
    return {
        **made,
        "all": combined(folder / "all", without),
        "gpu": combined(folder / "gpu", ["training-gpu", "store-volume"]),
    }


def containers(objects):
    return [
        container_of(pod, container, objects)
        for pod in pods(objects)
        if ours(pod)
        for container in pod.containers()
    ]


def with_trainjobs(objects):
    """Containers, those of training runtimes once for every TrainJob that runs on them."""
    found = []
    for pod in pods(objects):
        if not ours(pod):
            continue
        for told in pod.containers():
            if pod.owner["kind"] != "TrainingRuntime":
                found.append(container_of(pod, told, objects))
            for job in pick(objects, "TrainJob") if pod.owner["kind"] == "TrainingRuntime" else ():
                assert job["spec"]["runtimeRef"]["name"] == pod.owner["metadata"]["name"]
                merged = {**told, **{k: v for k, v in job["spec"]["trainer"].items() if k in ("image", "args")}}
                found.append(container_of(pod, merged, objects))
    return found


@pytest.mark.parametrize("name", [*OVERLAYS, "all", "gpu"])
def test_every_image_command_variable_path_and_port_is_one_that_the_code_knows(rendered, name, image_root):
    found = {c.where: problems(c, image_root) for c in with_trainjobs(rendered[name])}
    assert {where: wrong for where, wrong in found.items() if wrong} == {}


BROKEN = {
    "variable": (lambda c: c.env.update(VITRINE_DRAIN_DELAY="5"), "VITRINE_DRAIN_DELAY: ctr does not read it"),
    "shared variable": (lambda c: (c.env.update(VITRINE_LOGS="x"), c.shared.add("VITRINE_LOGS")), "VITRINE_LOGS"),
    "certificate's path": (lambda c: c.env.update(VITRINE_TLS_CERT="/tls/cert.pem"), "VITRINE_TLS_CERT"),
    "port": (lambda c: c.ports.discard(7090), "7090 is not among its ports"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_check_sees_a_wrong(what, rendered, image_root):
    (ctr,) = [c for c in containers(rendered["prod"]) if c.where == "Deployment/ctr: ctr"]
    broken = copy.deepcopy(ctr)
    break_it, said = BROKEN[what]
    break_it(broken)
    assert said in "\n".join(problems(broken, image_root))


def test_every_service_the_worker_and_every_trainer_runs_in_production(rendered, image_root):
    names = {command_of(c, image_root).name for c in containers(rendered["prod"])}
    assert names >= {*SERVICES, "worker", *DISTRIBUTED, *PLAIN, "topics create"} - {"ann-router"}
    (router,) = [c for c in containers(rendered["all"]) if c.where.startswith("Deployment/ann-router")]
    assert command_of(router, image_root).name == "ann-router"


def test_compose_and_kubernetes_run_the_same_services_on_the_same_ports(rendered):
    composed = interpolated(yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8")))["services"]
    for pod in pods(rendered["dev"]):
        if pod.lasting and ours(pod):
            (told,) = pod.containers()
            service = composed[told["name"]]
            assert told["args"] == service["command"]
            assert told["image"] == service["image"]
            for name in ("VITRINE_PORT", "VITRINE_ANN_ADDRESS", "VITRINE_MATCHING_ADDRESS", "VITRINE_CTR_ADDRESS",
                         "VITRINE_METRICS_PAGES", "VITRINE_THREADS"):  # fmt: skip
                ours_ = {e["name"]: e.get("value") for e in told.get("env", ())}.get(name)
                theirs = service["environment"].get(name)
                assert ours_ == (None if theirs is None else str(theirs)), f"{told['name']}: {name}"
    (valkey,) = [pod for pod in pods(rendered["dev"]) if pod.where == "StatefulSet/valkey"]
    assert valkey.spec["containers"][0]["image"] == composed["valkey"]["image"]
    assert valkey.spec["containers"][0]["args"] == composed["valkey"]["command"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_images_are_the_dockerfiles_targets_at_the_packages_version(rendered, name):
    for container in with_trainjobs(rendered[name]):
        image, _, tag = container.image.rpartition(":")
        assert image.rpartition("/")[2] in {f"vitrine-{target}" for target in targets()}
        assert tag == version("vitrine-serving"), container.where


@pytest.mark.parametrize("name", [*OVERLAYS, "all"])
def test_a_pod_has_the_time_that_its_process_takes_to_drain(rendered, name):
    """The delay, the calls in flight, and the steps after them (the worker's loop takes drain_s of its own)."""
    for pod in pods(rendered[name]):
        if pod.lasting and ours(pod):
            env = container_of(pod, pod.containers()[0], rendered[name]).env
            most = int(env["VITRINE_DRAIN_DELAY_MS"]) / 1000 + 2 * float(env["VITRINE_DRAIN_S"])
            assert pod.spec["terminationGracePeriodSeconds"] > most, pod.where
            readiness = pod.containers()[0]["readinessProbe"]
            assert int(env["VITRINE_DRAIN_DELAY_MS"]) / 1000 > readiness["periodSeconds"]


def test_the_stores_scheme_has_its_package_in_the_image(rendered):
    """fsspec reads s3:// with s3fs, which an extra of the image installs."""
    from fsspec.registry import known_implementations

    (settings,) = pick(rendered["prod"], "ConfigMap")
    scheme = settings["data"]["VITRINE_STORE"].partition("://")[0]
    module = known_implementations[scheme]["class"].partition(".")[0]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert any(requirement.startswith(module) for requirement in extras["s3"])


def test_devs_topics_are_those_that_vitrine_topics_create_makes(rendered):
    made = pick(rendered["dev"], "KafkaTopic")
    (user_events,) = [t for t in made if t["metadata"]["name"] == topics.USER_EVENTS]
    wanted = topics.wanted("", user_events["spec"]["partitions"])
    assert [
        (t["metadata"]["name"], t["spec"]["partitions"], t["spec"]["config"])
        for t in sorted(made, key=lambda t: t["metadata"]["name"])
    ] == [(t.name, t.partitions, dict(t.settings)) for t in sorted(wanted, key=lambda t: t.name)]
    (broker,) = pick(rendered["dev"], "Kafka")
    for topic in made:
        assert topic["metadata"]["labels"]["strimzi.io/cluster"] == broker["metadata"]["name"]


def test_devs_kafka_address_is_the_one_that_strimzi_makes(rendered):
    """CLUSTER-kafka-bootstrap, and the port of a listener."""
    import base64

    (broker,) = pick(rendered["dev"], "Kafka")
    (secret,) = pick(rendered["dev"], "Secret")
    url = base64.b64decode(secret["data"]["kafka-url"]).decode()
    (listener,) = broker["spec"]["kafka"]["listeners"]
    assert url == f"kafka://{broker['metadata']['name']}-kafka-bootstrap:{listener['port']}"
    (redis,) = pick(rendered["dev"], "Service", "valkey")
    assert (
        base64.b64decode(secret["data"]["redis-url"]).decode()
        == f"redis://valkey:{redis['spec']['ports'][0]['port']}/0"
    )


def test_workers_are_scaled_by_the_lag_of_their_own_group_up_to_the_partitions(rendered):
    (scaled,) = pick(rendered["prod"], "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["type"] == "kafka"
    assert trigger["metadata"]["topic"] == topics.USER_EVENTS
    source = (ROOT / worker.__file__).read_text("utf-8")
    assert f'qualify(config.namespace, "{trigger["metadata"]["consumerGroup"]}")' in source
    (settings,) = pick(rendered["prod"], "ConfigMap")
    assert qualify(settings["data"]["VITRINE_NAMESPACE"], topics.USER_EVENTS) == trigger["metadata"]["topic"]
    (job,) = [c for c in containers(rendered["prod"]) if c.where.startswith("Job/topics")]
    partitions = int(job.args[job.args.index("--partitions") + 1])
    assert scaled["spec"]["maxReplicaCount"] == partitions
    (worker_,) = [c for c in containers(rendered["prod"]) if c.where.startswith("Deployment/worker")]
    assert trigger["metadata"]["bootstrapServersFromEnv"] in worker_.env


def test_the_components_own_cap_is_devs_partitions(rendered):
    (scaled,) = pick(rendered["all"], "ScaledObject")
    (user_events,) = pick(rendered["dev"], "KafkaTopic", topics.USER_EVENTS)
    assert scaled["spec"]["maxReplicaCount"] == user_events["spec"]["partitions"]


def test_services_are_scaled_by_cpu_and_request_what_that_is_a_share_of(rendered):
    for item in pick(rendered["all"], "HorizontalPodAutoscaler"):
        (metric,) = item["spec"]["metrics"]
        assert metric["resource"]["name"] == "cpu"
        target = item["spec"]["scaleTargetRef"]
        (pod,) = [p for p in pods(rendered["all"]) if p.where == f"{target['kind']}/{target['name']}"]
        assert pod.containers()[0]["resources"]["requests"]["cpu"]


def test_a_worker_is_named_after_its_pod_and_needs_no_more_than_a_kafka_name_allows(rendered):
    (pod,) = [p for p in pods(rendered["prod"]) if p.where == "Deployment/worker"]
    (variable,) = [e for e in pod.containers()[0]["env"] if e["name"] == "VITRINE_WORKER_ID"]
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


# Metrics.


def test_alert_rules_are_those_of_the_observability_folder():
    """`python deploy/prometheus_rules.py` makes the file anew."""
    assert prometheus_rules.TARGET.read_text("utf-8") == prometheus_rules.manifest()


def test_prometheus_finds_every_process_and_names_its_job_as_the_rules_do(rendered):
    (monitor,) = pick(rendered["all"], "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    jobs = set()
    for item in pick(rendered["all"], "Service"):
        labels = item["metadata"]["labels"]
        ports = {port["name"]: port["port"] for port in item["spec"]["ports"]}
        if wanted <= labels.items() and endpoint["port"] in ports:
            assert ports[endpoint["port"]] == METRICS_PORT
            jobs.add(labels[monitor["spec"]["jobLabel"]])
    assert jobs == {*PORTS, "worker", "clock"}
    assert endpoint["honorLabels"] is True, "`namespace` would be the cluster's, not VITRINE_NAMESPACE"


def test_with_mtls_everything_that_calls_has_a_certificate_for_whom_it_calls(rendered):
    names = {item["metadata"]["name"]: item["spec"] for item in pick(rendered["all"], "Certificate")}
    (monitor,) = pick(rendered["all"], "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    lasting = [pod for pod in pods(rendered["all"]) if pod.lasting and ours(pod)]
    assert len(lasting) == 8
    for pod in lasting:
        container = container_of(pod, pod.containers()[0], rendered["all"])
        command, env = pod.containers()[0]["name"], container.env
        assert {"VITRINE_TLS_CERT", "VITRINE_TLS_KEY"} <= env.keys(), container.where
        assert ("VITRINE_TLS_CLIENT_CA" in env) == (command != "console"), "people have tokens, no certificates"
        assert endpoint["tlsConfig"]["serverName"] in names[command]["dnsNames"]
        assert command in names[command]["dnsNames"]
    callers = {c.where: c for c in containers(rendered["all"]) if c.where.startswith("Deployment/")}
    console, router = (callers[f"Deployment/{name}: {name}"] for name in ("console", "ann-router"))
    for caller in (console, router):
        assert {"VITRINE_CLIENT_CA", "VITRINE_CLIENT_CERT", "VITRINE_CLIENT_KEY"} <= caller.env.keys()
    for shard in parse_shards(router.env["VITRINE_SHARDS"]):
        assert {address.partition(":")[0] for address in shard} <= set(names["ann"]["dnsNames"])
    assert "http://" not in console.env["VITRINE_METRICS_PAGES"]


# Training.


@pytest.mark.parametrize("name", ["prod", "gpu"])
def test_a_distributed_jobs_pods_agree_on_their_number_and_meeting_point(rendered, name):
    jobs = [item for item in pick(rendered[name], "CronJob") if "torchrun" in str(item)]
    assert {item["metadata"]["name"] for item in jobs} == {f"train-{trainer}" for trainer in DISTRIBUTED}
    for item in jobs:
        spec = item["spec"]["jobTemplate"]["spec"]
        args = spec["template"]["spec"]["containers"][0]["args"]
        told = dict(re.findall(r"--(\S+?)=(\S+)", " ".join(args)))
        assert spec["completionMode"] == "Indexed"
        assert spec["completions"] == spec["parallelism"] == int(told["nnodes"]) >= 2
        subdomain = spec["template"]["spec"]["subdomain"]
        host, port = told["rdzv-endpoint"].split(":")
        assert host == f"$(JOB)-0.{subdomain}"
        (service,) = pick(rendered[name], "Service", subdomain)
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert int(port) in {p["port"] for p in service["spec"]["ports"]}
        assert "--work=/work" in " ".join(args), "pods of a job share their checkpoints"


def test_on_gpus_a_pod_has_as_many_processes_as_gpus(rendered):
    for item in pick(rendered["gpu"], "CronJob"):
        (told,) = item["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        if told["args"][0] == "torchrun":
            assert told["image"] == "vitrine-gpu", name_of(item)
            assert f"--nproc-per-node={told['resources']['limits']['nvidia.com/gpu']}" in told["args"]
            assert "--device=cuda" in told["args"]


def test_a_trainjob_and_its_runtime_agree(rendered):
    (runtime,) = pick(rendered["all"], "TrainingRuntime")
    policy = runtime["spec"]["mlPolicy"]
    for item in pick(rendered["all"], "TrainJob"):
        trainer = item["spec"]["trainer"]
        assert trainer["numNodes"] == policy["numNodes"]
        assert trainer["numProcPerNode"] == policy["torch"]["numProcPerNode"]
        assert not any("nnodes" in arg or "rdzv" in arg for arg in trainer["args"]), "the controller's to say"
    (job,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert job["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert [c["name"] for c in job["template"]["spec"]["template"]["spec"]["containers"]] == ["node"]
