"""Typed settings: one class a process, from `VITRINE_*` variables and flags of the same names (docs/runtime.md)."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from vitrine.errors import FieldError
from vitrine.runtime.kafka_url import parse_url as parse_kafka_url
from vitrine.runtime.redact import redact_url

__all__ = ["ENV_PREFIX", "NAMESPACE", "Settings", "load", "redact_url"]

ENV_PREFIX = "VITRINE_"

NAMESPACE = re.compile(r"[A-Za-z0-9_-]{0,64}")


class Settings(BaseSettings):
    """What every process can be told; a service subclasses it and adds its own fields, with units in their names.

    A flag wins over its variable, a variable over the default; an empty variable counts as unset.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    namespace: str = Field("", description="Prefix of topics, keys and artifacts; a label on metrics.")
    store: str = Field("", description="Artifact store: a folder or an fsspec URL such as s3://bucket/vitrine.")
    kafka_url: str = Field("", description="Kafka: kafka[s]://[user:password@]host:port[,...][?sasl=...].")
    kafka_home: str = Field("", description="Folder of an unpacked Kafka release, for the embedded stack.")
    redis_url: str = Field("", description="Redis or Valkey: redis[s]://[user:password@]host:port[/db].")

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(0, ge=0, le=65535, description="Port of the gRPC server; 0 takes a free one.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of the Prometheus page; 0 takes a free one.")
    health_port: int = Field(0, ge=0, le=65535, description="Plaintext port of health alone; 0 takes a free one.")
    address_file: Path | None = Field(None, description="File to write the addresses listened on to, as JSON.")

    tls_cert: Path | None = Field(None, description="PEM certificate chain: TLS on every port but the health port.")
    tls_key: Path | None = Field(None, description="PEM private key of the certificate.")
    tls_client_ca: Path | None = Field(None, description="PEM CA: callers must show a certificate of it (mTLS).")
    callers: Path | None = Field(None, description="TOML file of who may call what; without it everybody may.")

    otlp_endpoint: str = Field("", description="Where traces go: http://host:4317 (OTLP) or file:///path.")
    trace_ratio: float = Field(1.0, ge=0, le=1, description="Share of traces begun here that are recorded.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    reflection: bool = Field(False, description="Answer gRPC server reflection, for `buf curl` and the like.")
    threads: int = Field(1, ge=1, le=1024, description="Threads that one kernel call may use.")
    max_workers: int = Field(16, ge=1, le=1024, description="Calls handled at the same time.")
    max_concurrent_rpcs: int = Field(256, ge=1, description="Calls handled or queued; more are refused.")
    max_request_mb: float = Field(16, gt=0, le=1024, description="Largest request accepted, MiB.")
    max_response_mb: float = Field(16, gt=0, le=1024, description="Largest response sent, MiB.")
    drain_delay_ms: int = Field(0, ge=0, description="Time between not-serving and refusing calls, on SIGTERM.")
    drain_s: float = Field(10, ge=0, description="Time that calls in flight get to finish on SIGTERM.")

    @field_validator("namespace")
    @classmethod
    def _namespace_is_a_plain_word(cls, value: str) -> str:
        if not NAMESPACE.fullmatch(value):
            raise ValueError("should be at most 64 letters, digits, '-' and '_'")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/\s]+/?|file:///.+", value):
            raise ValueError(
                "should be http://host:4317, https://host:4317 or file:///path, or empty for no traces"
            )
        return value

    @field_validator("kafka_url")
    @classmethod
    def _kafka_can_be_reached_so(cls, value: str) -> str:
        if value:
            _of_field(parse_kafka_url, value)
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_can_be_reached_so(cls, value: str) -> str:
        if value:
            from vitrine.runtime import redis  # which not every process needs

            _of_field(redis.check_url, value)
        return value

    @model_validator(mode="after")
    def _files_can_be_used(self) -> Self:
        """Before a model is loaded for nothing."""
        if self.tls_cert or self.tls_key or self.tls_client_ca:
            from vitrine.runtime import tls

            try:
                tls.check(self.tls_cert, self.tls_key, self.tls_client_ca)
            except tls.TlsError as error:
                raise ValueError(f"{named(error.field)}: {error}") from error
        if self.callers:
            from vitrine.runtime import callers, files

            try:
                callers.check(self.callers)
            except files.FileError as error:
                raise ValueError(f"{named('callers')}: {error}") from error
        return self

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Fields for `repr` and `str`, passwords left out."""
        for name, value in super().__repr_args__():
            yield name, redact_url(value) if isinstance(value, str) else value


S = TypeVar("S", bound=Settings)


def load(cls: type[S], argv: Sequence[str] | None = None, prog: str | None = None) -> S:
    """Settings of class `cls` from flags (`argv`, by default the process's own) and variables.

    A bad value ends the process with status 2 and one line on stderr that names the flag or variable and says what
    would be right; `--help` ends it with status 0.
    """
    flags = list(sys.argv[1:] if argv is None else argv)
    name = prog or Path(sys.argv[0]).name
    cli: dict[str, Any] = {
        "_cli_parse_args": flags,
        "_cli_prog_name": name,
        "_cli_kebab_case": True,
        "_cli_implicit_flags": True,
        "_cli_exit_on_error": False,
        "_cli_hide_none_type": True,
        "_cli_avoid_json": True,
    }
    try:
        return cls(**cli)
    except ValidationError as error:
        _refuse(name, [_explain(cls, details, flags) for details in error.errors(include_url=False)])
    except SettingsError as error:
        _refuse(name, [f"{redact_url(str(error)).removeprefix('error parsing CLI: ')}; see --help"])


def named(field: str) -> str:
    """How a user can set `field`: "--tls-key (or VITRINE_TLS_KEY)"."""
    return f"--{field.replace('_', '-')} (or {ENV_PREFIX}{field.upper()})"


def _of_field(check: Callable[[str], object], value: str) -> None:
    """`check`, whose FieldError is about the field being validated, so that its name need not be said again."""
    try:
        check(value)
    except FieldError as error:
        raise ValueError(error.message) from error


def _explain(cls: type[Settings], details: Any, flags: Sequence[str]) -> str:
    """One line on one of pydantic's errors: where the value came from, and what would be right."""
    message = details["msg"].removeprefix("Value error, ")
    if not details["loc"]:
        return redact_url(message)
    field = str(details["loc"][0])
    flag, variable = "--" + field.replace("_", "-"), ENV_PREFIX + field.upper()
    if details["type"] == "missing":
        return f"{named(field)} is required: {cls.model_fields[field].description or field}"
    given = {part.split("=", 1)[0] for part in flags}
    by_flag = not given.isdisjoint({flag, "--no-" + flag[2:]}) or variable not in os.environ
    message = message.replace("Input should", "should").split(", unable to ", 1)[0]
    shown = f"'{redact_url(str(details['input']))}'"
    return f"{flag if by_flag else variable}: {message}" + (f", not {shown}" if shown not in message else "")


def _refuse(name: str, lines: Sequence[str]) -> NoReturn:
    for line in lines:
        print(f"{name}: {line}", file=sys.stderr)
    raise SystemExit(2)
