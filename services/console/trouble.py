"""What a page says where a part is away or an input is wrong: a title, the reason, the way out, an HTTP status."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from vitrine.client import (
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    VitrineError,
)

T = TypeVar("T")


@dataclass
class Trouble(Exception):  # noqa: N818  (a page's content, more than an error)
    """Ends a page, or a part of it, with a message for people."""

    title: str
    text: str
    status: int = 503


def need(client: T | None, what: str, variable: str) -> T:
    """The client, or the Trouble of one that was never set."""
    if client is None:
        raise Trouble(f"No {what} is set", f"Start the console with {variable} (host:port).")
    return client


@contextmanager
def calling(what: str, address: str) -> Iterator[None]:
    """Turns a call's failure into Trouble; NotFoundError goes through, since a page may know what it means."""
    try:
        yield
    except NotFoundError:
        raise
    except InvalidArgumentError as error:
        raise Trouble(f"The {what} does not take this", error.message, 400) from error
    except (UnavailableError, DeadlineExceededError) as error:
        raise Trouble(f"The {what} does not answer", f"At {address}: {_told(error)}") from error
    except ResourceExhaustedError as error:
        raise Trouble(f"The {what} has too much to do", _told(error)) from error
    except VitrineError as error:
        hint = "The console calls with the token and certificate that VITRINE_CLIENT_* name."
        raise Trouble(f"The {what} refuses the console", f"{_told(error)}. {hint}") from error


def _told(error: VitrineError) -> str:
    return f"{error.code.name.lower().replace('_', ' ')}: {error.message[:300]}"
