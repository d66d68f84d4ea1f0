"""The manifests as objects: rendered in every combination, valid, each reference resolved, each pod hardened."""

import itertools

import kubernetes_validate
import pytest

from tests.deploy_kit import HEALTH_PORT, METRICS_PORT
from tests.k8s_kit import (
    COMPONENTS,
    CRDS,
    K8S,
    OVERLAYS,
    VERSIONS,
    combined,
    crd_problems,
    kustomize,
    name_of,
    ours,
    pick,
    pods,
    selects,
)

RENDERS = [*OVERLAYS, "base", *COMPONENTS, *map("+".join, itertools.combinations(COMPONENTS, 2)), "all"]
# Made by operators or by hand, not by us; docs/deploy.md says what is in them.
SECRETS = {"connections", "store", "callers", "console-token", "ann-router-token"}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """{name: objects} of both overlays, the base, and the base with each component, each pair, and all."""
    folder = tmp_path_factory.mktemp("kustomize")
    made = {name: kustomize(K8S / "overlays" / name) for name in OVERLAYS}
    made["base"] = kustomize(K8S / "base")
    for name in RENDERS[len(made) :]:
        made[name] = combined(folder / name, COMPONENTS if name == "all" else name.split("+"))
    return made


def checked(objects, version):
    """Problems of Kubernetes' own kinds, by its schemas, and of the others by ours."""
    found = []
    for item in objects:
        if item["kind"] in CRDS:
            found += [f"{name_of(item)}: {problem}" for problem in crd_problems(item)]
            continue
        try:
            kubernetes_validate.validate(item, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            found += [f"{name_of(item)}: {problem}" for problem in crd_problems(item)]
        except kubernetes_validate.ValidationError as error:
            found.append(f"{name_of(item)}: {error.message}")
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [*OVERLAYS, "all"])
def test_every_object_is_valid(rendered, name, version):
    assert checked(rendered[name], version) == []


def test_every_kind_of_another_api_has_its_definition_cited():
    for kind, crd in CRDS.items():
        assert len(crd.source.split()) >= 2, kind  # a repository and a path in it


def test_no_definition_is_kept_of_a_kind_that_is_not_used(rendered):
    used = {item["kind"] for objects in rendered.values() for item in objects}
    assert set(CRDS) <= used


