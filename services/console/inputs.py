"""What comes from outside, checked: ids, counts and words in bounds, or a sentence on what would be right."""

from collections.abc import Mapping


class InputError(ValueError):
    """An input is wrong; the message is for the person who gave it."""


def an_id(name: str, text: str) -> int:
    """An id of 1 to 2^64 - 1 in decimal digits."""
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 20 or not 0 < int(text) < 2**64:
        raise InputError(f"{name}: {_shown(text)} is no id; ids are whole numbers from 1 to 2^64 - 1")
    return int(text)


def a_count(name: str, text: str, low: int, high: int) -> int:
    """A whole number from `low` to `high`."""
    text = text.strip()
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not low <= int(text) <= high:
        raise InputError(f"{name}: {_shown(text)} is no whole number from {low} to {high}")
    return int(text)


def one_of(name: str, text: str, words: Mapping[str, object]) -> str:
    """One of a few words."""
    if text not in words:
        raise InputError(f"{name}: {_shown(text)} is none of {', '.join(words)}")
    return text


def _shown(text: str) -> str:
    return repr(text[:40]) if text else "nothing"
