"""The metrics of `bench edit`, a row each: ROME's, and zsRE's, as their released code has them, and others beside.

With p̃ = exp(mean log p of the target's tokens), teacher-forced, averaged over a record's prompts and then over records:

    ES  efficacy        p̃(new) > p̃(true) on the rewrite prompt              EM  p̃(new) − p̃(true) there
    PS  paraphrase      the same on paraphrases                              PM
    NS  neighbourhood   p̃(true) > p̃(new) on prompts about other subjects    NM  p̃(true) − p̃(new) there
    Score               harmonic mean of the dataset's ES, PS and NS

Comparisons are strict, so a tie counts for neither. The `_argmax` forms ask instead whether every token of the target
is the model's first choice. (Meng et al. 2022, arXiv 2202.05262; `eval_utils_counterfact.py`, `summarize.py`,
`eval_utils_zsre.py`.)

A new metric is a new row of `METRICS`; what is asked, measured, summarised, compared and shown follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...answers import Answer
from ...edit.rewrite_quality import PARTS, RATES, RewriteQuality, mean_of, paraphrases_of, quality_of, questions_of
from ...errors import InputError, did_you_mean
from ...facts import Fact
from ...sources.formats import FORMATS
from ..runs.metric import Metric, row_of
from .generation import Writing
from .references import References
from .text_metrics import begins_with, generation_entropy, holds

LOCALITY = "locality"  # the kind of probes that ask for what should not have changed


@dataclass(frozen=True, eq=False)
class Observation:
    """What a model did about one fact, under one edit or none: all that the metrics of a record are computed from.

    - `answers`: by (prompt, target), to everything that the metrics ask.
    - `writing`: what it wrote; `references`: texts to hold that against.
    - `perplexity_rise`: on a plain text, relative; `essence_drift`: of the subject, in nats.

    What was not measured is None.
    """

    fact: Fact
    answers: Mapping[tuple[str, str], Answer]
    writing: Writing | None = None
    references: References | None = None
    perplexity_rise: float | None = None
    essence_drift: float | None = None

    @cached_property
    def quality(self) -> RewriteQuality:
        return quality_of(questions_of(self.fact), self.answers)


# ---------------------------------------------------------------- what metrics are computed by


def both_targets(fact: Fact) -> list[tuple[str, str]]:
    """The true and the new target after each of the fact's prompts."""
    return [pair for question in questions_of(fact) for pair in question.pairs]


def rewrites(fact: Fact) -> list[tuple[str, str]]:
    return [(fact.prompt, fact.target_new)]


def paraphrases(fact: Fact) -> list[tuple[str, str]]:
    return [(prompt, fact.target_new) for prompt in paraphrases_of(fact, heldout=False)]


def locality(fact: Fact) -> list[tuple[str, str]]:
    """The old answers of the fact's probes of kind "locality"."""
    return [(probe.prompt, probe.answers[0]) for probe in fact.probes if probe.kind == LOCALITY]


def first_choices(asks: Callable[[Fact], Sequence[tuple[str, str]]]) -> Callable[[Observation], float]:
    """The share of the targets' tokens that are first choices given the right tokens before them."""
    return lambda seen: mean_of([rank == 1 for pair in asks(seen.fact) for rank in seen.answers[pair].ranks])


def free_answers(seen: Observation) -> list[bool]:
    return [begins_with(text, seen.fact.target_new) for text in seen.writing.free]


def chat_answers(seen: Observation) -> list[bool]:
    return [holds(text, seen.fact.target_new) for text in seen.writing.chat]


def answered_probes(seen: Observation) -> list[tuple[str, bool]]:
    """(kind, whether what was written after it holds one of its answers) of each probe."""
    texts = zip(seen.fact.probes, seen.writing.probes, strict=True)
    return [(probe.kind, any(holds(text, answer) for answer in probe.answers)) for probe, text in texts]


def answered_by_kind(seen: Observation) -> dict[str, float]:
    probes = answered_probes(seen)
    return {kind: mean_of([right for other, right in probes if other == kind]) for kind, _ in probes}


def portability(seen: Observation) -> float:
    return mean_of([right for kind, right in answered_probes(seen) if kind != LOCALITY])


def entropy(seen: Observation) -> float | None:
    return generation_entropy(seen.writing.texts)


def likeness(seen: Observation) -> float | None:
    return seen.references.score(seen.writing.texts, seen.fact)


# ---------------------------------------------------------------- the table


