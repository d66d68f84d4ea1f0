"""What stands behind an address of the settings: every server that its name has in DNS, each by itself."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import ip_address


@dataclass(frozen=True, slots=True)
class Target:
    """What a channel is made to; `certified_as` is the name in the certificate, where the target is no name."""

    target: str
    certified_as: str = ""


def targets_of(address: str) -> list[Target] | None:
    """The servers at "host:port"; None while the name cannot be looked up.

    An address of numbers, and a target with a scheme, which is grpc's to resolve, are one server each.
    """
    host, _, port = address.rpartition(":")
    if "/" in address or _is_number(host.strip("[]")):
        return [Target(address)]
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError:
        return None
    addresses = sorted({str(each[4][0]) for each in found})
    return [Target(f"[{each}]:{port}" if ":" in each else f"{each}:{port}", host) for each in addresses]


def _is_number(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
