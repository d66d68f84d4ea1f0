"""Passwords are taken out of what is logged, printed or put into an error."""

import re
from collections.abc import Mapping
from typing import Any

_PASSWORD = re.compile(r"(://[^:@/\s]*:)\S*(?=@)")
_PASSWORD_PARAMETER = re.compile(r"([?&;][\w.]*password=)[^&;\s]*", re.IGNORECASE)


def redact_url(text: str) -> str:
    """`text` with the password of every URL in it replaced by ***; safe to log and to print."""
    return _PASSWORD_PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1***", text))


def redact(value: Any) -> Any:
    """`value` with every text in it redacted, also inside lists and mappings."""
    if isinstance(value, str):
        return redact_url(value)
    if isinstance(value, Mapping):
        return {key: redact(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [redact(each) for each in value]
    return value
