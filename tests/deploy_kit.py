"""What the checks of the image, of compose and of Kubernetes share: containers, and what is wrong with one.

A container is taken as a runtime would start it: the image's variables under its own, its arguments, its mounts.
Its command is then parsed by the code that it would run, with its variables, so that a name that the code does not
know is found without an engine.
"""

import importlib.util
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import patch

import typer

from tests.security_kit import Authority
from vitrine.channels import Security
from vitrine.cli import app
from vitrine.cli.applications import DISTRIBUTED, PLAIN, SERVICES
from vitrine.runtime import settings as runtime_settings
from vitrine.runtime.settings import ENV_PREFIX, Settings

# typer has a click of its own.
_UsageError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")

ROOT = Path(__file__).resolve().parents[1]
PORTS = {"ann": 7001, "matching": 7002, "ctr": 7003, "console": 7004, "ann-router": 7005}
HEALTH_PORT, METRICS_PORT = 7090, 9090

# Variables of others that our containers may have, and whose they are.
FOREIGN = {
    "OMP_NUM_THREADS": "torch",
    "JOB": "the manifest's own, for its arguments",
    "KAFKA_BOOTSTRAP_SERVERS": "KEDA, which reads it off the worker",
}
# What stands in for values that only a Secret or the running pod has.
UNKNOWN = {
    "VITRINE_KAFKA_URL": "kafka://kafka:9092",
    "VITRINE_REDIS_URL": "redis://redis:6379/0",
    "VITRINE_WORKER_ID": "worker-5d9c7b8f4-x2x7p",
    "JOB": "train-des-29391840",
}


@dataclass
class Container:
    """A container of ours.

    env:    value, or None where only the cluster knows it
    shared: names in `env` that every container gets, whether its command reads them or not
    mounts: path -> whether it can be written to
    """

    where: str
    image: str
    args: list[str]
    env: dict[str, str | None]
    mounts: dict[str, bool] = field(default_factory=dict)
    ports: set[int] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)

    def environment(self) -> dict[str, str]:
        return {name: UNKNOWN.get(name, "x") if value is None else value for name, value in self.env.items()}


@dataclass(frozen=True)
class Command:
    """What a container's arguments start.

    reads: the VITRINE_ variables that it knows
    needs: folders below /app
    """

    name: str
    reads: frozenset[str]
    needs: frozenset[str] = frozenset()
    settings: type[Settings] | None = None


class CommandError(Exception):
    """The code would not start with these arguments and variables."""


# The Dockerfile, as far as it matters here.


@cache
def stages() -> dict[str, dict[str, Any]]:
    """{stage: {base, env, copies}}: what each FROM begins; `env` and `copies` are its own, not its base's."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text("utf-8"))
    found: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            current = found[name] = {"base": base, "env": {}, "copies": [], "user": None}
        elif word == "ENV":
            current["env"] |= dict(part.split("=", 1) for part in rest.split())
        elif word == "COPY":
            current["copies"].append(rest.split())
        elif word == "USER":
            current["user"] = rest
    return found


def targets() -> list[str]:
    """The stages that end as an image: those with a user to run as."""
    return [name for name, stage in stages().items() if stage["user"]]


def image_env(target: str) -> dict[str, str]:
    stage = stages().get(target)
    return {} if stage is None else image_env(stage["base"]) | stage["env"]


def image_folders(target: str) -> set[str]:
    """Folders of the repository that an image has below /app."""
    return {copy[0] for copy in stages()[target]["copies"] if not copy[0].startswith("--")}


# Commands.


def _settings_class(service: str) -> type[Settings]:
    from services.ann.router.settings import RouterSettings
    from services.ann.settings import AnnSettings
    from services.console.settings import ConsoleSettings
    from services.matching.clock import ClockSettings
    from services.matching.settings import ServerSettings, WorkerSettings
    from vitrine.runtime.follow import FollowSettings

    classes = {"ann": AnnSettings, "ctr": FollowSettings, "matching": ServerSettings, "console": ConsoleSettings}
    own = {"worker": WorkerSettings, "matching-clock": ClockSettings, "ann-router": RouterSettings}
    return {**classes, **own}[service]


def trainer_command(name: str) -> Any:
    """A trainer's own command line."""
    named = {"des": "main", "softmax": "job", "bdg": "command"}
    module = f"trainers.{name}.{named.get(name, 'train')}"
    own = typer.Typer()
    own.command()(importlib.import_module(module).main)
    return typer.main.get_command(own)


