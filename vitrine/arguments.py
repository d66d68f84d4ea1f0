"""Arguments of calls, checked before they are sent: the error is the one that the server would answer with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.calls import InvalidArgumentError


def wrong(field: str, message: str) -> InvalidArgumentError:
    """The error that names a field."""
    return InvalidArgumentError(f"{field}: {message}", {field: message})


def count(field: str, value: int) -> int:
    """A number that fits uint32."""
    if not 0 <= value < 2**32:
        raise wrong(field, f"should be 0 to {2**32 - 1}, not {value}")
    return int(value)


def one_id(field: str, value: int) -> int:
    """An id that fits uint64."""
    if not 0 <= value < 2**64:
        raise wrong(field, f"should be 0 to {2**64 - 1}, not {value}")
    return int(value)


def ids(field: str, values: Iterable[int] | NDArray[Any]) -> list[int]:
    """Ids that fit uint64."""
    if isinstance(values, np.ndarray):
        if values.size and (not np.issubdtype(values.dtype, np.integer) or values.min() < 0):
            raise wrong(field, f"should be ids of 0 to {2**64 - 1}, not {values.dtype} {values[:3]}...")
        found: list[int] = values.ravel().tolist()
        return found
    return [one_id(field, value) for value in values]
