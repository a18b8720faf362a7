"""Choose ROME's settings for the default model on development facts, none of which is reported elsewhere.

For each setting: efficacy, paraphrase and neighbourhood success (held-out templates left out), how many other known
facts are still answered, perplexity, steps and seconds a fact; and how few tokens suffice for the covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tqdm.auto import tqdm

import knowedit
from knowedit.answers import Answer, ask_facts
from knowedit.edit.methods.rome import SMOLLM2, RomeConfig
from knowedit.edit.methods.v_star import Value
from knowedit.edit.rewrite_quality import PARTS, RewriteQuality, rates, rewrite_quality
from knowedit.facts import Fact

from ..editing import Rome
from ..registry import benchmark
from ..samples import development, known
from ..timing import Stopwatch

CHOSEN = "as chosen"
SETTINGS = {
    CHOSEN: SMOLLM2,
    "no preserved keys": replace(SMOLLM2, preserve=0.0),
    "preserved keys, weight 10": replace(SMOLLM2, preserve=10.0),
    "key mean": replace(SMOLLM2, key="mean"),
    "clamp 4": replace(SMOLLM2, search=replace(SMOLLM2.search, clamp=4.0)),
    "clamp 3": replace(SMOLLM2, search=replace(SMOLLM2.search, clamp=3.0)),
    "1 context": replace(SMOLLM2, contexts=1),
    "layer 3": replace(SMOLLM2, layer=3),
}
TOKENS = (1024, 2048, 4096)  # of the covariance, without preserved keys
OTHERS = 24  # known facts that should still be answered


@benchmark("quality.rome_settings", "Which settings of ROME are best for the default model?")
def rome_settings(facts: int = 12) -> dict:
    chosen = development(facts)
    trial = _Trial(chosen)
    settings = {"unedited": _means(rewrite_quality(trial.rome.model, chosen, heldout=False))}
    for name, config in tqdm(SETTINGS.items(), unit="setting"):
        settings[name] = trial.means(config)
    for tokens in TOKENS:
        name = f"no preserved keys, covariance of {tokens} tokens"
        settings[name] = trial.means(replace(SMOLLM2, preserve=0.0), tokens)
    return {"facts": [fact.id for fact in chosen], "settings": settings}


@rome_settings.row
def rome_settings_row(record: dict) -> list[str]:
    lines = [f"{len(record['facts'])} development facts: {', '.join(PARTS)}"]
    for name, means in record["settings"].items():
        steps = f", {means['steps']:.0f} steps" if "steps" in means else ""
        lines.append(f"{name}: {', '.join(f'{100 * means[part]:.0f}' for part in PARTS)}{steps}")
    return lines


class _Trial:
    """Settings that differ in the key or the preserved keys alone share their searches."""

    def __init__(self, facts: Sequence[Fact]):
        self.facts, self.watch = facts, Stopwatch()
        self.rome = Rome(sorted({setting.layer for setting in SETTINGS.values()}))
        others = [fact for fact in development(4 * OTHERS) if fact not in set(facts)]
        self.others = known(self.rome.model, others)[:OTHERS]
        self.searches: dict[str, tuple[tuple[str, ...], list[Value]]] = {}  # contexts, and v* with them

    def means(self, config: RomeConfig, tokens: int | None = None) -> dict:
        """What edits by `config` do, on average; with the covariance of so many `tokens`."""
        rome, model, key = self.rome, self.rome.model, f"{config.layer}, {config.search}, {config.contexts}"
        if key not in self.searches:
            settled = rome.with_contexts(config)
            self.searches[key] = settled.contexts, self.watch(key, rome.searched, self.facts, settled)
        texts, values = self.searches[key]
        C = None
        if tokens is not None:
            C = knowedit.covariance(model, [config.layer], tokens=tokens, few=True)[config.layer]
        edits = rome.edits(self.facts, values, replace(config, contexts=texts), C)
        each, rises = zip(*rome.each_applied(edits, self._measured), strict=True)
        pairs, answers = [pair for pair, _ in each], [answer for _, others in each for answer in others]
        norms = [delta.norm() for edit in edits for delta in edit.deltas.values()]
        return _means(pairs) | {
            "other_facts_kept": sum(answer.known for answer in answers) / len(answers),
            "perplexity_rise": {"mean": sum(rises) / len(rises), "worst": max(rises)},
            "relative_norm": sum(norms) / len(norms) / model.down_weight(config.layer).norm().item(),
            "steps": sum(value.steps for value in values) / len(values),
            "seconds_a_fact": self.watch.total(key) / len(values),
        }

    def _measured(self, i: int) -> tuple[RewriteQuality, list[Answer]]:
        """A fact and the others, while its edit is on the model."""
        fact, model = self.facts[i], self.rome.model
        others = [other for other in self.others if other.subject != fact.subject]
        return rewrite_quality(model, [fact], heldout=False)[0], ask_facts(model, others)


def _means(pairs: Sequence[RewriteQuality]) -> dict[str, float]:
    return {name: sum(values) / len(values) for name, values in rates(pairs).items()}