def _variables(command: Any) -> frozenset[str]:
    found: set[str] = set()
    for parameter in command.params:
        named = parameter.envvar or ()
        found |= {named} if isinstance(named, str) else set(named)
    return frozenset(found)


def _parse_click(command: Any, args: Sequence[str]) -> tuple[Any, Any]:
    """The innermost command and its context; UsageError where the arguments are wrong."""
    context = None
    rest = list(args)
    while True:
        context = command.make_context(command.name or "vitrine", rest, parent=context)
        if not hasattr(command, "resolve_command"):
            return command, context
        _, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None


def _client_variables(service: str) -> frozenset[str]:
    if service not in ("console", "ann-router"):
        return frozenset()
    return frozenset(f"VITRINE_CLIENT_{name.upper()}" for name in ("ca", "cert", "key", "token_file"))


def _service(service: str, flags: Sequence[str]) -> Command:
    cls = _settings_class(service)
    reads = frozenset(ENV_PREFIX + name.upper() for name in cls.model_fields) | _client_variables(service)
    told = io.StringIO()
    try:
        with redirect_stderr(told):
            runtime_settings.load(cls, list(flags), prog=service)
    except SystemExit as error:
        raise CommandError(f"{service}: its settings are refused: {told.getvalue().strip()}") from error
    if service in ("console", "ann-router"):
        Security.from_environment()
    return Command(service, reads, frozenset({"services"}), cls)


def _trainer(name: str, flags: Sequence[str]) -> Command:
    command = trainer_command(name)
    _parse_click(command, flags)
    return Command(name, _variables(command) | {"VITRINE_PROGRESS"}, frozenset({"trainers"}))


def _vitrine(args: Sequence[str]) -> Command:
    command, context = _parse_click(typer.main.get_command(app), args)
    path = context.command_path.split()[1:]
    if path == ["serve"]:
        service = context.params["service"]
        if service not in SERVICES:
            raise CommandError(f"vitrine serve knows no {service}")
        return _service(service, context.args)
    if path == ["work"]:
        return _service("worker", context.args)
    if path == ["train"]:
        if context.params["trainer"] not in (*DISTRIBUTED, *PLAIN):
            raise CommandError(f"vitrine train knows no {context.params['trainer']}")
        return _trainer(context.params["trainer"], context.args)
    return Command(" ".join(path), _variables(command))


def _torchrun(args: Sequence[str]) -> Command:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(list(args))
    if not parsed.module or not parsed.training_script.startswith("trainers."):
        raise CommandError(f"torchrun runs {parsed.training_script}, not -m trainers.NAME")
    return _trainer(parsed.training_script.removeprefix("trainers."), parsed.training_script_args)


def _python(args: Sequence[str]) -> Command:
    flag, module, *_ = args
    if flag != "-m" or importlib.util.find_spec(module) is None:
        raise CommandError(f"python {' '.join(args)}: no such module")
    return Command(module, frozenset({"VITRINE_HEALTH_PORT"}))


def _locust(args: Sequence[str]) -> Command:
    file = args[args.index("--locustfile") + 1]
    if not (ROOT / file).is_file():
        raise CommandError(f"locust: {file} does not exist")
    text = "\n".join(path.read_text("utf-8") for path in (ROOT / "loadtest").glob("*.py"))
    read = set(re.findall(r"VITRINE_[A-Z_]+", text)) | _client_variables("console")
    return Command("locust", frozenset(read), frozenset({PurePosixPath(file).parts[0], "examples"}))


_PROGRAMS: dict[str, Callable[[Sequence[str]], Command]] = {
    "vitrine": _vitrine, "torchrun": _torchrun, "python": _python, "locust": _locust,
}  # fmt: skip


@contextmanager
def _only(environment: Mapping[str, str]) -> Iterator[None]:
    with patch.dict(os.environ, environment, clear=True):
        yield


