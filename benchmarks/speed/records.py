"""The whole cycle of single edits, edit to metrics, beside the plain loop; and evaluation alone beside two plain ways.

The plain loop does one record after the other: ROME's search written plainly, the weight changed, every prompt with
both targets in one padded batch with all logits (as ROME's evaluation does), the weight restored. knowedit takes 32
records at a time. "Equal steps" has the same 6 prompts and 25 steps in both; "by default" is knowedit with its own
settings against the plain loop with ROME's. Both sides are given covariance, contexts and preserved keys. A few
records at a time go through either side in turn; ratios are of the total times. Evaluation alone is of the same edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tqdm.auto import tqdm

from knowedit.answers import Answer
from knowedit.edit.apply import applied
from knowedit.edit.edit import Edit
from knowedit.edit.methods.rome import SMOLLM2, RomeConfig
from knowedit.evaluate.edits.config import EditStudyConfig
from knowedit.evaluate.edits.metrics import Observation, both_targets, measure, metrics_of
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.evaluate.edits.summary import summarise
from knowedit.facts import Fact
from knowedit.models.adapter import Model
from knowedit.selection import choose
from knowedit.sources import load_source
from knowedit.texts.corpus import contexts

from ..reference.scoring import batched, one_by_one
from ..registry import benchmark
from ..timing import Stopwatch
from .edit import EQUAL, LAYER, PUBLISHED, Sides

BATCH = EditStudyConfig.batch
NAMES = ("ES", "PS", "NS", "EM", "PM", "NM")


@benchmark("speed.records_equal_steps", "How much faster than a plain loop are edit, measure and restore, equal steps?")
def records_equal_steps(source: str, records: int = 40) -> dict:
    sides, facts = Sides(), choose(load_source(source).facts, limit=records)
    config = replace(_plain_config(sides), search=EQUAL)
    return _cycle(sides, facts, config, config)


@benchmark("speed.records_by_default", "How much faster than a plain loop are edit, measure and restore, by default?")
def records_by_default(source: str, records: int = 40) -> dict:
    sides, facts = Sides(), choose(load_source(source).facts, limit=records)
    return _cycle(sides, facts, _plain_config(sides), sides.with_contexts())


@records_equal_steps.row
@records_by_default.row
def records_row(record: dict) -> list[str]:
    seconds = record["seconds_a_record"]
    return [
        f"{record['records']} CounterFact-lite records: **{record['ratio']:.1f}×** ({seconds['ours']:.1f} against "
        f"{seconds['plain']:.1f} s a record)"
    ]


def _plain_config(sides: Sides) -> RomeConfig:
    """ROME's own settings with 6 prompts."""
    texts = contexts(sides.model, 5)
    return RomeConfig(layer=LAYER, search=PUBLISHED, contexts=texts, preserve=SMOLLM2.preserve)


def _cycle(sides: Sides, facts: Sequence[Fact], plain: RomeConfig, ours: RomeConfig) -> dict:
    watch, rows = Stopwatch(), {"plain": [], "ours": []}
    for start in tqdm(range(0, len(facts), BATCH), desc="cycle"):
        part = facts[start : start + BATCH]
        rows["plain"] += watch("plain", _plain, sides, part, plain)
        rows["ours"] += watch("ours", _ours, sides, part, ours)
    pairs = list(zip(rows["plain"], rows["ours"], strict=True))
    return {
        "records": len(facts),
        "batch": BATCH,
        "layer": LAYER,
        "seconds_a_record": {name: watch.total(name) / len(facts) for name in rows},
        "ratio": watch.total("plain") / watch.total("ours"),
        "largest_gap_of_a_metric": max(abs(a[name] - b[name]) for a, b in pairs for name in NAMES if name in a),
        "metrics": {
            name: {metric: mean.as_dict() for metric, mean in summarise(metrics).items()}
            for name, metrics in rows.items()
        },
    }


def _ours(sides: Sides, facts: Sequence[Fact], config: RomeConfig) -> list[dict]:
    pairs = [both_targets(fact) for fact in facts]
    score_edits(sides.model, [None] * len(facts), pairs)  # the unedited columns
    scores = score_edits(sides.model, sides.searched_edits(facts, config), pairs)
    return [_metrics(*pair) for pair in zip(facts, scores, strict=True)]


def _plain(sides: Sides, facts: Sequence[Fact], config: RomeConfig) -> list[dict]:
    rows = []
    for fact in facts:
        batched(sides.model, both_targets(fact))
        value = sides.plain(sides.requests([fact], config.contexts)[0], config.search)
        with applied(sides.model, *sides.edits([fact], [value], config)):
            rows.append(_metrics(fact, batched(sides.model, both_targets(fact))))
    return rows


def _metrics(fact: Fact, answers: Sequence[Answer]) -> dict:
    return measure(Observation(fact, dict(zip(both_targets(fact), answers, strict=True))), metrics_of("builtin"))


@benchmark("speed.records_evaluation", "How much faster than two plain ways is the evaluation of edited records alone?")
def records_evaluation(source: str, records: int = 40) -> dict:
    sides, facts = Sides(), choose(load_source(source).facts, limit=records)
    model, pairs = sides.model, [both_targets(fact) for fact in facts]
    edits = sides.searched_edits(facts, sides.with_contexts())
    watch, gap = Stopwatch(), 0.0
    for start in tqdm(range(0, len(facts), BATCH), desc="evaluation"):
        part = slice(start, start + BATCH)
        watch("batched", _each, model, edits[part], pairs[part], batched)
        plain = watch("one by one", _each, model, edits[part], pairs[part], one_by_one)
        ours = watch("ours", score_edits, model, edits[part], pairs[part])
        scores = [pair for a, b in zip(plain, ours, strict=True) for pair in zip(a, b, strict=True)]
        gap = max(gap, *(abs(x - y) for a, b in scores for x, y in zip(a.log_p, b.log_p, strict=True)))
    return {
        "records": len(facts),
        "batch": BATCH,
        "layer": LAYER,
        "seconds_a_record": {name: watch.total(name) / len(facts) for name in watch.seconds},
        "ratio": {name: watch.total(name) / watch.total("ours") for name in ("batched", "one by one")},
        "largest_gap_of_a_log_likelihood": gap,
    }


@records_evaluation.row
def records_evaluation_row(record: dict) -> list[str]:
    ratio, gap = record["ratio"], record["largest_gap_of_a_log_likelihood"]
    return [
        f"{record['records']} records: **{ratio['batched']:.1f}×** a padded batch a record, "
        f"**{ratio['one by one']:.1f}×** each sequence by itself; log-likelihoods within {gap:.0e}"
    ]


def _each(model: Model, edits: Sequence[Edit], pairs: Sequence[list[tuple[str, str]]], score) -> list:
    """Scores of each record with its edit on the model."""
    scores = []
    for edit, record_pairs in zip(edits, pairs, strict=True):
        with applied(model, edit):
            scores.append(score(model, record_pairs))
    return scores
