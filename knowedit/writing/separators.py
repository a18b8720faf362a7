"""What stands between a prompt and its target: a space, or nothing.

    The capital of France is|_Paris        … is called '|Paris        … is called 'Paris'|_and        首都叫做|iPhone

Both sides are looked at: the scripts, by Unicode category the marks that open or close, and what stands before a quote
or a mark of Markdown or TeX.
"""

from __future__ import annotations

import unicodedata

from ..errors import InputError
from .scripts import mostly_spaceless, spaceless, wide_mark

_STRAIGHT = "\"`'’"  # quotes whose form does not tell whether they open
_PARTNERS = {"“": "„", "”": "“„", "‘": "‚", "»": "«", "«": "»", "›": "‹", "‹": "›"}  # what such a quote may close
_LINKS = "/\\_@&=|"  # they join what they touch, and so do dashes
_NOT_CLOSING = "¿¡#@&*§"  # Unicode calls them "other punctuation", as it does full stops


def separator(text: str, target: str) -> str:
    """The white space that `text` needs before `target`; both hold more than white space."""
    if text[-1].isspace() or target[0].isspace() or wide_mark(text[-1]) or wide_mark(target[0]):
        return ""
    left, right = spaceless(text[-1]), spaceless(target[0])
    if left and right:
        return ""
    touching = text[-1].isalnum() and target[0].isalnum()
    if mostly_spaceless(text) and (left or right or not touching):
        return ""
    return "" if _joins_what_follows(text, target) or joins_what_precedes(text, target) else " "


def _joins_what_follows(text: str, target: str) -> bool:
    """Whether the end of `text` is written without a space before `target`."""
    last, before, after = text[-1], text[:-1], target[0]
    category, touches = unicodedata.category(last), bool(before) and not before[-1].isspace()
    if last in _STRAIGHT or last in _PARTNERS:
        return _opens(text)
    if category in ("Ps", "Pi") or last in "¿¡\\":
        return True
    if (opens := _emphasis(text, after)) is not None:
        return opens
    if category == "Sc" and not after.isdecimal():  # $x$
        return last == "$" and not touches and not before.rstrip()[-1:].isdecimal() and before.count("$") % 2 == 0
    if category == "Sc":  # $100, US$100; but 100$ is
        return not before[-1:].isdecimal()
    if last in "#@" and not touches:  # #love; but C# is
        return True
    if last in "-+−±":  # -5 and twenty-five; but 2 - 2
        number = before.rstrip()[-1:]
        return touches and last == "-" or after.isdecimal() and touches == (number.isdecimal() or number == ")")
    if last == "," and before[-1:].isdecimal():  # 10,000
        return target[:3].isdecimal() and len(target[:3]) == 3 and not target[3:4].isdecimal()
    if last in ".:×*":  # 3.14, 12:30
        return before[-1:].isdecimal() and after.isdecimal()
    return touches and (category == "Pd" or last in _LINKS)


def joins_what_precedes(text: str, target: str) -> bool:
    """Whether the beginning of `target` is written without a space behind `text`."""
    first, rest = target[0], target[1:]
    category = unicodedata.category(first)
    if first == "_" and target.rstrip(".,;:!?").endswith("_"):  # _Paris_
        return False
    if first in _STRAIGHT or first in _PARTNERS:
        contraction = first in "'’" and rest.split(" ")[0].rstrip(".,") in ("s", "t", "re", "ve", "ll", "d", "m")
        closing = not rest or rest[0].isspace() or unicodedata.category(rest[0])[0] in "PSZ" and rest[0] not in "([{"
        return contraction or closing
    if target.startswith(("n't", "n’t")):
        return text[-1].isalpha()
    if category == "Sc":  # 100€; but $100
        return text[-1].isdecimal() and not rest[:1].isdecimal()
    if category == "Pd":  # 1990–2000, -year-old; but -5
        return rest[:1].isalpha() or rest[:1].isdecimal() and text[-1].isdecimal()
    if category == "Po":
        return first not in _NOT_CLOSING
    raised = unicodedata.decomposition(first).startswith(("<super>", "<sub>"))  # m², X™
    return raised or category in ("Pe", "Pf", "Pc", "Sk", "Cf") or category[0] == "M" or first in "°℃℉®"


def _emphasis(text: str, after: str) -> bool | None:
    """Whether marks of Markdown at the end of `text` open (is **), or close (**Paris**); None where there are none."""
    mark = text[-1]
    if mark not in "*_~":
        return None
    before = text.rstrip(mark)
    marks, last = text[len(before) :], before[-1:]
    if last and not last.isspace():
        bracket = last in _STRAIGHT or unicodedata.category(last) in ("Ps", "Pi")
        return True if bracket else False if before.count(marks) % 2 else None
    if marks == "~":  # ~5, ~/src
        return after.isdecimal() or after == "/"
    item = marks == "*" and (not last or last == "\n")
    product = before.rstrip()[-1:]
    return not item and not (mark == "*" and (product.isdecimal() or product in tuple(")]=")))


def _opens(text: str) -> bool:
    """Whether the quote at the end of `text` opens: told by what stands before it."""
    quote, before = text[-1], text[:-1]
    if not before:
        return True
    touches = not before[-1].isspace()
    if quote in _PARTNERS:
        closes = sum(map(before.count, _PARTNERS[quote])) > before.count(quote)
        return not closes and (not touches or unicodedata.category(quote) != "Pf")
    if not touches:
        return True
    open_before = _open_before(before, quote)
    if not before[-1].isalnum():  # behind a bracket, a colon, a full stop, another quote
        return not open_before
    return quote in "'’" and not open_before and _elided(before)


def _open_before(text: str, quote: str) -> bool:
    """Whether a `quote`, or its opening form, was opened in `text` and not closed."""
    is_open = False
    for i, character in enumerate(text):
        inside = 0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()
        if character == quote and not (inside and quote in "'’"):  # an apostrophe
            is_open = not is_open if quote in '"`' else i == 0 or not text[i - 1].isalnum()
        elif character == "‘" and quote == "’":
            is_open = True
    return is_open


def _elided(text: str) -> bool:
    """Whether a word that ends in an apostrophe joins the next one: l', dell', O'; but boys', James'."""
    word = text.split()[-1]
    latin = unicodedata.name(word[-1], "").startswith("LATIN")
    return latin and (len(word) == 1 or word[-1].lower() not in "sxz")


def check_separator(separator: str | None) -> None:
    """Raise `InputError` for a separator that is not white space, nothing, or None for the one that fits."""
    if separator is not None and (not isinstance(separator, str) or separator.strip()):
        raise InputError(f"the separator is {separator!r}, expected white space or nothing; other text is the prompt's")
