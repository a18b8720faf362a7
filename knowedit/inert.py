"""Text from outside (prompts, tokens, file names) made harmless wherever people read it: terminals, figures, pages."""

from __future__ import annotations

import unicodedata


def inert(text: object) -> str:
    """`text` with control, format and surrogate characters spelled out (`\\x1b`), fit for any terminal."""
    return "".join(_shown(c) for c in str(text))


def _shown(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
