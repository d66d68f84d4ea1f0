"""Rollbacks of matching go ever further back."""

from vitrine.api.events.v1.events_pb2 import Activation
from vitrine.matching.activation import stack


def names(letters: str) -> str:
    found = stack(Activation(catalog_version=letter, effective_ms=at) for at, letter in enumerate(letters))
    return "".join(each.catalog_version for each in found)


def test_what_was_activated_lies_on_what_was_active_before():
    assert names("") == ""
    assert names("abc") == "abc"


def test_coming_back_takes_away_what_came_after():
    assert names("abcb") == "ab"
    assert names("abcba") == "a"
    assert names("aba") == "a"
    assert names("abac") == "ac"


def test_the_same_again_is_the_same_activation():
    assert names("abb") == "ab"


def test_another_arm_is_another_activation():
    plain, with_b = Activation(catalog_version="a"), Activation(catalog_version="a", other_share=5)
    assert stack([plain, with_b]) == [plain, with_b]