BROKEN = {
    "a kind that nobody knows": ("ScaledObject", lambda o: o.update(kind="ScaledThing"), "neither Kubernetes' own"),
    "an API of yesterday": ("KafkaTopic", lambda o: o.update(apiVersion="kafka.strimzi.io/v1beta2"), "is of kafka"),
    "a field that is missing": ("Certificate", lambda o: o["spec"].pop("secretName"), "spec.secretName is missing"),
    "a list without items": (
        "ServiceMonitor",
        lambda o: o["spec"].update(endpoints=[]),
        "endpoints[].port is missing",
    ),
    "a misspelt field of another API": ("TrainJob", lambda o: o["spec"].update(runtime={}), "runtime is not known"),
    "a misspelt field": ("Deployment", lambda o: o["spec"].update(replica=3), "replica"),
    "a wrong type": ("StatefulSet", lambda o: o["spec"].update(replicas="two"), "two"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_check_sees(what, rendered):
    import copy

    kind, break_it, said = BROKEN[what]
    everything = [item for objects in rendered.values() for item in objects]
    broken = copy.deepcopy(pick(everything, kind)[0])
    break_it(broken)
    assert said in "\n".join(checked([broken], VERSIONS[-1]))


@pytest.mark.parametrize("name", RENDERS)
def test_names_are_unique_and_everything_lies_in_one_namespace(rendered, name):
    objects = rendered[name]
    names = [name_of(item) for item in objects]
    assert len(set(names)) == len(names)
    if name != "base":
        namespaces = {item["metadata"].get("namespace") for item in objects if item["kind"] != "Namespace"}
        assert namespaces == {"vitrine"}


@pytest.mark.parametrize("name", RENDERS)
def test_what_an_object_refers_to_exists(rendered, name):
    """ConfigMaps, claims, accounts, Services, scale targets; of Secrets, those that we make or name in SECRETS."""
    objects = rendered[name]
    there = {name_of(item) for item in objects} | {f"Secret/{secret}" for secret in SECRETS}
    there |= {f"Secret/{item['spec']['secretName']}" for item in pick(objects, "Certificate")}
    there |= {f"PersistentVolumeClaim/{item}" for item in templated_claims(objects)}
    wanted = {}
    for item in objects:
        for kind, other in references(item):
            wanted.setdefault(f"{kind}/{other}", []).append(name_of(item))
    assert {what: who for what, who in wanted.items() if what not in there} == {}


def templated_claims(objects):
    return {
        template["metadata"]["name"]
        for item in pick(objects, "StatefulSet")
        for template in item["spec"].get("volumeClaimTemplates", ())
    }


def references(item):
    """(kind, name) of all that an object names."""
    spec = item.get("spec", {})
    if item["kind"] == "StatefulSet":
        yield "Service", spec["serviceName"]
    if item["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
        yield spec["scaleTargetRef"].get("kind", "Deployment"), spec["scaleTargetRef"]["name"]
    if item["kind"] == "ScaledObject":
        for trigger in spec["triggers"]:
            yield "TriggerAuthentication", trigger["authenticationRef"]["name"]
    if item["kind"] == "TriggerAuthentication":
        yield from (("Secret", each["name"]) for each in spec["secretTargetRef"])
    if item["kind"] == "Certificate":
        yield spec["issuerRef"].get("kind", "Issuer"), spec["issuerRef"]["name"]
    if item["kind"] == "TrainJob":
        yield spec["runtimeRef"]["kind"], spec["runtimeRef"]["name"]
    if item["kind"] == "ServiceMonitor":
        tls = spec["endpoints"][0].get("tlsConfig", {})
        for named in (tls.get("ca", {}).get("secret"), tls.get("cert", {}).get("secret"), tls.get("keySecret")):
            if named:
                yield "Secret", named["name"]
    for pod in pods([item]):
        if "serviceAccountName" in pod.spec:
            yield "ServiceAccount", pod.spec["serviceAccountName"]
        if "subdomain" in pod.spec:
            yield "Service", pod.spec["subdomain"]
        for volume in pod.spec.get("volumes", ()):
            if "persistentVolumeClaim" in volume:
                yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
            if "secret" in volume:
                yield "Secret", volume["secret"]["secretName"]
        for container in pod.containers():
            for source in container.get("envFrom", ()):
                for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                    if key in source:
                        yield kind, source[key]["name"]
            for variable in container.get("env", ()):
                named = variable.get("valueFrom", {}).get("secretKeyRef")
                if named:
                    yield "Secret", named["name"]


def test_no_secret_is_in_the_repository_but_devs_addresses(rendered):
    for name, objects in rendered.items():
        made = [item["metadata"]["name"] for item in pick(objects, "Secret")]
        assert made == (["connections"] if name == "dev" else [])


@pytest.mark.parametrize("name", RENDERS)
def test_selectors_take_their_own_pods_and_no_others(rendered, name):
    objects = rendered[name]
    for pod in pods(objects):
        if pod.lasting:
            selector = pod.owner["spec"]["selector"]
            assert [p.where for p in pods(objects) if selects(selector, p.labels)] == [pod.where]
    for item in pick(objects, "Service"):
        taken = [p for p in pods(objects) if selects({"matchLabels": item["spec"]["selector"]}, p.labels)]
        assert taken, name_of(item)
        for port in item["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            for pod in taken:
                named = {p["name"]: p for c in pod.containers() for p in c.get("ports", ())}
                if isinstance(target, str):
                    assert named[target]["containerPort"] == port["port"], f"{name_of(item)}: {target}"
    for item in pick(objects, "PodDisruptionBudget"):
        taken = [p.where for p in pods(objects) if selects(item["spec"]["selector"], p.labels)]
        assert len(taken) == 1, name_of(item)
        assert taken[0].endswith(f"/{item['metadata']['name']}")


def test_everything_that_lasts_has_a_budget(rendered):
    budgets = {item["metadata"]["name"] for item in pick(rendered["base"], "PodDisruptionBudget")}
    assert budgets == {pod.owner["metadata"]["name"] for pod in pods(rendered["base"]) if pod.lasting}


@pytest.mark.parametrize("name", RENDERS)
def test_every_pod_is_within_pod_securitys_restricted_profile_and_more(rendered, name):
    for pod in pods(rendered[name]):
        if pod.owner["kind"] == "Kafka":
            continue
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == (10001 if ours(pod) else 999), pod.where
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys()
        kinds = {key for volume in pod.spec.get("volumes", ()) for key in volume} - {"name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim", "secret", "configMap"}
        for container in pod.containers():
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert "hostPort" not in str(container.get("ports"))
    for account in pick(rendered[name], "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", RENDERS)
def test_every_container_says_what_it_takes_and_lasting_ones_how_they_are(rendered, name):
    for pod in pods(rendered[name]):
        for container in pod.containers():
            for kind in ("requests", "limits"):
                assert container["resources"][kind].keys() >= {"cpu", "memory"}, f"{pod.where} {kind}"
            if pod.lasting:
                assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys(), pod.where
            for volume in container.get("volumeMounts", ()):
                names = {v["name"] for v in pod.spec.get("volumes", ())} | templated_claims([pod.owner])
                assert volume["name"] in names, pod.where


@pytest.mark.parametrize("name", RENDERS)
def test_probes_ask_the_plaintext_health_port_and_liveness_asks_for_life_alone(rendered, name):
    from vitrine.runtime.health import LIVE

    for pod in pods(rendered[name]):
        if not (pod.lasting and ours(pod)):
            continue
        (container,) = pod.spec["containers"]
        assert {"name": "health", "containerPort": HEALTH_PORT} in container["ports"]
        assert {"name": "metrics", "containerPort": METRICS_PORT} in container["ports"]
        assert container["livenessProbe"]["grpc"] == {"port": HEALTH_PORT, "service": LIVE}
        assert container["startupProbe"]["grpc"] == {"port": HEALTH_PORT, "service": LIVE}
        assert container["readinessProbe"]["grpc"] == {"port": HEALTH_PORT}
        tries = container["livenessProbe"]
        assert tries["periodSeconds"] * tries["failureThreshold"] >= 60, "a busy process is not a dead one"


def test_replicas_are_spread_and_grpc_clients_see_each_of_them(rendered):
    for pod in pods(rendered["base"]):
        keys = {constraint["topologyKey"] for constraint in pod.spec["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for item in pick(rendered["base"], "Service"):
        headless = item["spec"].get("clusterIP") == "None"
        assert headless == (item["metadata"]["name"] != "console"), name_of(item)


def test_workers_are_replaced_one_by_one_and_servers_after_their_heirs_are_ready(rendered):
    """A worker more than there are partitions owns none and never becomes ready; of clocks there is one."""
    for item in pick(rendered["base"], "Deployment"):
        surge = item["spec"]["strategy"]["rollingUpdate"]
        first = {"maxSurge": 0, "maxUnavailable": 1} if item["metadata"]["name"] in ("worker", "clock") else None
        assert surge == (first or {"maxSurge": 1, "maxUnavailable": 0})


def test_autoscaled_workloads_have_no_replicas_of_their_own(rendered):
    for item in [*pick(rendered["all"], "HorizontalPodAutoscaler"), *pick(rendered["all"], "ScaledObject")]:
        target = item["spec"]["scaleTargetRef"]
        (scaled,) = pick(rendered["all"], target.get("kind", "Deployment"), target["name"])
        assert "replicas" not in scaled["spec"]
