"""Where a subject is mentioned. Prompts, templates and the readers of data sets all ask here.

Where was Ann, the daughter of Hanna and Annette, born? She was born in
          ~~~ a mention             ···     ··· letters of other words
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

from .scripts import JOINERS, spaceless, word_like


class Mention(NamedTuple):
    """The characters [start, end) of a text; `whole` is False inside of a word."""

    start: int
    end: int
    whole: bool


def mention(text: str, subject: str) -> Mention | None:
    """The last mention of `subject` as words of their own, else the last inside a word, else None.

    Scripts without spaces do not show where a word ends: there every mention counts as one of its own.
    """
    last = None
    end = len(text)
    while subject.strip() and (start := text.rfind(subject, 0, end)) >= 0:
        end = start + len(subject)
        found = Mention(start, end, _parted(text, start) and (_parted(text, end) or _particle(text, end)))
        if found.whole:
            return found
        last = last or found
        end -= 1
    return last


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
