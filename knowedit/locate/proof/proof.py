"""Do the located neurons make the answer? Suppress and amplify them on held-out prompts, beside matched random ones.

For every held-out prompt the target's probability is measured with the neurons, where they were located, multiplied by
0 and by 2 (or moved to and from the values of another ablation), and with all others of their layers taken away. The
controls are random sets with the same number of neurons in each layer: one kind is matched by layer only, the other by
layer *and* activation (same stratum of |activation| in its layer, averaged over the prompts). The match is reported,
since a strong neuron has few equals.

Under the hypothesis that the located neurons are nothing special among those of their strata, they are one more
draw, so p = (1 + draws at least as extreme) / (1 + draws). Over several facts the draws are taken fact by fact and
the ratio of means (Dai et al. 2022) of each round of draws is compared with that of the located sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ...errors import InputError
from ...models.adapter import Model
from ...models.passes.scaled_answers import ScaledAnswers
from ...prompts import Query
from ...statistics import Estimate, estimate, log_odds, mean_of_ratios, monte_carlo_p, ratio_of_means
from ..neurons import NeuronSet
from .effect import CHANGED, Effect, located_answers, measure, measure_located
from .neuron_kinds import ControlPool

LEVEL, MATTERS = 0.05, 0.1  # significant: p at most LEVEL, and a change of at least MATTERS of the probability
RESTORABLE = 0.5  # of the probability has to go with the layers' neurons for some to restore it


@dataclass(frozen=True)
class Proof:
    """What suppressing and amplifying located neurons does, over one fact's prompts or over several facts.

    - `unit`: what intervals are over, `"prompts"` or `"facts"`; `heldout`: whether no prompt was used to locate.
    - `probability`: mean target probability before.
    - `suppress`, `amplify`: ratio of means; `*_ratios`: mean of ratios; `*_log_odds`: mean change of log-odds.
    - `control_*`: the same for random sets matched by layer and activation, `layer_control_*` by layer only.
    - `p_suppress`, `p_amplify`: one-sided, against the draws matched by layer and activation.
    - `sufficient`: what the neurons alone restore, P(all others of their layers taken away) less P(these, too) over P
      less P(these, too), a ratio of means; `control_sufficient` the same of random sets. Without a value where the
      layers without their neurons keep more than half of the answer: what they lack tells of other things, then.
    - `recalled`: share of prompts whose target is the model's first choice.
    - `significant`: whether the neurons make the answer: there is one to make (`recalled` is not 0), p is at most 0.05,
      and the probability falls (rises) by at least a tenth. On random weights some neurons push any token up a little
      whatever is asked, which a p-value alone calls significant.
    - `match`: mean |activation| of located and drawn neurons.
    - `specificity`: change of other facts' targets, of the same relation and of other relations.
    """

    unit: str
    heldout: bool
    facts: int
    draws: int
    neurons: float
    probability: float
    recalled: float
    suppress: Estimate
    amplify: Estimate
    suppress_ratios: Estimate
    amplify_ratios: Estimate
    suppress_log_odds: Estimate
    amplify_log_odds: Estimate
    control_suppress: Estimate
    control_amplify: Estimate
    layer_control_suppress: Estimate
    layer_control_amplify: Estimate
    sufficient: Estimate
    control_sufficient: Estimate
    p_suppress: float
    p_amplify: float
    significant: dict[str, bool]
    match: dict[str, float]
    specificity: dict[str, dict[str, Estimate]]

    def as_dict(self) -> dict:
        return asdict(self)


def prove_located(
    model: Model,
    located: NeuronSet,
    heldout: Sequence[str],
    *,
    pool: ControlPool,
    draws: int = 200,
    seed: int = 0,
) -> Proof:
    """The proof of located neurons on `heldout` prompts; without any, on the prompt that located them."""
    answers = located_answers(model, located, heldout or [located.prompt], pool)
    effect = measure_located(model, located, answers, pool=pool, draws=draws, seed=seed)
    return summarise([effect], heldout=bool(heldout))


def prove(
    model: Model,
    neurons: Iterable[tuple[int, int]],
    prompts: Sequence[Query],
    *,
    draws: int = 200,
    seed: int = 0,
    heldout: bool = True,
    others: Mapping[str, ScaledAnswers] | None = None,
) -> Proof:
    """Measure what `neurons` do to the target on `prompts`, which should not have located them (else `heldout=False`).

    `others`, by name, are other facts whose targets should stay as they are. Raises `InputError` without neurons.
    """
    effect = measure(model, neurons, ScaledAnswers(model, prompts), draws=draws, seed=seed, others=others)
    return summarise([effect], heldout=heldout)


def summarise(effects: Sequence[Effect], *, heldout: bool = True) -> Proof:
    """The proof over several facts, or over the prompts of a single one."""
    if not effects:
        raise InputError("there is nothing to summarise: no fact had neurons")
    single = len(effects) == 1

    def units(what: str) -> np.ndarray:  # (facts,), or (prompts,) of a single fact
        return getattr(effects[0], what) if single else np.array([getattr(e, what).mean() for e in effects])

    before, suppressed, amplified = (units(what) for what in ("before", "suppressed", "amplified"))
    controls = {
        (kind, what): _round_changes(effects, kind, what) for kind in ("activation", "layer") for what in CHANGED
    }
    fall, rise = _change(before, suppressed), _change(before, amplified)
    p_suppress = monte_carlo_p(fall, controls["activation", "suppressed"], "less")
    p_amplify = monte_carlo_p(rise, controls["activation", "amplified"], "greater")
    recalled = float(np.mean([e.recalled for e in effects]))
    return Proof(
        unit="prompts" if single else "facts",
        heldout=heldout,
        facts=len(effects),
        draws=min(len(e.control["activation"]["suppressed"]) for e in effects),
        neurons=float(np.mean([e.neurons for e in effects])),
        probability=float(before.mean()),
        recalled=recalled,
        suppress=ratio_of_means(before, suppressed),
        amplify=ratio_of_means(before, amplified),
        suppress_ratios=mean_of_ratios(before, suppressed),
        amplify_ratios=mean_of_ratios(before, amplified),
        suppress_log_odds=_log_odds_change(effects, "suppressed"),
        amplify_log_odds=_log_odds_change(effects, "amplified"),
        control_suppress=estimate(np.mean, (controls["activation", "suppressed"],)),
        control_amplify=estimate(np.mean, (controls["activation", "amplified"],)),
        layer_control_suppress=estimate(np.mean, (controls["layer", "suppressed"],)),
        layer_control_amplify=estimate(np.mean, (controls["layer", "amplified"],)),
        sufficient=_sufficient(effects, before),
        control_sufficient=_drawn_sufficient(effects),
        p_suppress=p_suppress,
        p_amplify=p_amplify,
        significant={
            "suppress": recalled > 0 and p_suppress <= LEVEL and fall <= -MATTERS,
            "amplify": recalled > 0 and p_amplify <= LEVEL and rise >= MATTERS,
        },
        match={name: float(np.mean([e.match[name] for e in effects])) for name in effects[0].match},
        specificity=_specificities(effects),
    )


def _change(before: np.ndarray, after: np.ndarray) -> float:
    return float((after.mean() - before.mean()) / before.mean())


def _log_odds_change(effects: Sequence[Effect], what: str) -> Estimate:
    """The mean change of log-odds over facts, or over prompts where there is one fact."""
    changes = [log_odds(getattr(e, what)) - log_odds(e.before) for e in effects]
    return estimate(np.mean, (changes[0] if len(effects) == 1 else np.array([change.mean() for change in changes]),))


def _sufficient(effects: Sequence[Effect], before: np.ndarray) -> Estimate:
    """The ratio of means over facts, or over the prompts of a single one."""
    located, none = (
        effects[0].alone[name] if len(effects) == 1 else np.array([e.alone[name].mean() for e in effects])
        for name in ("located", "none")
    )
    return estimate(_restored, (located, none, before))


def _drawn_sufficient(effects: Sequence[Effect]) -> Estimate:
    """The mean over rounds of draws."""
    before, none = (np.mean([values.mean() for values in column]) for column in zip(
        *((e.before, e.alone["none"]) for e in effects), strict=True
    ))  # fmt: skip
    draws = min(len(e.alone["drawn"]) for e in effects)
    drawn = np.mean([e.alone["drawn"][:draws] for e in effects], axis=0)
    return estimate(np.mean, ((drawn - none) / _lost(before, none),))


def _restored(after: np.ndarray, none: np.ndarray, before: np.ndarray, axis: int = -1) -> np.ndarray:
    return (after.mean(axis) - none.mean(axis)) / _lost(before.mean(axis), none.mean(axis))


def _lost(before: np.ndarray, none: np.ndarray) -> np.ndarray:
    """How much of the answer goes with all neurons of the layers, NaN where that is too little to be restored."""
    return np.where(before - none >= RESTORABLE * before, before - none, np.nan)


def _round_changes(effects: Sequence[Effect], kind: str, what: str) -> np.ndarray:
    """The ratio of means of every round of draws, (draws,)."""
    before = np.mean([e.before.mean() for e in effects])
    draws = min(len(e.control[kind][what]) for e in effects)
    after = np.mean([e.control[kind][what][:draws] for e in effects], axis=0)
    return (after - before) / before


def _specificities(effects: Sequence[Effect]) -> dict[str, dict[str, Estimate]]:
    """By sort of control the ratio of means over other facts, or over the averages of several located facts."""
    result = {}
    for name in sorted({name for e in effects for name in e.specificity}):
        measured = [e.specificity[name] for e in effects if name in e.specificity]
        values = (
            measured[0]
            if len(measured) == 1
            else {what: np.array([fact[what].mean() for fact in measured]) for what in measured[0]}
        )
        result[name] = {
            "suppress": ratio_of_means(values["before"], values["suppressed"]),
            "amplify": ratio_of_means(values["before"], values["amplified"]),
        }
    return result
