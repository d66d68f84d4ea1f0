"""`vitrine demo`: the whole system on this machine, from data to a served and changing ad list."""

from vitrine.cli.demo.command import demo

__all__ = ["demo"]
