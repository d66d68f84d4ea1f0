"""Passwords are taken out of what is logged, printed or put into an error."""

import re

_PASSWORD = re.compile(r"(://[^:@/\s]*:)\S*(?=@)")
_PASSWORD_PARAMETER = re.compile(r"([?&;][\w.]*password=)[^&;\s]*", re.IGNORECASE)


def redact_url(text: str) -> str:
    """`text` with the password of every URL in it replaced by ***; safe to log and to print."""
    return _PASSWORD_PARAMETER.sub(r"\1***", _PASSWORD.sub(r"\1***", text))
