"""What is asked of a fact and what is made of the answers: ROME's metrics, and zsRE's, as their released code has them.

With p̃ = exp(mean log p of the target's tokens), teacher-forced, averaged over a record's prompts and then over records:

    ES  efficacy        p̃(new) > p̃(true) on the rewrite prompt              EM  p̃(new) − p̃(true) there
    PS  paraphrase      the same on paraphrases                              PM
    NS  neighbourhood   p̃(true) > p̃(new) on prompts about other subjects    NM  p̃(true) − p̃(new) there
    Score               harmonic mean of the dataset's ES, PS and NS

Comparisons are strict, so a tie counts for neither. The `_argmax` forms ask instead whether every token of the target
is the model's first choice. (Meng et al. 2022, arXiv 2202.05262; `eval_utils_counterfact.py`, `summarize.py`.)

All figures are fractions, with 95 % intervals over records (`summarise`).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ...edit.rewrite_quality import PARTS, RewriteQuality, TargetPair, paraphrases_of, rates
from ...errors import InputError, did_you_mean
from ...facts import Fact
from ...statistics import bounded_interval, harmonic_mean
from .scoring import Score

RATES = {
    "ES": "efficacy: the new answer is likelier on the rewrite prompt",
    "PS": "the same on paraphrases",
    "NS": "neighbourhood: the true answer is likelier on prompts about other subjects",
    "ES_argmax": "every token of the new answer is the first choice on the rewrite prompt",
    "PS_argmax": "the same on paraphrases",
    "NS_argmax": "every token of the true answer is the first choice on prompts about other subjects",
    "Efficacy": "zsRE: tokens of the new answer that are first choices on the rewrite prompt",
    "Paraphrase": "zsRE: the same on paraphrases",
    "Specificity": "zsRE: tokens of other questions' answers that are first choices",
    "free_ES": "the rewrite prompt, written on freely, goes on with the new answer",
    "free_PS": "the same on paraphrases",
    "chat_ES": "the same on the rewrite prompt under the chat template",
    "portability": "questions that follow from the fact are answered",
    "RS": "likeness of generated text to reference texts about the new answer",
}
MAGNITUDES = {
    "EM": "efficacy magnitude: difference of the two answers' probabilities",
    "PM": "the same on paraphrases",
    "NM": "the same on prompts about other subjects, true minus new",
}
OTHERS = {
    "Score": "harmonic mean of ES, PS and NS",
    "GE": "entropy of n-grams in generated text, in bits",
    "perplexity": "relative rise of perplexity on plain text",
    "essence": "drift of what follows the subject: KL divergence from the unedited model, in nats",
}
METRICS = {**RATES, **MAGNITUDES, **OTHERS}
PROBE = "probe:"  # one metric for each kind of a fact's probes


@dataclass(frozen=True)
class Asked:
    """A prompt with two targets; `kind` is `"rewrite"`, `"paraphrase"` or `"neighbour"`.

    A neighbour's `target_true` is its own right answer.
    """

    prompt: str
    kind: str
    target_true: str
    target_new: str


def asked_of(fact: Fact) -> list[Asked]:
    """What is asked of `fact`: its prompt, its paraphrases and rephrasings, its neighbours, in this order.

    Held-out templates are not among them. Raises `InputError` for a fact without `target_new`.
    """
    if fact.target_new is None:
        raise InputError(f"the fact {fact.id or fact.prompt!r} has no target_new, expected the answer that it is given")
    return [
        Asked(fact.prompt, "rewrite", fact.target, fact.target_new),
        *(Asked(prompt, "paraphrase", fact.target, fact.target_new) for prompt in paraphrases_of(fact, heldout=False)),
        *(Asked(n.prompt, "neighbour", n.target, fact.target_new) for n in fact.neighbours),
    ]


def record_metrics(fact: Fact, scores_new: Sequence[Score], scores_true: Sequence[Score]) -> dict[str, float | None]:
    """ES, PS, NS, EM, PM, NM and the argmax forms of one record; None where it has no prompt of that kind.

    The scores are those of the new and of the true target of each prompt, in the order of `asked_of(fact)`.
    """
    asked = asked_of(fact)
    _same_number(fact, len(asked), scores_new, scores_true)
    by_kind = {"rewrite": [], "paraphrase": [], "neighbour": []}
    for a, new, true in zip(asked, scores_new, scores_true, strict=True):
        by_kind[a.kind].append(TargetPair(a.prompt, true.per_token, new.per_token, true.greedy, new.greedy, ()))
    found = RewriteQuality(by_kind["rewrite"][0], tuple(by_kind["paraphrase"]), tuple(by_kind["neighbour"]))
    return {name: None if math.isnan(value) else value for name, (value,) in rates([found]).items()}


def zsre_asked(fact: Fact) -> list[tuple[str, str, str]]:
    """(metric, prompt, target) as zsRE's evaluation asks: the new answer on the prompt and its paraphrases, and the old
    answers of the fact's probes of kind "locality"."""
    locality = [(probe.prompt, probe.answers[0]) for probe in fact.probes if probe.kind == "locality"]
    return [
        *(
            ("Efficacy" if a.kind == "rewrite" else "Paraphrase", a.prompt, a.target_new)
            for a in asked_of(fact)
            if a.kind != "neighbour"
        ),
        *(("Specificity", prompt, answer) for prompt, answer in locality),
    ]


