"""Activations as an operator thinks of them: which one is the last, and which one a rollback goes back to."""

from collections.abc import Iterable

from vitrine.api.events.v1.events_pb2 import Activation


def stack(activations: Iterable[Activation]) -> list[Activation]:
    """What rollbacks can go back to, the last activation at the end; activations in the order of their records.

    Coming back to what was active before takes what came after it away, so that rollbacks go ever further back.
    """
    found: list[Activation] = []
    for activation in activations:
        same = [at for at, each in enumerate(found) if _content(each) == _content(activation)]
        if same:
            del found[same[0] :]
        found.append(activation)
    return found


def _content(activation: Activation) -> tuple[str, str, str, int]:
    return (
        activation.catalog_version,
        activation.towers_version,
        activation.other_towers_version,
        activation.other_share,
    )
