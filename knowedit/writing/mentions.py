"""Where a subject is mentioned. Prompts, templates and the readers of data sets all ask here.

Where was Ann, the daughter of Hanna and Annette, born? She was born in
          ~~~ a mention             ···     ··· letters of other words
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

from .scripts import JOINERS, spaceless, word_like

_LINKS = "-\u2010\u2011&/@.,"  # they make one word of two: Jean-Luc, AT&T, Node.js, 3.5


class Mention(NamedTuple):
    """The characters [start, end) of a text; `whole` is False inside of a word."""

    start: int
    end: int
    whole: bool


def mention(text: str, subject: str) -> Mention | None:
    """The last mention of `subject` as words of their own, else as a part of a compound, else inside a word, else None.

    Jean in Jean-Luc, Neil in O'Neil and C in C++ are parts of compounds. Scripts without spaces do not show where a
    word ends: there every mention counts as one of its own.
    """
    compound = inside = None
    end = len(text)
    while subject.strip() and (start := text.rfind(subject, 0, end)) >= 0:
        end = start + len(subject)
        found = Mention(start, end, _parted(text, start) and (_parted(text, end) or _particle(text, end)))
        if not found.whole:
            inside = inside or found
        elif not _linked(text, found):
            return found
        compound = compound or (found if found.whole else None)
        end -= 1
    return compound or inside


def _linked(text: str, place: Mention) -> bool:
    """Whether a mention is joined to another word. An apostrophe behind it is not: Ann's, Ankara'da."""
    before, after = text[: place.start], text[place.end :]
    joins_before = before[-1:] in tuple(_LINKS + "'’") and word_like(before[-2:-1] or " ")
    return joins_before or after[:1] in ("+", "#") or after[:1] in tuple(_LINKS) and word_like(after[1:2] or " ")


def _parted(text: str, at: int) -> bool:
    """Whether a word may begin or end at an index of `text`."""
    before, after = text[at - 1 : at], text[at : at + 1]
    if not before or not after:
        return True
    if before == JOINERS[1] or after in JOINERS or unicodedata.category(after) in ("Mn", "Mc", "Me", "Sk"):
        return False  # one character for those who read it
    return spaceless(before) or spaceless(after) or not (word_like(before) and word_like(after))


def _particle(text: str, at: int) -> bool:
    """Whether a Korean word goes on at an index, as it does with a particle: 서울 in 서울은."""
    return all(unicodedata.name(character, "").startswith("HANGUL") for character in text[at - 1 : at + 1])
