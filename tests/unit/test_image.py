"""The Dockerfile: lint; what it copies and installs exists; nothing runs as root, or needs what its image lacks."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy_kit import HEALTH_PORT, METRICS_PORT, PORTS, ROOT, image_env, image_folders, stages, targets
from vitrine.cli.applications import SERVICES

TEXT = (ROOT / "Dockerfile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == ""


def test_there_is_an_image_for_serving_training_loading_and_gpus_and_serve_is_what_a_plain_build_makes():
    assert set(targets()) == {"serve", "train", "load", "gpu"}
    assert list(stages())[-1] == "serve"


@pytest.mark.parametrize("target", ["serve", "train", "load", "gpu"])
def test_an_image_runs_as_nobody_special_and_stands_on_no_stage_with_a_compiler(target):
    stage = stages()[target]
    assert stage["user"] == "10001:10001"
    assert stage["base"] == "base"
    base = TEXT[TEXT.index(" AS base\n") : TEXT.index(" AS wheel\n")]
    assert not re.search(r"\b(g\+\+|gcc|build-essential|cmake)\b", base)


def test_processes_get_their_signals():
    """Exec form everywhere, and tini first: a trainer as process 1 would ignore SIGTERM."""
    entries = re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", TEXT, re.MULTILINE)
    assert entries == ['["/usr/bin/tini", "--"]', '["vitrine", "--help"]']


def test_every_copied_path_exists_and_is_let_through_by_dockerignore():
    let_through = {
        line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"
    }
    copied = {
        path
        for stage in stages().values()
        for *sources, _ in (copy for copy in stage["copies"] if not copy[0].startswith("--"))
        for path in sources
    }
    for path in copied:
        assert (ROOT / path).exists(), path
        assert any(path == each or each.startswith(f"{path}/") for each in let_through), path
    for path in let_through:
        assert (ROOT / path).exists(), path


def test_an_image_has_the_applications_of_its_role():
    assert image_folders("serve") >= {"services"}
    assert image_folders("train") >= {"services", "trainers"}
    assert image_folders("gpu") == image_folders("train")
    assert image_folders("load") >= {"services", "loadtest"}


def test_what_an_image_installs_are_extras_of_the_package_and_only_training_gets_torch():
    asked = [line.split()[:-2] for line in re.findall(r"deploy/requirements\.py (.*?) *\\?$", TEXT, re.MULTILINE)]
    assert asked == [
        ["serve", "s3"],
        ["serve", "s3", "train"],
        ["serve", "s3", "load"],
        ["serve", "s3", "train", "gpu"],
    ]
    for extras in asked:
        told = subprocess.run(
            [sys.executable, "deploy/requirements.py", *extras],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\n")
        assert set(told) >= set(PROJECT["dependencies"])
        assert any(line.startswith("torch") for line in told) == ("train" in extras)
    refused = subprocess.run(
        [sys.executable, "deploy/requirements.py", "nothing"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "has no extra nothing" in refused.stderr


def test_packages_are_pinned_and_the_pins_cover_what_a_gpu_adds():
    pinned = (ROOT / "constraints.txt").read_text("utf-8") + (ROOT / "deploy/constraints-gpu.txt").read_text(
        "utf-8"
    )
    for extra in ("serve", "s3", "train", "load", "gpu"):
        for requirement in PROJECT["optional-dependencies"][extra]:
            name = re.match(r"[\w.-]+", requirement)[0]
            assert re.search(rf"^{re.escape(name)}==", pinned, re.MULTILINE | re.IGNORECASE), name
    assert "PIP_CONSTRAINT=/src/constraints.txt" in TEXT


def test_the_images_variables_and_ports_are_the_agreed_ones():
    env = image_env("serve")
    assert env["VITRINE_HEALTH_PORT"] == str(HEALTH_PORT)
    assert env["VITRINE_METRICS_PORT"] == str(METRICS_PORT)
    exposed = re.search(r"^EXPOSE (.*)$", TEXT, re.MULTILINE)[1].split()
    assert {int(port) for port in exposed} == {*PORTS.values(), HEALTH_PORT, METRICS_PORT}


def test_the_version_is_the_packages():
    assert re.search(r"^ARG VERSION=(.*)$", TEXT, re.MULTILINE)[1] == PROJECT["version"]


def test_the_image_names_no_host():
    """Indexes and mirrors are build arguments; their hosts differ from place to place."""
    assert "://" not in TEXT


def test_everything_that_is_written_to_lies_in_a_volume_or_in_tmp():
    """HOME, caches of matplotlib, torch and artifacts; and no byte code is written beside the code."""
    env = image_env("train")
    assert env["PYTHONDONTWRITEBYTECODE"] == "1"
    for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert env[name].split("/")[1] in ("tmp", "cache"), name


PROCESSES = ["vitrine.cli", "vitrine.runtime.probe", "services.matching.worker"]
PROCESSES += [f"{module}.server" for module, *_ in SERVICES.values()]


@pytest.mark.parametrize("module", PROCESSES)
def test_the_serving_image_has_all_that_its_commands_import(module):
    """torch, matplotlib and the like are in other images alone."""
    elsewhere = {"torch", "onnx", "matplotlib", "locust", "gevent", "hdrh", "faiss", "playwright", "yaml", "pytest"}
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in elsewhere)
    subprocess.run(
        [sys.executable, "-c", f"import sys; {blocked}import {module}"], cwd=ROOT, check=True, timeout=60
    )
