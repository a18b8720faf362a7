"""Text from outside (prompts, tokens, file names) made harmless wherever people read it: terminals, figures, pages."""

from __future__ import annotations

import unicodedata

_MARKDOWN = str.maketrans(
    {c: f"\\{c}" for c in r"\`*_[]"}
    | {c: f"&#{ord(c)};" for c in "<>&|$~"}  # as entities, since a backslash does not stop every reader of Markdown
)
_WRITTEN = "\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2"


def inert(text: object) -> str:
    """`text` with control, format and surrogate characters spelled out (`\\x1b`) and `⏎` for ends of lines, fit for any
    terminal.

    Format characters that are part of how words are written stay: joiners (Persian half-spaces, emoji made of several)
    and signs that stand under or around digits in Arabic and Syriac.
    """
    return "".join(_shown(c) for c in str(text))


def for_markdown(text: object) -> str:
    """`text` inert, and with nothing in it that a reader of Markdown takes for markup, HTML, a cell's end or a link."""
    spelled = inert(text).translate(_MARKDOWN)
    return spelled.replace("://", "&#58;//").replace("www.", "www&#46;")


def _shown(character: str) -> str:
    if character in _WRITTEN:
        return character
    if character == "\n":
        return "⏎"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape", "surrogatepass").decode("ascii")
    return character
