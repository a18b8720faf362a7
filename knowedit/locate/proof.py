"""Do the located neurons make the answer? Suppress and amplify them on held-out prompts, beside matched random ones.

For every held-out prompt the target's probability is measured with the neurons at the read position multiplied by
0 and by 2. The controls are random sets with the same number of neurons in each layer: once matched by layer only,
once by layer *and* activation (same stratum of |activation| in its layer, averaged over the prompts). The match is
reported, since a strong neuron has few equals.

Under the hypothesis that the located neurons are nothing special among those of their strata, they are one more
draw, so p = (1 + draws at least as extreme) / (1 + draws). Over several facts the draws are taken fact by fact and
the ratio of means (Dai et al. 2022) of each round of draws is compared with that of the located sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..models.adapter import Model
from ..prompts import Query
from ..statistics import Estimate, estimate, log_odds, mean_of_ratios, monte_carlo_p, ratio_of_means
from .scaled_answers import ScaledAnswers

SUPPRESS, AMPLIFY = 0.0, 2.0
LAYER_DRAWS = 50  # draws matched by layer only, which no p-value rests on
LEVEL, MATTERS = 0.05, 0.1  # significant: p at most LEVEL, and a change of at least MATTERS of the probability
FIRST_STRATUM = 32  # neurons; each further stratum, of weaker ones, is twice as large


@dataclass(frozen=True)
class Effect:
    """Raw measurements for one fact: probabilities of the target.

    `before`, `suppressed`, `amplified` (prompts,); each control (draws,), averaged over prompts. `match`: mean
    |activation| of the located neurons, and of the draws matched by layer and by activation. `specificity`: before,
    suppressed and amplified probabilities of other facts' targets, by sort of control. `recalled`: share of prompts
    whose target is the model's first choice.
    """

    before: np.ndarray
    suppressed: np.ndarray
    amplified: np.ndarray
    control: dict[str, dict[str, np.ndarray]]
    match: dict[str, float]
    neurons: int
    specificity: dict[str, dict[str, np.ndarray]]
    recalled: float

    def as_dict(self) -> dict:
        """For JSON; `from_dict` reads it back."""
        return _lists(asdict(self))

    @classmethod
    def from_dict(cls, record: dict) -> Effect:
        keep = ("match", "neurons", "recalled")
        return cls(**{name: value if name in keep else _arrays(value) for name, value in record.items()})


def _lists(value):
    if isinstance(value, dict):
        return {name: _lists(item) for name, item in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _arrays(value):
    return {n: _arrays(v) for n, v in value.items()} if isinstance(value, dict) else np.array(value)


@dataclass(frozen=True)
class Proof:
    """What suppressing and amplifying located neurons does, over one fact's prompts or over several facts.

    - `unit`: what intervals are over, `"prompts"` or `"facts"`; `heldout`: whether no prompt was used to locate.
    - `probability`: mean target probability before.
    - `suppress`, `amplify`: ratio of means; `*_ratios`: mean of ratios; `*_log_odds`: mean change of log-odds.
    - `control_*`: the same for random sets matched by layer and activation, `layer_control_*` by layer only.
    - `p_suppress`, `p_amplify`: one-sided, against the draws matched by layer and activation.
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
    p_suppress: float
    p_amplify: float
    significant: dict[str, bool]
    match: dict[str, float]
    specificity: dict[str, dict[str, Estimate]]

    def as_dict(self) -> dict:
        return asdict(self)


def prove(
    model: Model,
    neurons: Iterable[tuple[int, int]],
    prompts: Sequence[Query],
    *,
    draws: int = 200,
    seed: int = 0,
    heldout: bool = True,
    others: dict[str, Sequence[ScaledAnswers]] | None = None,
) -> Proof:
    """Measure what `neurons` do to the target on `prompts`, which should not have located them (else `heldout=False`).

    `others`, by name, are other facts whose targets should stay as they are. Raises `InputError` without neurons.
    """
    effect = measure(model, neurons, prompts, draws=draws, seed=seed, others=others)
    return summarise([effect], heldout=heldout)


def measure(
    model: Model,
    neurons: Iterable[tuple[int, int]],
    prompts: Sequence[Query],
    *,
    draws: int = 200,
    seed: int = 0,
    others: dict[str, Sequence[ScaledAnswers]] | None = None,
) -> Effect:
    """The raw effect of `neurons` on the target of `prompts`, with controls."""
    located = [model.check_neuron(*site) for site in neurons]
    if not located:
        raise InputError("there are no neurons to prove; locate some first")
    if not prompts:
        raise InputError("a proof needs at least one prompt, best one that was not used to locate")
    if draws < 1:
        raise InputError(f"a proof needs random draws to compare with, {draws!r} were asked for; give 200 or more")
    responses = [ScaledAnswers(model, query) for query in prompts]
    activations = sum(r.activations.abs() for r in responses) / len(responses)
    rng = np.random.default_rng(seed)
    by_activation = draw(located, activations, draws, rng, strata=True)
    by_layer = draw(located, activations, min(draws, LAYER_DRAWS), rng, strata=False)
    changed = {
        factor: _scaled(responses, [located, *by_activation, *by_layer], factor) for factor in (SUPPRESS, AMPLIFY)
    }
    cut = 1 + draws
    drawn = {factor: values.mean(0) for factor, values in changed.items()}
    return Effect(
        before=np.array([r.probability for r in responses]),
        suppressed=changed[SUPPRESS][:, 0],
        amplified=changed[AMPLIFY][:, 0],
        control={
            "activation": {"suppressed": drawn[SUPPRESS][1:cut], "amplified": drawn[AMPLIFY][1:cut]},
            "layer": {"suppressed": drawn[SUPPRESS][cut:], "amplified": drawn[AMPLIFY][cut:]},
        },
        match={
            "located": _strength(activations, [located]),
            "drawn": _strength(activations, by_activation),
            "drawn_by_layer": _strength(activations, by_layer),
        },
        neurons=len(located),
        specificity={name: _specificity(found, located) for name, found in (others or {}).items() if found},
        recalled=float(np.mean([r.known for r in responses])),
    )


