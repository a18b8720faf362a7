"""One edit on the default model: knowedit beside ROME's algorithm written plainly.

    python -m benchmarks.speed.edit
    python -m benchmarks.speed.edit --part batch

Covariance, contexts and preserved keys are given. Each pair is measured in turn, fact by fact; ratios are of the
times of one fact, the median over facts and rounds. "Equal steps" ends neither search before its last step, and
compares the δ that come out. "By default" is knowedit with its own settings against the plain loop with ROME's (6 or
21 prompts, 25 steps, ending below a loss of 0.05).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from statistics import median

import torch

import knowedit
from knowedit.edit.methods.rome import SMOLLM2, rome_many
from knowedit.edit.methods.v_star import VStarSearch, find_v_star, request
from knowedit.edit.preserved_keys import preserved_keys
from knowedit.texts.corpus import contexts

from ..quality.edit_facts import development
from ..reference.rome import plain_delta
from ..results import save

LAYER = SMOLLM2.layer
PUBLISHED = VStarSearch(steps=25, lr=0.5, kl=0.0625, decay=0.5, clamp=4.0, stop_loss=0.05)
EQUAL = replace(PUBLISHED, stop_loss=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--part", choices=("single", "batch"), default="single")
    options = parser.parse_args()
    model = knowedit.load()
    facts = development(options.batch)
    given = {"covariance": knowedit.covariance(model, [LAYER])[LAYER], "preserved": preserved_keys(model, LAYER)}
    sampled = contexts(model, 20)
    plain_delta(model, _request(model, facts[0], sampled[:5]), LAYER, replace(EQUAL, steps=2))  # warm up
    few = facts[: options.facts]
    record = {"layer": LAYER, "facts": [fact.id for fact in few]}
    if options.part == "batch":
        save("speed/edit_batch", record | {"batch": options.batch, **_batch(model, facts, few, sampled, given)})
        return
    record["equal_steps"] = {f"{n + 1} prompts": _equal(model, few, sampled[:n]) for n in (5, 20)}
    record["by_default"] = {f"{n + 1} prompts": _default(model, few, sampled[:n], given) for n in (5, 20)}
    save("speed/edit", record)


def _request(model, fact, texts):
    return request(model, fact, fact.target_new, texts)


def _timed(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def _equal(model, facts, texts) -> dict:
    plain, ours, gaps = [], [], []
    for fact in facts:
        asked = _request(model, fact, texts)
        seconds, (wanted, _) = _timed(lambda asked=asked: plain_delta(model, asked, LAYER, EQUAL))
        plain.append(seconds)
        seconds, (found,) = _timed(lambda asked=asked: find_v_star(model, [asked], LAYER, EQUAL))
        ours.append(seconds)
        gaps.append(((found.delta - wanted).norm() / wanted.norm()).item())
    return _ratios(plain, ours) | {"largest_gap_of_delta": max(gaps)}


def _default(model, facts, texts, given) -> dict:
    config = replace(SMOLLM2, contexts=_own(texts))
    plain, ours, steps = [], [], []
    for fact in facts:
        asked = _request(model, fact, texts)
        seconds, (_, made) = _timed(lambda asked=asked: plain_delta(model, asked, LAYER, PUBLISHED))
        plain.append(seconds)
        seconds, (edit,) = _timed(lambda fact=fact: rome_many(model, [fact], config, **given))
        ours.append(seconds)
        steps.append([made, edit.notes["steps"]])
    return _ratios(plain, ours) | {"steps_plain_ours": steps}


def _own(texts) -> tuple[str, ...]:
    """As many contexts as the default takes, of both lengths."""
    n = SMOLLM2.contexts
    return (*texts[: n // 2], *texts[len(texts) - (n - n // 2) :])


def _batch(model, facts, few, sampled, given) -> dict:
    """Seconds a fact: the batch once, the plain loop on a few of its facts before and after."""
    result = {}
    asked = [_request(model, fact, sampled[:5]) for fact in facts]
    before = [_timed(lambda a=a: plain_delta(model, a, LAYER, EQUAL))[0] for a in asked[: len(few)]]
    seconds, _ = _timed(lambda: find_v_star(model, asked, LAYER, EQUAL))
    after = [_timed(lambda a=a: plain_delta(model, a, LAYER, EQUAL))[0] for a in asked[: len(few)]]
    ours = seconds / len(facts)
    result["equal_steps"] = {"plain": before + after, "ours": ours, "ratio": median(before + after) / ours}
    config = replace(SMOLLM2, contexts=_own(sampled[:5]))
    before = [_timed(lambda a=a: plain_delta(model, a, LAYER, PUBLISHED))[0] for a in asked[: len(few)]]
    seconds, _ = _timed(lambda: rome_many(model, facts, config, **given))
    after = [_timed(lambda a=a: plain_delta(model, a, LAYER, PUBLISHED))[0] for a in asked[: len(few)]]
    ours = seconds / len(facts)
    result["by_default"] = {"plain": before + after, "ours": ours, "ratio": median(before + after) / ours}
    return result


def _ratios(plain: list[float], ours: list[float]) -> dict:
    ratios = [p / o for p, o in zip(plain, ours, strict=True)]
    return {"plain_seconds": plain, "ours_seconds": ours, "ratios": ratios, "ratio_median": median(ratios)}


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
