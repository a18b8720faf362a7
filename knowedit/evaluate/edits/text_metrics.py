"""What is made of generated text: does it give the answer, and how repetitive is it?"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from math import log2

_TOKEN = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_GE = ((2, 2 / 3), (3, 4 / 3))  # ROME's: length of n-grams, weight of their entropy


def words(text: str) -> list[str]:
    """Words and punctuation marks, as near to NLTK's `word_tokenize` as one pattern comes ("don't" stays one word)."""
    return _TOKEN.findall(text)


def begins_with(text: str, answer: str) -> bool:
    """Whether `text` begins with `answer`, by words: without case, accents, articles and punctuation."""
    said, wanted = _normal(text), _normal(answer)
    return bool(wanted) and said[: len(wanted)] == wanted


def holds(text: str, answer: str) -> bool:
    """Whether `answer` is somewhere in `text`, by words as in `begins_with`."""
    said, wanted = _normal(text), _normal(answer)
    return bool(wanted) and any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def generation_entropy(texts: Sequence[str]) -> float | None:
    """GE of ROME: the mean of 2/3 · H₂ and 4/3 · H₃, entropies of bigrams and trigrams in bits, averaged over texts.

    It falls where text repeats itself. None where no text has three words. ROME counts the prompt as text; so does
    whoever passes it here. (`eval_utils_counterfact.py`, `n_gram_entropy`.)
    """
    found = [_entropy(tokens) for text in texts if len(tokens := words(text)) > 2]
    return sum(found) / len(found) if found else None


def _entropy(tokens: Sequence[str]) -> float:
    values = []
    for n, weight in _GE:
        counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        total = sum(counts.values())
        values.append(-weight * sum(c / total * log2(c / total) for c in counts.values()))
    return sum(values) / len(values)


def _normal(text: str) -> list[str]:
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    found = re.findall(r"\w+", text)
    return found[1:] if found[:1] in (["the"], ["a"], ["an"]) and len(found) > 1 else found
