"""Renders the manifests as kubectl does, and takes them apart: pods, containers, selectors, policies.

k8s_crds.toml says what kinds must look like that Kubernetes itself does not have: kubernetes-validate takes such an
object for valid whatever is in it.
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy_kit import ROOT, Container

Object = dict[str, Any]

K8S = ROOT / "k8s"
VERSIONS = ("1.33.0", "1.37.0")  # the oldest that the manifests are for, and the newest that is known here
OVERLAYS = ("dev", "prod")
COMPONENTS = tuple(sorted(path.parent.name for path in (K8S / "components").glob("*/kustomization.yaml")))
# What a component changes or needs of others; those come first.
NEEDS = {"trainjob": ["training"], "training-gpu": ["training"], "mtls": ["prometheus"]}

_KUBECTL = Path(sys.executable).with_name("kubectl")


def kustomize(folder: Path) -> list[Object]:
    """What `kubectl apply -k FOLDER` would send. AssertionError with kubectl's words where it refuses."""
    done = subprocess.run([_KUBECTL, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    assert "Warning" not in done.stderr, done.stderr
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def combined(folder: Path, components: Sequence[str]) -> list[Object]:
    """The base with some components, as an overlay made in `folder` would have them."""
    folder.mkdir()
    up = Path(*[".."] * len(folder.parts[1:]))

    def path(of: Path) -> str:
        return str(up / of.relative_to("/"))

    asked: list[str] = []
    for name in components:
        asked += [each for each in (*NEEDS.get(name, ()), name) if each not in asked]
    asked.sort(key=lambda name: name == "store-volume")  # it mounts the store into whatever is there by then
    text = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "vitrine",
        "resources": [path(K8S / "base")],
        "components": [path(K8S / "components" / name) for name in asked],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(text))
    return kustomize(folder)


# Objects.


def name_of(item: Object) -> str:
    return f"{item['kind']}/{item['metadata']['name']}"


def pick(objects: Sequence[Object], kind: str, name: str | None = None) -> list[Object]:
    return [each for each in objects if each["kind"] == kind and name in (None, each["metadata"]["name"])]


@dataclass(frozen=True)
class Pod:
    """A pod template: labels and spec, and whose it is."""

    owner: Object
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def where(self) -> str:
        return name_of(self.owner)

    @property
    def lasting(self) -> bool:
        return self.owner["kind"] in ("Deployment", "StatefulSet")

    def containers(self) -> list[Mapping[str, Any]]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def pods(objects: Sequence[Object]) -> list[Pod]:
    """Every pod template, however deep: Deployments', Jobs', CronJobs', training runtimes'."""

    def templates(value: Any) -> Iterator[Mapping[str, Any]]:
        if isinstance(value, dict):
            if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
                yield value
            for item in value.values():
                yield from templates(item)
        elif isinstance(value, list):
            for item in value:
                yield from templates(item)

    return [
        Pod(owner, template.get("metadata", {}).get("labels", {}), template["spec"])
        for owner in objects
        for template in templates(owner)
    ]


def ours(pod: Pod) -> bool:
    return all("vitrine-" in container["image"] for container in pod.containers())


def environment(container: Mapping[str, Any], objects: Sequence[Object]) -> tuple[dict[str, str | None], set[str]]:
    """Variables of a container, None where only the cluster knows the value; and those that all share."""
    env: dict[str, str | None] = {}
    shared: set[str] = set()
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            (settings,) = pick(objects, "ConfigMap", source["configMapRef"]["name"])
            env |= settings["data"]
            shared |= settings["data"].keys()
    for variable in container.get("env", ()):
        env[variable["name"]] = variable.get("value")
        shared.discard(variable["name"])
    return env, shared


def container_of(pod: Pod, container: Mapping[str, Any], objects: Sequence[Object]) -> Container:
    env, shared = environment(container, objects)
    mounts = {mount["mountPath"]: not mount.get("readOnly", False) for mount in container.get("volumeMounts", ())}
    ports = {port["containerPort"] for port in container.get("ports", ())}
    where = f"{pod.where}: {container['name']}"
    return Container(where, container["image"], list(container.get("args", ())), env, mounts, ports, shared)


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector takes these labels; the empty one takes all, none nothing."""
    if selector is None:
        return False
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for wanted in selector.get("matchExpressions", ()):
        if wanted["operator"] != "In":
            raise NotImplementedError(wanted["operator"])
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return True


# Kinds that are not Kubernetes' own.


@dataclass(frozen=True)
class Crd:
    """required: paths that must be there, [] for every item of a list; known: the fields allowed at a path."""

    api: str
    source: str
    required: list[str]
    known: Mapping[str, str]


CRDS = {
    kind: Crd(**told) for kind, told in tomllib.loads((ROOT / "tests/k8s_crds.toml").read_text("utf-8")).items()
}


def _at(value: Any, path: str) -> list[Any]:
    """Values at a path; a missing step gives [None]."""
    values = [value]
    for step in path.split("."):
        values = [v.get(step.removesuffix("[]")) if isinstance(v, dict) else None for v in values]
        if step.endswith("[]"):
            values = [item for v in values for item in (v if isinstance(v, list) and v else [None])]
    return values


def crd_problems(item: Object) -> list[str]:
    """What an object of a kind that is not Kubernetes' own lacks, or has too much; an unknown kind is a problem."""
    kind = CRDS.get(item["kind"])
    if kind is None:
        return [f"{item['apiVersion']} {item['kind']} is neither Kubernetes' own nor in CRDS"]
    found = [] if item["apiVersion"] == kind.api else [f"{item['apiVersion']}: {item['kind']} is of {kind.api}"]
    found += [f"{path} is missing" for path in kind.required if None in _at(item, path)]
    for path, names in kind.known.items():
        for value in _at(item, path):
            found += [f"{path}.{name} is not known" for name in (value or {}) if name not in names.split()]
    return found
