"""What is made harmless, and what is left as it is written."""

import pytest

from knowedit.writing.inert import inert


@pytest.mark.parametrize("text", ["می‌خواهم", "👩‍👩‍👧", "🏳️‍🌈", "क्‍ष", "São Tomé 東京", "\u0600١٢", "👍🏽", "נָא"])
def test_text_prints_as_it_is_written(text):
    assert inert(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("a\u202eb", "a\\u202eb"),  # turns what follows around
        ("a\u2066b\u200f", "a\\u2066b\\u200f"),
        ("a\u200bb", "a\\u200bb"),  # an invisible space that joins nothing
        ("a\n", "a⏎"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_a_terminal_obeys_or_hides_is_spelled_out(text, shown):
    assert inert(text) == shown
