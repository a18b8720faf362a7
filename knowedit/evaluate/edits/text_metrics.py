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
    said_words, answer_words = _normal(text), _normal(answer)
    return bool(answer_words) and said_words[: len(answer_words)] == answer_words


def holds(text: str, answer: str) -> bool:
    """Whether `answer` is somewhere in `text`, by words as in `begins_with`."""
    said_words, answer_words = _normal(text), _normal(answer)
    return bool(answer_words) and any(
        said_words[i : i + len(answer_words)] == answer_words for i in range(len(said_words) - len(answer_words) + 1)
    )


def generation_entropy(texts: Sequence[str]) -> float | None:
    """GE of ROME: the mean of 2/3 · H₂ and 4/3 · H₃, entropies of bigrams and trigrams in bits, averaged over texts.

    It falls where text repeats itself. None where no text has three words. ROME counts the prompt as text; so does
    whoever passes it here. (`eval_utils_counterfact.py`, `n_gram_entropy`.)
    """
    entropies = [_entropy(tokens) for text in texts if len(tokens := words(text)) > 2]
    return sum(entropies) / len(entropies) if entropies else None


def _entropy(tokens: Sequence[str]) -> float:
    values = []
    for n, weight in _GE:
        counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        total = sum(counts.values())
        values.append(-weight * sum(c / total * log2(c / total) for c in counts.values()))
    return sum(values) / len(values)


def _normal(text: str) -> list[str]:
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    text_words = re.findall(r"\w+", text)
    return text_words[1:] if text_words[:1] in (["the"], ["a"], ["an"]) and len(text_words) > 1 else text_words
