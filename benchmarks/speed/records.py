"""The whole cycle of single edits, edit to metrics, beside the plain loop; and evaluation alone beside two plain ways.

    python -m benchmarks.speed.records --source FILE [--part by_default]

The plain loop does one record after the other: ROME's search written plainly, the weight changed, every prompt with
both targets in one padded batch with all logits (as ROME's evaluation does), the weight restored. knowedit takes 32
records at a time. "Equal steps" has the same 6 prompts and 25 steps in both; "by default" is knowedit with its own
settings against the plain loop with ROME's. Both sides are given covariance, contexts and preserved keys. A few
records at a time go through either side in turn; ratios are of the total times. Evaluation alone is of the same edits.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from tqdm.auto import tqdm

import knowedit
from knowedit.answers import Answer
from knowedit.edit.apply import applied
from knowedit.edit.methods.rome import SMOLLM2, RomeConfig, edit_of, rome_many
from knowedit.edit.methods.v_star import Value, request
from knowedit.edit.preserved_keys import preserved_keys
from knowedit.evaluate.edits.metrics import Observation, both_targets, measure, metrics_of
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.evaluate.edits.study import EditStudyConfig
from knowedit.evaluate.edits.summary import summarise
from knowedit.sources import load_source
from knowedit.texts.corpus import contexts

from ..reference.rome import plain_delta
from ..results import save
from .edit import EQUAL, LAYER, PUBLISHED

BATCH = EditStudyConfig.batch
PARTS = ("equal_steps", "by_default", "evaluation")
NAMES = ("ES", "PS", "NS", "EM", "PM", "NM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True)
    parser.add_argument("--records", type=int, default=40)
    parser.add_argument("--part", choices=PARTS, help="only this; by default all, each with a result file of its own")
    options = parser.parse_args()
    model = knowedit.load()
    facts = load_source(options.source, limit=options.records).facts
    given = {"covariance": knowedit.covariance(model, [LAYER])[LAYER], "preserved": preserved_keys(model, LAYER)}
    texts = contexts(model, 5)
    equal = RomeConfig(layer=LAYER, search=EQUAL, contexts=texts, preserve=SMOLLM2.preserve)
    default = replace(SMOLLM2, contexts=contexts(model, SMOLLM2.contexts, SMOLLM2.lengths, seed=SMOLLM2.seed))
    plain_delta(model, request(model, facts[0], facts[0].target_new, texts), LAYER, replace(EQUAL, steps=2))  # warm up
    plain = replace(equal, search=PUBLISHED)
    parts = {
        "equal_steps": lambda: _cycle(model, facts, equal, equal, given),
        "by_default": lambda: _cycle(model, facts, plain, default, given),
        "evaluation": lambda: _evaluation(model, facts, rome_many(model, facts, default, **given)),
    }
    for part in PARTS if options.part is None else (options.part,):
        save(f"speed/records_{part}", {"records": len(facts), "batch": BATCH, "layer": LAYER, **parts[part]()})


def _cycle(model, facts, plain: RomeConfig, ours: RomeConfig, given) -> dict:
    seconds = {"plain": 0.0, "ours": 0.0}
    rows = {"plain": [], "ours": []}
    for start in tqdm(range(0, len(facts), BATCH), desc="cycle"):
        part = facts[start : start + BATCH]
        for name, run, config in (("plain", _plain, plain), ("ours", _ours, ours)):
            begun = time.perf_counter()
            rows[name] += run(model, part, config, given)
            seconds[name] += time.perf_counter() - begun
    gap = max(abs(a[n] - b[n]) for a, b in zip(rows["plain"], rows["ours"], strict=True) for n in NAMES if n in a)
    return {
        "seconds_a_record": {name: total / len(facts) for name, total in seconds.items()},
        "ratio": seconds["plain"] / seconds["ours"],
        "largest_gap_of_a_metric": gap,
        "metrics": {
            name: {metric: mean.as_dict() for metric, mean in summarise(of_way).items()}
            for name, of_way in rows.items()
        },
    }


def _ours(model, facts, config: RomeConfig, given) -> list[dict]:
    asked = [both_targets(fact) for fact in facts]
    score_edits(model, [None] * len(facts), asked)  # the unedited columns
    edits = rome_many(model, facts, config, **given)
    return [_metrics(fact, scores) for fact, scores in zip(facts, score_edits(model, edits, asked), strict=True)]


def _plain(model, facts, config: RomeConfig, given) -> list[dict]:
    rows = []
    for fact in facts:
        batched(model, both_targets(fact))
        asked = request(model, fact, fact.target_new, config.contexts)
        delta, steps = plain_delta(model, asked, LAYER, config.search)
        edit = edit_of(model, fact, _value(model, asked, delta, steps), *given.values(), config)
        with applied(model, edit):
            rows.append(_metrics(fact, batched(model, both_targets(fact))))
    return rows


def _value(model, asked, delta, steps) -> Value:
    from knowedit.edit.methods.v_star import _Run

    run = _Run.of(model, [asked], LAYER)
    return Value(delta, run.v0()[0], run.keys()[0], asked.rows[0].lookup, 0.0, 0.0, steps, False)


def _metrics(fact, answers: list[Answer]) -> dict:
    return measure(Observation(fact, dict(zip(both_targets(fact), answers, strict=True))), metrics_of("builtin"))


@torch.no_grad()
def batched(model, pairs) -> list[Answer]:
    """All sequences of a record in one padded batch, logits everywhere."""
    queries = [model.query(*pair) for pair in pairs]
    rows = [query.steps[-1].ids for query in queries]
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    log_p = model.hf(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    return [_read(query, log_p[r]) for r, query in enumerate(queries)]


@torch.no_grad()
def one_by_one(model, pairs) -> list[Answer]:
    """Every sequence by itself."""
    queries = [model.query(*pair) for pair in pairs]
    return [
        _read(query, model.hf(input_ids=torch.tensor([query.steps[-1].ids])).logits[0].log_softmax(-1))
        for query in queries
    ]


def _read(query, log_p) -> Answer:
    """The ranks are 1 for first choices and 2 for all others: metrics ask no more."""
    reads = [(step.read, token) for step, token in zip(query.steps, query.target_ids, strict=True)]
    ranks = tuple(1 if log_p[i].argmax() == token else 2 for i, token in reads)
    return Answer(tuple(log_p[i, token].item() for i, token in reads), ranks)


def _evaluation(model, facts, edits) -> dict:
    asked = [both_targets(fact) for fact in facts]
    seconds = {"batched": 0.0, "one by one": 0.0, "ours": 0.0}
    gap = 0.0
    for start in tqdm(range(0, len(facts), BATCH), desc="evaluation"):
        part = slice(start, start + BATCH)
        found = {}
        for name, ask in (("batched", batched), ("one by one", one_by_one)):
            begun = time.perf_counter()
            found[name] = []
            for edit, pairs in zip(edits[part], asked[part], strict=True):
                with applied(model, edit):
                    found[name].append(ask(model, pairs))
            seconds[name] += time.perf_counter() - begun
        begun = time.perf_counter()
        found["ours"] = score_edits(model, edits[part], asked[part])
        seconds["ours"] += time.perf_counter() - begun
        for plain, ours in zip(found["one by one"], found["ours"], strict=True):
            for a, b in zip(plain, ours, strict=True):
                gap = max(gap, max(abs(x - y) for x, y in zip(a.log_p, b.log_p, strict=True)))
    return {
        "seconds_a_record": {name: total / len(facts) for name, total in seconds.items()},
        "ratio": {name: seconds[name] / seconds["ours"] for name in ("batched", "one by one")},
        "largest_gap_of_a_log_likelihood": gap,
    }


if __name__ == "__main__":
    main()