def answered(name: str, words: str, **options) -> Metric:
    """One of the `RATES`, of the answers to all of a fact's questions."""
    return Metric(name, words, lambda seen: RATES[name](seen.quality), asks=both_targets, **options)


def zsre(name: str, words: str, asks: Callable[[Fact], Sequence[tuple[str, str]]]) -> Metric:
    return Metric(name, f"zsRE: {words}", first_choices(asks), asks=asks, headline=True, by_format=True)


def written(name: str, words: str, of: Callable, **options) -> Metric:
    """A metric of what the model writes."""
    return Metric(name, words, of, needs="writing", **options)


METRICS = {
    metric.name: metric
    for metric in (
        answered("ES", "efficacy: the new answer is likelier on the rewrite prompt", headline=True),
        answered("PS", "the same on paraphrases", headline=True),
        answered("NS", "neighbourhood: the true answer is likelier on prompts about other subjects", headline=True),
        Metric("Score", "harmonic mean of ES, PS and NS", combines=PARTS, headline=True),
        answered("ES_argmax", "every token of the new answer is the first choice on the rewrite prompt"),
        answered("PS_argmax", "the same on paraphrases"),
        answered("NS_argmax", "every token of the true answer is the first choice on prompts about other subjects"),
        answered("EM", "efficacy magnitude: difference of the two answers' probabilities", bounds=(-1, 1)),
        answered("PM", "the same on paraphrases", bounds=(-1, 1)),
        answered("NM", "the same on prompts about other subjects, true minus new", bounds=(-1, 1)),
        zsre("Efficacy", "tokens of the new answer that are first choices on the rewrite prompt", rewrites),
        zsre("Paraphrase", "the same on paraphrases", paraphrases),
        zsre("Specificity", "tokens of other questions' answers that are first choices", locality),
        Metric(
            "essence",
            "drift of what follows the subject: KL divergence from the unedited model",
            lambda seen: seen.essence_drift,
            needs="essence_drift",
            unit="nats",
            digits=3,
            bounds=(0, None),
        ),
        written(
            "free_ES", "the new answer follows the rewrite prompt in free text", lambda seen: free_answers(seen)[0]
        ),
        written("free_PS", "the same on paraphrases", lambda seen: mean_of(free_answers(seen)[1:])),
        written("chat_ES", "the new answer is given under the chat template", lambda seen: mean_of(chat_answers(seen))),
        written("portability", "questions that follow from the fact are answered", portability),
        written("probe:", "questions of one kind are answered", answered_by_kind),
        written("GE", "entropy of n-grams in free text", entropy, unit="bits", digits=2, bounds=(0, None)),
        Metric("RS", "likeness of free text to reference texts about the new answer", likeness, needs="references"),
        Metric(
            "perplexity",
            "relative rise of perplexity on plain text",
            lambda seen: seen.perplexity_rise,
            needs="perplexity_rise",
            signed=True,
            bounds=(None, None),
            of_model=True,
        ),
    )
}


# ---------------------------------------------------------------- one record


def metrics_of(format: str) -> list[Metric]:
    """The rows that are measured of the records of a source: all but those that only other formats name."""
    named = FORMATS[format].metrics if format in FORMATS else ()
    for name in named:
        check_metric(name)
    return [metric for metric in METRICS.values() if not metric.by_format or metric.name in named]


def pairs_of(fact: Fact, metrics: Sequence[Metric]) -> list[tuple[str, str]]:
    """Every (prompt, target) that the metrics ask about a fact, once."""
    return list(dict.fromkeys(pair for metric in metrics for pair in metric.asks(fact)))


def measure(seen: Observation, metrics: Sequence[Metric]) -> dict[str, float | None]:
    """The metrics of one record by name; None where it has no prompt of that kind."""
    record: dict[str, float | None] = {}
    for metric in metrics:
        if metric.of is None or getattr(seen, metric.needs) is None:
            continue
        value = metric.of(seen)
        members = value if metric.name.endswith(":") else {"": value}
        record |= {f"{metric.name}{member}": _or_none(value) for member, value in members.items()}
    return record


def _or_none(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def check_metric(name: str) -> str:
    """Return `name` if it is a metric; raise `InputError` otherwise."""
    if not isinstance(name, str) or name.endswith(":") or row_of(METRICS, name) is None:
        known = [f"{known}KIND" if known.endswith(":") else known for known in METRICS]
        raise InputError(f"{name!r} is no metric{did_you_mean(str(name), METRICS)}; there are {', '.join(known)}")
    return name
