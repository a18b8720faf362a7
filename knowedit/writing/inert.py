"""Text from outside (prompts, tokens, file names) made harmless wherever people read it: terminals, figures, pages."""

from __future__ import annotations

import unicodedata

_WRITTEN = "\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2"


def inert(text: object) -> str:
    """`text` with control, format and surrogate characters spelled out (`\\x1b`), fit for any terminal.

    Format characters that are part of how words are written stay: joiners (Persian half-spaces, emoji made of several)
    and signs that stand under or around digits in Arabic and Syriac.
    """
    return "".join(_shown(c) for c in str(text))


def _shown(character: str) -> str:
    if character in _WRITTEN:
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
