"""Errors that callers are meant to read; `vitrine.runtime.errors` turns them into gRPC statuses."""


class FieldError(ValueError):
    """An input field is wrong: `field` names it as the caller wrote it, the message says what would be right."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class NotFoundError(LookupError):
    """What was asked for does not exist here."""


class UnavailableError(RuntimeError):
    """Cannot answer now; the same call may succeed later."""
