"""docker-compose.yml: its schema, and that every image, command, variable, path and port in it is the code's."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy_kit import HEALTH_PORT, METRICS_PORT, PORTS, ROOT, Container, command_of, interpolated, problems
from vitrine.cli.applications import DISTRIBUTED, PLAIN, SERVICES
from vitrine.runtime import probe

FILE = ROOT / "docker-compose.yml"
COMPOSE = interpolated(yaml.safe_load(FILE.read_text("utf-8")))
SERVICE = COMPOSE["services"]
OURS = {name: service for name, service in SERVICE.items() if service["image"].startswith("vitrine-")}
LASTING = [name for name, service in OURS.items() if service["restart"] != "no"]


def mounts(service):
    """{path: writable} of a service, tmpfs too."""
    found = {path.partition(":")[0]: True for path in service.get("tmpfs", ())}
    for volume in service.get("volumes", ()):
        _, path, *mode = volume.split(":")
        found[path] = mode != ["ro"]
    return found


def container(name):
    service = OURS[name]
    env = {key: str(value) for key, value in service.get("environment", {}).items()}
    published = {int(port.rpartition(":")[2]) for port in service.get("ports", ())}
    inside = (
        {HEALTH_PORT, METRICS_PORT} if name in LASTING else set()
    )  # no port is closed inside a network of compose's
    return Container(f"docker-compose.yml: {name}", service["image"], service["command"], env, mounts(service),
                     published | inside)  # fmt: skip


def test_the_file_is_what_the_compose_specification_allows():
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", "--output-format", "json", FILE]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert told["status"] == "ok", told


@pytest.mark.parametrize("name", OURS)
def test_every_command_variable_path_and_port_is_one_that_the_code_knows(name, image_root):
    assert problems(container(name), image_root) == []


BROKEN = {
    "image": ("ann", lambda c: setattr(c, "image", "vitrine-nothing:1"), "no target nothing"),
    "service": ("ann", lambda c: setattr(c, "args", ["vitrine", "serve", "anm"]), "knows no anm"),
    "command": ("worker", lambda c: setattr(c, "args", ["vitrine", "works"]), "No such command"),
    "option": ("history", lambda c: c.args.append("--twice"), "--twice"),
    "trainer's flag": ("train-bdg", lambda c: c.args.append("--bytes=7"), "--bytes"),
    "program": ("ann", lambda c: setattr(c, "args", ["python3", "-m", "services.ann"]), "no program of the image"),
    "misspelt variable": (
        "ann",
        lambda c: c.env.update(VITRINE_THREAD="2"),
        "VITRINE_THREAD: ann does not read it",
    ),
    "others' variable": (
        "topics",
        lambda c: c.env.update(VITRINE_STORE="memory://x"),
        "VITRINE_STORE: topics create does",
    ),
    "value": ("ann", lambda c: c.env.update(VITRINE_THREADS="none"), "its settings are refused"),
    "path": ("train-des", lambda c: c.mounts.pop("/work"), "/work/des is below none of its mounts"),
    "port": ("ctr", lambda c: c.env.update(VITRINE_PORT="7002"), "VITRINE_PORT is 7002, not 7003"),
    "missing code": ("train-des", lambda c: setattr(c, "image", "vitrine-serve"), "lacks trainers/"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_check_sees_a(what, image_root):
    name, break_it, said = BROKEN[what]
    broken = container(name)
    break_it(broken)
    assert said in "\n".join(problems(broken, image_root))


def test_every_service_the_worker_and_every_trainer_of_the_demo_is_there():
    commands = {" ".join(map(str, service["command"])) for service in OURS.values()}
    assert {f"vitrine serve {name}" for name in SERVICES} <= commands
    assert "vitrine work" in commands
    for trainer in (*DISTRIBUTED, *PLAIN):
        assert any(re.match(rf"vitrine train .*\b{trainer}\b", command) for command in commands), trainer


def test_jobs_that_a_second_up_starts_again_leave_alone_what_is_done():
    """`vitrine topics create` compares by itself; whatever makes or sends something has --once."""
    for name, service in OURS.items():
        if service["restart"] == "no" and name != "topics":
            assert "--once" in service["command"], name


@pytest.mark.parametrize("name", SERVICE)
def test_every_container_is_hardened_and_bounded(name):
    service = SERVICE[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["restart"] in ("no", "unless-stopped")
    assert "privileged" not in service
    assert ":" in service["image"]
    assert not service["image"].endswith(":latest")


@pytest.mark.parametrize("name", SERVICE)
def test_ports_are_published_to_this_machine_alone(name):
    for port in SERVICE[name].get("ports", ()):
        assert port.startswith("127.0.0.1:"), port


def test_services_are_published_on_the_agreed_ports():
    for name, port in PORTS.items():
        assert f"127.0.0.1:{port}:{port}" in SERVICE[name]["ports"]


def test_what_lasts_has_a_health_check_that_asks_the_health_port(monkeypatch):
    monkeypatch.delenv("VITRINE_HEALTH_PORT", raising=False)
    for name in set(LASTING) - {"load"}:
        check = OURS[name]["healthcheck"]["test"]
        assert check[0] == "CMD"
        asked = Container(name, OURS[name]["image"], check[1:], {"VITRINE_HEALTH_PORT": str(HEALTH_PORT)})
        assert command_of(asked).name == probe.__name__


def test_who_is_waited_for_exists_and_can_be_what_is_waited_for():
    for name, service in SERVICE.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in SERVICE, f"{name} waits for {other}"
            condition = how["condition"]
            ends = SERVICE[other]["restart"] == "no"
            assert (condition == "service_completed_successfully") == ends, f"{name} waits for {other}"
            if condition == "service_healthy":
                assert SERVICE[other]["healthcheck"].get("test"), f"{name} waits for {other}"
            assert not set(SERVICE[other].get("profiles", ())) - set(service.get("profiles", ()))


def test_readers_of_artifacts_wait_for_their_trainers():
    def waited(name):
        direct = set(SERVICE[name].get("depends_on", {}))
        return direct.union(*(waited(other) for other in direct))

    assert waited("matching") >= {"kafka", "valkey", "topics", "train-catalog", "train-des"}
    assert waited("worker") == waited("clock") == waited("matching")
    assert waited("ctr") >= {"train-des"}
    assert waited("ann") >= {"train-bdg", "train-softmax"}
    assert waited("history") >= {"topics", "market"}


def test_services_only_read_the_store_and_trainers_write_it():
    for name in OURS:
        held = mounts(OURS[name])
        if "/store" in held:
            assert held["/store"] == name.startswith("train-"), name


def test_addresses_name_containers_and_ports_that_listen():
    urls = {"kafka": {9092}, "valkey": {6379}}
    listens = urls | {name: {HEALTH_PORT, METRICS_PORT} for name in LASTING}
    for name, port in PORTS.items():
        listens[name].add(port)
    for name, service in SERVICE.items():
        text = json.dumps(service.get("environment", {})) if name != "kafka" else ""
        for host, port in re.findall(r"(?:://|=|\")([a-z]+):(\d+)", text):
            assert int(port) in listens.get(host, ()), f"{name}: {host}:{port}"


def test_named_volumes_are_declared_and_used_and_mounted_files_exist():
    used = set()
    for service in SERVICE.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (ROOT / source).exists(), source
            else:
                used.add(source)
    assert used == set(COMPOSE["volumes"])


def test_valkey_keeps_what_it_is_told_and_throws_nothing_out():
    command = SERVICE["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"


def test_processes_get_the_time_they_take_to_drain():
    """Delay, calls in flight and the steps after them, by the defaults of their settings."""
    from vitrine.runtime.settings import Settings

    settings = Settings()
    most = settings.drain_delay_ms / 1000 + 2 * settings.drain_s
    for name in set(LASTING) - {"load"}:
        assert float(OURS[name]["stop_grace_period"].rstrip("s")) > most


def test_the_images_tag_is_the_packages_version():
    from importlib.metadata import version

    assert {service["image"].partition(":")[2] for service in OURS.values()} == {version("vitrine-serving")}


def test_prometheus_scrapes_every_process_and_grafana_finds_its_files():
    scraped = yaml.safe_load((ROOT / "observability/prometheus.yml").read_text("utf-8"))["scrape_configs"]
    jobs = {
        (config["job_name"], sd["names"][0], sd["port"])
        for config in scraped
        for sd in config["dns_sd_configs"]
    }  # fmt: skip
    assert jobs == {(name, name, METRICS_PORT) for name in (*PORTS, "worker", "clock")}
    held = mounts(SERVICE["grafana"])
    providers = yaml.safe_load(
        (ROOT / "observability/grafana/provisioning/dashboards/vitrine.yml").read_text("utf-8")
    )
    for provider in providers["providers"]:
        assert provider["options"]["path"] in held
    assert mounts(SERVICE["prometheus"]).keys() >= {"/etc/prometheus/rules", "/etc/prometheus/prometheus.yml"}
    sources = yaml.safe_load(
        (ROOT / "observability/grafana/provisioning/datasources/prometheus.yml").read_text("utf-8")
    )
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
