"""Reference texts of CounterFact: what has been written about subjects of which the new answer is true.

    references = read_references("data")     # the folder with ROME's three files
    references.score(["the generated text", "another"], fact)

RS (Meng et al. 2022, arXiv 2202.05262, section 3.4) is the cosine of the tf-idf vectors of all generated texts and of
all reference texts for the relation and the new target, each joined to one text:

    RS = x·y / (‖x‖ ‖y‖),    x_w = n_w(generated) · idf_w,    y_w = n_w(reference) · idf_w

with the vocabulary and the idf that ROME gives out (`tsets/attr_snippets.py`, `dsets/tfidf_stats.py`,
`eval_utils_counterfact.py`). Nothing of this is shipped: the files are `attribute_snippets.json`, `idf.npy` and
`tfidf_vocab.json`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import DataError, InputError
from ...facts import Fact

SNIPPETS, IDF, VOCABULARY = FILES = ("attribute_snippets.json", "idf.npy", "tfidf_vocab.json")
_WORD = re.compile(r"\b\w\w+\b")  # as scikit-learn's vectorizer has it: two letters or more, without case


@dataclass(frozen=True, eq=False)
class References:
    """Texts by (relation, id of the target); `idf` by word; `sha256` of the files."""

    texts: Mapping[tuple[str, str], Sequence[str]]
    idf: Mapping[str, float]
    sha256: str

    def of(self, fact: Fact) -> list[str]:
        """Texts about subjects of which the fact's new target is true."""
        return list(self.texts.get((fact.relation or "", fact.target_new_id or ""), ()))

    def score(self, generated: Sequence[str], fact: Fact) -> float | None:
        """RS of texts that were generated for `fact`, in [0, 1]; None where there is no text or no reference."""
        one, other = (self._vector(" ".join(texts)) for texts in (generated, self.of(fact)))
        norms = [math.sqrt(sum(x * x for x in vector.values())) for vector in (one, other)]
        if not all(norms):
            return None
        return sum(x * other[word] for word, x in one.items() if word in other) / (norms[0] * norms[1])

    def _vector(self, text: str) -> dict[str, float]:
        counts = Counter(_WORD.findall(text.lower()))
        return {word: n * self.idf[word] for word, n in counts.items() if word in self.idf}


def read_references(folder: str | Path) -> References:
    """The reference texts in `folder`. Raises `InputError` where a file is missing or of another shape and `DataError`
    where one is damaged."""
    folder = Path(folder).expanduser()
    data = {}
    for name in FILES:
        try:
            data[name] = (folder / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"cannot read {str(folder / name)!r}: {error.strerror}; the folder of snippets holds {', '.join(FILES)}"
            ) from None
    vocabulary = _json(folder / VOCABULARY, data[VOCABULARY])
    try:
        idf = np.load(folder / IDF, allow_pickle=False)
    except (OSError, ValueError):
        raise DataError(f"{str(folder / IDF)!r} is no array of numpy; fetch it again") from None
    if not isinstance(vocabulary, dict) or not all(
        isinstance(i, int) and 0 <= i < idf.size for i in vocabulary.values()
    ):
        raise InputError(f"{str(folder / VOCABULARY)!r} is no vocabulary of {idf.size} words, expected word → index")
    digest = hashlib.sha256(b"".join(hashlib.sha256(data[name]).digest() for name in FILES)).hexdigest()
    weights = idf.ravel().tolist()
    texts = _texts(folder / SNIPPETS, _json(folder / SNIPPETS, data[SNIPPETS]))
    return References(texts, {word: weights[i] for word, i in vocabulary.items()}, digest)


def _json(path: Path, data: bytes):
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise DataError(f"{str(path)!r} is not JSON; fetch it again") from None


def _texts(path: Path, records) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for i, record in enumerate(records if isinstance(records, list) else [records]):
        try:
            key = record["relation_id"], record["target_id"]
            found.setdefault(key, []).extend(str(sample["text"]) for sample in record["samples"])
        except (KeyError, TypeError):
            raise InputError(
                f"{str(path)!r}, record {i}: expected relation_id, target_id and samples with their text"
            ) from None
    return found