def summarise(effects: Sequence[Effect], *, heldout: bool = True) -> Proof:
    """The proof over several facts, or over the prompts of a single one."""
    if not effects:
        raise InputError("there is nothing to summarise: no fact had neurons")
    one = len(effects) == 1

    def units(pick) -> np.ndarray:  # by fact, or by prompt where there is one fact
        return pick(effects[0]) if one else np.array([pick(e).mean() for e in effects])

    before, suppressed, amplified = (units(pick) for pick in (_before, _suppressed, _amplified))
    controls = {
        (kind, what): _round_changes(effects, kind, what)
        for kind in ("activation", "layer")
        for what in ("suppressed", "amplified")
    }
    fall, rise = _change(before, suppressed), _change(before, amplified)
    p_suppress = monte_carlo_p(fall, controls["activation", "suppressed"], "less")
    p_amplify = monte_carlo_p(rise, controls["activation", "amplified"], "greater")
    recalled = float(np.mean([e.recalled for e in effects]))
    return Proof(
        unit="prompts" if one else "facts",
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
        suppress_log_odds=estimate(np.mean, (units(lambda e: log_odds(e.suppressed) - log_odds(e.before)),)),
        amplify_log_odds=estimate(np.mean, (units(lambda e: log_odds(e.amplified) - log_odds(e.before)),)),
        control_suppress=estimate(np.mean, (controls["activation", "suppressed"],)),
        control_amplify=estimate(np.mean, (controls["activation", "amplified"],)),
        layer_control_suppress=estimate(np.mean, (controls["layer", "suppressed"],)),
        layer_control_amplify=estimate(np.mean, (controls["layer", "amplified"],)),
        p_suppress=p_suppress,
        p_amplify=p_amplify,
        significant={
            "suppress": recalled > 0 and p_suppress <= LEVEL and fall <= -MATTERS,
            "amplify": recalled > 0 and p_amplify <= LEVEL and rise >= MATTERS,
        },
        match={name: float(np.mean([e.match[name] for e in effects])) for name in effects[0].match},
        specificity=_specificities(effects),
    )


def strata(activations: Tensor) -> np.ndarray:
    """The stratum of every neuron of a layer (n_neurons,), by rank of |activation|: the first 32, 64, 128, …"""
    rank = np.empty(len(activations), dtype=int)
    rank[np.argsort(-activations.abs().numpy(), kind="stable")] = np.arange(len(activations))
    return np.floor(np.log2(rank / FIRST_STRATUM + 1)).astype(int)


def draw(
    located: Sequence[tuple[int, int]], activations: Tensor, draws: int, rng: np.random.Generator, *, strata: bool
) -> list[list[tuple[int, int]]]:
    """Random sets with as many neurons in each layer (and stratum) as `located`, none of them located."""
    cells: dict[tuple[int, int], list[int]] = {}
    labels = {layer: _labels(activations[layer], strata) for layer, _ in located}
    for layer, index in located:
        cells.setdefault((layer, labels[layer][index]), []).append(index)
    sets: list[list[tuple[int, int]]] = [[] for _ in range(draws)]
    for (layer, label), indices in sorted(cells.items()):
        choices = np.setdiff1d(np.flatnonzero(labels[layer] == label), indices)
        if len(choices) < len(indices):  # a set that fills its stratum is matched from the layer
            choices = np.setdiff1d(np.arange(len(labels[layer])), indices)
        if len(choices) < len(indices):
            raise InputError(f"{len(indices)} neurons of layer {layer} leave too few others to draw from")
        for chosen in sets:
            chosen.extend((layer, int(i)) for i in rng.choice(choices, len(indices), replace=False))
    return sets


def _labels(activations: Tensor, wanted: bool) -> np.ndarray:
    return strata(activations) if wanted else np.zeros(len(activations), dtype=int)


def _scaled(responses: Sequence[ScaledAnswers], sets, factor: float) -> np.ndarray:
    return np.stack([response.scaled(sets, factor) for response in responses])


def _strength(activations: Tensor, sets) -> float:
    return float(np.mean([[activations[site].item() for site in neurons] for neurons in sets]))


def _specificity(responses: Sequence[ScaledAnswers], located) -> dict[str, np.ndarray]:
    return {
        "before": np.array([r.probability for r in responses]),
        "suppressed": _scaled(responses, [located], SUPPRESS)[:, 0],
        "amplified": _scaled(responses, [located], AMPLIFY)[:, 0],
    }


def _before(effect: Effect) -> np.ndarray:
    return effect.before


def _suppressed(effect: Effect) -> np.ndarray:
    return effect.suppressed


def _amplified(effect: Effect) -> np.ndarray:
    return effect.amplified


def _change(before: np.ndarray, after: np.ndarray) -> float:
    return float((after.mean() - before.mean()) / before.mean())


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
        mine = [e.specificity[name] for e in effects if name in e.specificity]
        arrays = mine[0] if len(mine) == 1 else {k: np.array([m[k].mean() for m in mine]) for k in mine[0]}
        result[name] = {
            "suppress": ratio_of_means(arrays["before"], arrays["suppressed"]),
            "amplify": ratio_of_means(arrays["before"], arrays["amplified"]),
        }
    return result