def command_of(container: Container, root: Path | None = None) -> Command:
    """Parses a container's arguments as its program would, with files below `root` where it is given.

    Raises CommandError where they are refused.
    """
    if root is not None:
        container = _below(container, root)
    program, *args = container.args
    if program not in _PROGRAMS:
        raise CommandError(f"{program} is no program of the image: {', '.join(_PROGRAMS)}")
    environment = container.environment()
    args = [re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], arg) for arg in args]
    try:
        with _only(environment):
            return _PROGRAMS[program](args)
    except _UsageError as error:
        raise CommandError(f"{' '.join(container.args)}: {error.format_message()}") from error
    except SystemExit as error:
        raise CommandError(f"{' '.join(container.args)}: refused") from error


def problems(container: Container, root: Path) -> list[str]:
    """What is wrong with a container, one line each.

    root: folder that stands in for /, with what the container's volumes would hold
    """
    target = container.image.rpartition("/")[2].partition(":")[0].removeprefix("vitrine-")
    if target not in targets():
        return [f"image {container.image}: the Dockerfile has no target {target}"]
    given = dict(container.env)
    container = replace(container, env={**image_env(target), **container.env})
    found = [
        f"{value} is below none of its mounts, {', '.join(container.mounts) or 'as it has none'}"
        for value in _paths([*container.args, *(v for v in given.values() if v)])
        if not any(PurePosixPath(value).is_relative_to(mount) for mount in container.mounts)
    ]
    try:
        command = command_of(container, root)
    except CommandError as error:
        return [*found, str(error)]
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    found += [
        f"{name}: {command.name} does not read it"
        for name in given
        if name not in command.reads | FOREIGN.keys() and not (name in container.shared and name in known)
    ]
    missing = command.needs - image_folders(target)
    found += [f"target {target} lacks {folder}/, which {command.name} needs" for folder in sorted(missing)]
    if command.settings is not None:
        found += _port_problems(container, command.name)
    return found


def _port_problems(container: Container, service: str) -> list[str]:
    env = container.env
    wanted = {"VITRINE_HEALTH_PORT": HEALTH_PORT, "VITRINE_METRICS_PORT": METRICS_PORT}
    if service in PORTS:
        wanted["VITRINE_PORT"] = PORTS[service]
    found = [
        f"{name} is {env.get(name)}, not {port}" for name, port in wanted.items() if env.get(name) != str(port)
    ]
    return found + [f"{port} is not among its ports" for port in wanted.values() if port not in container.ports]


def _paths(values: Sequence[str]) -> list[str]:
    plain = [value.partition("=")[2] if value.startswith("-") else value for value in values]
    return [value for value in plain if value.startswith("/")]


def _below(container: Container, root: Path) -> Container:
    """The container with its absolute paths below `root`."""

    def moved(value: str) -> str:
        flag, equals, path = value.partition("=")
        if value.startswith("-") and path.startswith("/"):
            return f"{flag}{equals}{root}{path}"
        return f"{root}{value}" if value.startswith("/") else value

    env = {name: value if value is None else moved(value) for name, value in container.env.items()}
    return replace(container, args=[moved(arg) for arg in container.args], env=env)


# Compose.


def interpolated(value: Any, variables: Mapping[str, str] | None = None) -> Any:
    """A compose value with ${NAME:-default} and ${NAME-default} replaced, as with none of them set."""
    if isinstance(value, dict):
        return {key: interpolated(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, variables) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{(\w+)(?::?-([^}]*))?\}", lambda m: (variables or {}).get(m[1], m[2] or ""), value)


def make_root(root: Path) -> Path:
    """What containers' volumes would hold, below `root`: folders, and the files that Secrets are mounted as."""
    for folder in ("market", "store", "cache", "work", "tmp", "tls", "callers", "token"):
        (root / folder).mkdir()
    (root / "market" / "images.parquet").touch()
    authority = Authority(root / "authority")
    pair = authority.server()
    for made, name in ((pair.cert, "tls.crt"), (pair.key, "tls.key"), (authority.cert, "ca.crt")):
        shutil.copy(made, root / "tls" / name)
    (root / "callers" / "callers.toml").write_text(
        f'[[callers]]\nname = "front-end"\ntoken_sha256 = "{"0" * 64}"\nmethods = ["console/*"]\n'
    )
    (root / "token" / "token").write_text("t" * 43)
    return root
