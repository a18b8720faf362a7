"""Scripts: which are written without spaces between words, and which characters make words."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

JOINERS = "\u200c\u200d"  # zero-width: parts of Persian words, emoji made of several

_SPACELESS = (  # as the names of their characters begin
    "CJK ", "IDEOGRAPHIC ", "KANGXI ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA ", "BOPOMOFO ", "YI ",
    "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "JAVANESE ", "BALINESE ", "TAI ", "NEW TAI LUE ",
)  # fmt: skip


@lru_cache(maxsize=4096)
def spaceless(character: str) -> bool:
    """Whether the character is of a script without spaces between words, or a mark as wide as such characters."""
    return unicodedata.name(character, "").startswith(_SPACELESS) or wide_mark(character)


def wide_mark(character: str) -> bool:
    """Whether it is punctuation as wide as an ideograph, which holds its own space."""
    return unicodedata.category(character)[0] == "P" and unicodedata.east_asian_width(character) in "WF"


def word_like(character: str) -> bool:
    """Whether the character is part of a word: a letter, a digit, a mark on one, a joiner or an underscore."""
    return character.isalnum() or unicodedata.category(character)[0] == "M" or character in JOINERS + "_"


def goes_on(text: str, longer: str) -> bool:
    """Whether `longer` is `text` with more of its last word. Scripts without spaces have no words that go on."""
    more = longer[len(text) :]
    return longer.startswith(text) and bool(more) and word_like(more[0]) and not spaceless(more[0])


def mostly_spaceless(text: str) -> bool:
    """Whether a text has more characters of scripts without spaces than words of others."""
    characters = sum(spaceless(c) for c in text)
    words = sum(
        c.isalnum() and not spaceless(c) and (i == 0 or not text[i - 1].isalnum() or spaceless(text[i - 1]))
        for i, c in enumerate(text)
    )
    return characters > words
