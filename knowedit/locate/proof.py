"""Do the located neurons make the answer? Suppress and amplify them on held-out prompts, beside matched random ones.

For every held-out prompt the target's probability is measured with the neurons at the read position multiplied by
0 and by 2. The controls are random sets with the same number of neurons in each layer: one kind is matched by layer
only, the other by layer *and* activation (same stratum of |activation| in its layer, averaged over the prompts). The
match is reported, since a strong neuron has few equals.

Under the hypothesis that the located neurons are nothing special among those of their strata, they are one more
draw, so p = (1 + draws at least as extreme) / (1 + draws). Over several facts the draws are taken fact by fact and
the ratio of means (Dai et al. 2022) of each round of draws is compared with that of the located sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from torch import Tensor

from ..errors import InputError
from ..models.adapter import Model
from ..models.passes.scaled_answers import ScaledAnswers
from ..prompts import Query
from ..statistics import Estimate, estimate, log_odds, mean_of_ratios, monte_carlo_p, ratio_of_means
from ..writing.mentions import mention
from .neuron_kinds import ControlPool
from .neurons import NeuronSet

FACTORS = {"suppressed": 0.0, "amplified": 2.0}
LAYER_DRAWS = 50  # draws matched by layer only, which no p-value rests on
LEVEL, MATTERS = 0.05, 0.1  # significant: p at most LEVEL, and a change of at least MATTERS of the probability
FIRST_STRATUM = 32  # neurons; each further stratum, of weaker ones, is twice as large

Sites = Sequence[tuple[int, int]]  # (layer, index)


@dataclass(frozen=True)
class Effect:
    """Raw measurements for one fact: probabilities of the target.

    `before`, `suppressed`, `amplified` (prompts,); each control (draws,), averaged over prompts. `match`: mean
    |activation| of the located neurons, and of the draws matched by layer and by activation. `specificity`: before,
    suppressed and amplified probabilities of other facts' targets, by sort of control. `recalled`: share of prompts
    whose target is the model's first choice. `rivals`: by name, suppressed and amplified (prompts,) probabilities with
    other sets of neurons.
    """

    before: np.ndarray
    suppressed: np.ndarray
    amplified: np.ndarray
    control: dict[str, dict[str, np.ndarray]]
    match: dict[str, float]
    neurons: int
    specificity: dict[str, dict[str, np.ndarray]]
    recalled: float
    rivals: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

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
    effect = measure_located(model, located, heldout or [located.prompt], pool=pool, draws=draws, seed=seed)
    return summarise([effect], heldout=bool(heldout))


def measure_located(
    model: Model,
    located: NeuronSet,
    prompts: Sequence[str],
    *,
    pool: ControlPool,
    draws: int = 200,
    seed: int = 0,
    rivals: Mapping[str, Sites] | None = None,
) -> Effect:
    """The raw effect of located neurons on their target after `prompts`, and on the known facts of `pool`."""
    chat, subject = located.config.get("chat", False), located.subject
    queries = []
    for prompt in prompts:  # a rephrasing may name the subject in other words
        place = mention(prompt, subject) if subject else None
        about = subject if place and place.whole else None
        queries.append(model.query(prompt, located.target, about, chat=chat, separator=located.separator))
    controls = pool.controls(subject, located.target, located.relation, sorts=("general", "relation"))
    others = {"same_relation": controls.relation, "other_relations": controls.general}
    return measure(model, located, queries, draws=draws, seed=seed, others=others, rivals=rivals)


def prove(
    model: Model,
    neurons: Iterable[tuple[int, int]],
    prompts: Sequence[Query],
    *,
    draws: int = 200,
    seed: int = 0,
    heldout: bool = True,
    others: Mapping[str, Sequence[ScaledAnswers]] | None = None,
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
    others: Mapping[str, Sequence[ScaledAnswers]] | None = None,
    rivals: Mapping[str, Sites] | None = None,
) -> Effect:
    """The raw effect of `neurons` on the target of `prompts`, with controls.

    `rivals`, by name, are other sets of neurons to measure beside them.
    """
    located = [model.check_neuron(*site) for site in neurons]
    if not located:
        raise InputError("there are no neurons to prove; locate some first")
    if not prompts:
        raise InputError("a proof needs at least one prompt, best one that was not used to locate")
    if draws < 1:
        raise InputError(f"draws is {draws!r}, expected a number of random sets to compare with, such as 200")
    answers = [ScaledAnswers(model, query) for query in prompts]
    activations = sum(prompt.activations.abs() for prompt in answers) / len(answers)
    rng = np.random.default_rng(seed)
    by_activation = draw(located, activations, draws, rng, by_activation=True)
    by_layer = draw(located, activations, min(draws, LAYER_DRAWS), rng, by_activation=False)
    rivals = rivals or {}
    sets = [located, *by_activation, *by_layer, *map(list, rivals.values())]
    scaled = {what: _scaled(answers, sets, factor) for what, factor in FACTORS.items()}  # (prompts, sets)
    activation_sets, layer_sets = slice(1, 1 + draws), slice(1 + draws, len(sets) - len(rivals))
    return Effect(
        before=np.array([prompt.probability for prompt in answers]),
        suppressed=scaled["suppressed"][:, 0],
        amplified=scaled["amplified"][:, 0],
        control={
            kind: {what: values.mean(0)[chosen] for what, values in scaled.items()}
            for kind, chosen in (("activation", activation_sets), ("layer", layer_sets))
        },
        match={
            "located": _strength(activations, [located]),
            "drawn": _strength(activations, by_activation),
            "drawn_by_layer": _strength(activations, by_layer),
        },
        neurons=len(located),
        specificity={name: _specificity(facts, located) for name, facts in (others or {}).items() if facts},
        recalled=float(np.mean([prompt.known for prompt in answers])),
        rivals={
            name: {what: values[:, i] for what, values in scaled.items()}
            for i, name in enumerate(rivals, len(sets) - len(rivals))
        },
    )


def summarise(effects: Sequence[Effect], *, heldout: bool = True) -> Proof:
    """The proof over several facts, or over the prompts of a single one."""
    if not effects:
        raise InputError("there is nothing to summarise: no fact had neurons")
    single = len(effects) == 1

    def units(what: str) -> np.ndarray:  # (facts,), or (prompts,) of a single fact
        return getattr(effects[0], what) if single else np.array([getattr(e, what).mean() for e in effects])

    before, suppressed, amplified = (units(what) for what in ("before", "suppressed", "amplified"))
    controls = {
        (kind, what): _round_changes(effects, kind, what) for kind in ("activation", "layer") for what in FACTORS
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
    located: Sites, activations: Tensor, draws: int, rng: np.random.Generator, *, by_activation: bool
) -> list[list[tuple[int, int]]]:
    """Random sets with as many neurons in each layer (and stratum) as `located`, none of them located."""
    labels = {
        layer: strata(activations[layer]) if by_activation else np.zeros(len(activations[layer]), dtype=int)
        for layer, _ in located
    }
    cells: dict[tuple[int, int], list[int]] = {}
    for layer, index in located:
        cells.setdefault((layer, labels[layer][index]), []).append(index)
    sets: list[list[tuple[int, int]]] = [[] for _ in range(draws)]
    for (layer, label), indices in sorted(cells.items()):
        choices = np.setdiff1d(np.flatnonzero(labels[layer] == label), indices)
        if len(choices) < len(indices):  # a set that fills its stratum is matched from the layer
            choices = np.setdiff1d(np.arange(len(labels[layer])), indices)
        if len(choices) < len(indices):
            raise InputError(f"{len(indices)} neurons of layer {layer} leave too few others to draw from")
        for neurons in sets:
            neurons.extend((layer, int(i)) for i in rng.choice(choices, len(indices), replace=False))
    return sets


def _scaled(answers: Sequence[ScaledAnswers], sets: Sequence[Sites], factor: float) -> np.ndarray:
    return np.stack([prompt.scaled(sets, factor) for prompt in answers])


def _strength(activations: Tensor, sets: Sequence[Sites]) -> float:
    return float(np.mean([[activations[site].item() for site in neurons] for neurons in sets]))


def _specificity(answers: Sequence[ScaledAnswers], located: Sites) -> dict[str, np.ndarray]:
    return {
        "before": np.array([fact.probability for fact in answers]),
        **{what: _scaled(answers, [located], factor)[:, 0] for what, factor in FACTORS.items()},
    }


def _change(before: np.ndarray, after: np.ndarray) -> float:
    return float((after.mean() - before.mean()) / before.mean())


def _log_odds_change(effects: Sequence[Effect], what: str) -> Estimate:
    """The mean change of log-odds over facts, or over prompts where there is one fact."""
    changes = [log_odds(getattr(e, what)) - log_odds(e.before) for e in effects]
    return estimate(np.mean, (changes[0] if len(effects) == 1 else np.array([change.mean() for change in changes]),))


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