def zsre_metrics(fact: Fact, scores: Sequence[Score]) -> dict[str, float | None]:
    """zsRE's Efficacy, Paraphrase and Specificity of one record, in [0, 1]: the share of the targets' tokens that are
    first choices given the right tokens before them. The scores are in the order of `zsre_asked(fact)`.
    (`eval_utils_zsre.py` of ROME.)
    """
    asked = zsre_asked(fact)
    _same_number(fact, len(asked), scores)
    tokens: dict[str, list[bool]] = {"Efficacy": [], "Paraphrase": [], "Specificity": []}
    for (name, *_), score in zip(asked, scores, strict=True):
        tokens[name] += [rank == 1 for rank in score.ranks]
    return {name: sum(right) / len(right) if right else None for name, right in tokens.items()}


def check_metric(name: str) -> str:
    """Return `name` if it is a metric; raise `InputError` otherwise."""
    if not isinstance(name, str) or (name not in METRICS and not (name.startswith(PROBE) and name != PROBE)):
        raise InputError(
            f"{name!r} is no metric{did_you_mean(str(name), METRICS)}; there are {', '.join(METRICS)} and {PROBE}KIND"
        )
    return name


def _same_number(fact: Fact, n: int, *found: Sequence) -> None:
    for scores in found:
        if len(scores) != n:
            raise InputError(
                f"{len(scores)} scores for the fact {fact.id or fact.prompt!r}, expected {n}: one a prompt"
            )


# ---------------------------------------------------------------- over records


class Columns:
    """Figures of many records, one column for each metric: eight bytes a figure, where a dict a record takes 100."""

    def __init__(self, records: Iterable[dict[str, float | None]] = ()):
        self.n = 0
        self._columns: dict[str, array] = {}
        for record in records:
            self.add(record)

    def add(self, record: dict[str, float | None]) -> None:
        for name, value in record.items():
            self._padded(name).append(math.nan if value is None else value)
        self.n += 1

    def arrays(self, of: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Name → (records,), NaN where a record has no such figure; of all records, or of those where `of` is true."""
        whole = {name: np.array(self._padded(name), dtype=np.float64) for name in self._columns}
        return whole if of is None else {name: column[of] for name, column in whole.items()}

    def _padded(self, name: str) -> array:
        column = self._columns.setdefault(name, array("d"))
        column.extend([math.nan] * (self.n - len(column)))
        return column


def summarise(
    records: Sequence[dict[str, float | None]] | Columns, seed: int = 0, of: np.ndarray | None = None
) -> dict[str, dict]:
    """Means over records with 95 % intervals: name → {value, low, high, n}, all fractions (GE: bits, essence: nats).

    `of` (records,) of bool chooses records.

    A record without a metric (None, or no such name) is left out of it; `n` counts the others, and an interval is None
    where they are fewer than two. `Score` is added where ES, PS and NS are there.

    - A rate whose records are single prompts (all 0 or 1): Wilson's interval.
    - Other rates, magnitudes and `Score`, which are bounded: bootstrap over records (Rubin's, with random weights),
      with half a success and half a failure beside them as in Jeffreys' interval. Where records agree, as after most
      edits, a bootstrap without these knows no doubt: it held the truth in as few as half of the simulated sets of
      `benchmarks/robustness/coverage.py`.
    - Others (GE, perplexity, essence): Student's t, for those that are never negative from 0 on.

    Memory is that of the values, whatever the number of resamples. Records may come in any order, as workers and shards
    leave them: the figures are the same to the bit.
    """
    found = records if isinstance(records, Columns) else Columns(records)
    columns = {name: column for name, column in found.arrays(of).items() if name != "Score"}
    found = {name: _summary(name, column[~np.isnan(column)], seed) for name, column in columns.items()}
    if all(name in found and found[name]["n"] for name in PARTS):
        found["Score"] = _score(np.stack([columns[name] for name in PARTS], 1), seed)
    return found


def _summary(name: str, kept: np.ndarray, seed: int) -> dict:
    n, kept = len(kept), np.sort(kept)
    if n < 2:
        return _figure(kept[0] if n else None, None, None, n)
    if name in MAGNITUDES:
        low, high = (2 * end - 1 for end in bounded_interval((kept[:, None] + 1) / 2, harmonic_mean, seed))
    elif name not in RATES and not name.startswith(PROBE):
        half = stats.t.ppf(0.975, n - 1) * kept.std(ddof=1) / math.sqrt(n)
        low, high = kept.mean() - half, kept.mean() + half
        if kept[0] >= 0 and name != "perplexity":
            low = max(0.0, low)
    elif np.isin(kept, (0, 1)).all():
        low, high = stats.binomtest(int(kept.sum()), n).proportion_ci(method="wilson")
    else:
        low, high = bounded_interval(kept[:, None], harmonic_mean, seed)
    return _figure(kept.mean(), low, high, n)


def _figure(value, low, high, n: int) -> dict:
    value, low, high = (None if x is None else float(x) for x in (value, low, high))
    return {"value": value, "low": low, "high": high, "n": n}


def _score(values: np.ndarray, seed: int) -> dict:
    """Of columns (records, 3)."""
    values = values[~np.isnan(values).all(1)]
    values = values[np.lexsort(values.T)]
    interval = bounded_interval(values, harmonic_mean, seed) if len(values) > 1 else (None, None)
    return _figure(harmonic_mean(np.nanmean(values, 0)), *interval, len(values))
