"""What located neurons do: the target's probability on held-out prompts, with them taken away, doubled, and alone.

Taken away, they tell whether the answer needs them; alone, with all other neurons of their layers taken away at the
same place, whether they are enough for it (*sufficient*). What "away" means is said in `ablation.py`; doubled means as
far again from there.

Beside them stand random sets (`draws.py`), other facts whose targets should stay as they are, and other sets that are
to be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...models.adapter import Model
from ...models.passes.scaled_answers import ScaledAnswers
from ...writing.mentions import mention
from ..neurons import NeuronSet
from .ablation import ablation_values
from .draws import Sites, draw
from .neuron_kinds import ControlPool

CHANGED = ("suppressed", "amplified")
LAYER_DRAWS = 50  # draws matched by layer only, which no p-value rests on
ALONE_DRAWS = 20  # draws whose sufficiency is measured


@dataclass(frozen=True)
class Effect:
    """Raw measurements for one fact: probabilities of the target.

    `before`, `suppressed`, `amplified` (prompts,); each control (draws,), averaged over prompts. `match`: mean
    |activation| of the located neurons, and of the draws matched by layer and by activation. `specificity`: before,
    suppressed and amplified probabilities of other facts' targets, by sort of control, always by zero. `alone`:
    (prompts,) probabilities with the neurons and with none of the layers' (`located`, `none`), and of draws matched by
    activation, averaged over prompts (`drawn`). `recalled`: share of prompts whose target is the model's first choice.
    `rivals`: by name, suppressed and amplified (prompts,) probabilities with other sets of neurons.
    """

    before: np.ndarray
    suppressed: np.ndarray
    amplified: np.ndarray
    control: dict[str, dict[str, np.ndarray]]
    match: dict[str, float]
    neurons: int
    specificity: dict[str, dict[str, np.ndarray]]
    recalled: float
    alone: dict[str, np.ndarray]
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


def located_answers(model: Model, located: NeuronSet, prompts: Sequence[str], pool: ControlPool) -> ScaledAnswers:
    """The target of located neurons after each of `prompts`, with the ablation that they were located with."""
    queries, baselines, ablation = [], [], located.config.get("ablation", "zero")
    chat, subject = located.config.get("chat", False), located.subject
    position = located.position
    for prompt in prompts:  # a rephrasing may name the subject in other words
        place = mention(prompt, subject) if subject else None
        about = subject if place and place.whole else None
        queries.append(model.query(prompt, located.target, about, chat=chat, separator=located.separator))
        baselines.append(ablation_values(ablation, pool, prompt, located, chat=chat, position=position))
    return ScaledAnswers(model, queries, baselines, position)


def measure_located(
    model: Model,
    located: NeuronSet,
    answers: ScaledAnswers,
    *,
    pool: ControlPool,
    draws: int = 200,
    seed: int = 0,
    rivals: Mapping[str, Sites] | None = None,
) -> Effect:
    """The raw effect of located neurons on their target (`located_answers`), and on the known facts of `pool`.

    A causal selection passes over neurons that any answer needs, and so do the sets that it is compared with.
    """
    about, position = (located.subject, located.target, located.relation), located.position
    controls = pool.controls(*about, sorts=("general", "relation"), position=position)
    others = {"same_relation": controls.relation, "other_relations": controls.general}
    left_out = pool.general_neurons(*about, position) if located.config.get("select") == "causal" else ()
    return measure(model, located, answers, draws=draws, seed=seed, others=others, rivals=rivals, left_out=left_out)


def measure(
    model: Model,
    neurons: Iterable[tuple[int, int]],
    answers: ScaledAnswers,
    *,
    draws: int = 200,
    seed: int = 0,
    others: Mapping[str, ScaledAnswers] | None = None,
    rivals: Mapping[str, Sites] | None = None,
    left_out: Collection[tuple[int, int]] = (),
) -> Effect:
    """The raw effect of `neurons` on targets, with controls.

    `answers` are of held-out prompts and say what neurons are set to. `rivals`, by name, are other sets of neurons to
    measure beside them. Random sets hold none of the neurons that are `left_out`.
    """
    located = [model.check_neuron(*site) for site in neurons]
    if not located:
        raise InputError("there are no neurons to prove; locate some first")
    if not len(answers):
        raise InputError("a proof needs at least one prompt, best one that was not used to locate")
    if draws < 1:
        raise InputError(f"draws is {draws!r}, expected a number of random sets to compare with, such as 200")
    activations = answers.activations.abs().mean(0)
    rng = np.random.default_rng(seed)
    by_activation = draw(located, activations, draws, rng, by_activation=True, left_out=left_out)
    by_layer = draw(located, activations, min(draws, LAYER_DRAWS), rng, by_activation=False, left_out=left_out)
    rivals = rivals or {}
    sets = [located, *by_activation, *by_layer, *map(list, rivals.values())]
    scaled = _scaled(answers, sets)
    activation_sets, layer_sets = slice(1, 1 + draws), slice(1 + draws, len(sets) - len(rivals))
    return Effect(
        before=answers.probability,
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
        specificity={name: _specificity(facts, located) for name, facts in (others or {}).items() if len(facts)},
        recalled=float(answers.known.mean()),
        alone=_alone(answers, located, by_activation[:ALONE_DRAWS]),
        rivals={
            name: {what: values[:, i] for what, values in scaled.items()}
            for i, name in enumerate(rivals, len(sets) - len(rivals))
        },
    )


def _alone(answers: ScaledAnswers, located: Sites, drawn: Sequence[Sites]) -> dict[str, np.ndarray]:
    """Probabilities with no neurons of the layers but `located`, none, or each of the drawn sets."""
    layers = sorted({layer for layer, _ in located})
    masks = torch.zeros(2 + len(drawn), len(layers), answers.model.n_neurons, dtype=torch.bool)
    for mask, sites in zip(masks, (located, [], *drawn), strict=True):
        for layer, index in sites:
            mask[layers.index(layer), index] = True
    values = answers.kept(masks, layers)
    return {"located": values[:, 0], "none": values[:, 1], "drawn": values[:, 2:].mean(0)}


def _scaled(answers: ScaledAnswers, sets: Sequence[Sites]) -> dict[str, np.ndarray]:
    """The probabilities with each of the sets suppressed and amplified, (prompts, sets) each."""
    return dict(zip(CHANGED, answers.suppressed_and_amplified(sets), strict=True))


def _strength(activations: Tensor, sets: Sequence[Sites]) -> float:
    return float(np.mean([[activations[site].item() for site in neurons] for neurons in sets]))


def _specificity(answers: ScaledAnswers, located: Sites) -> dict[str, np.ndarray]:
    return {
        "before": answers.probability,
        **{what: values[:, 0] for what, values in _scaled(answers, [located]).items()},
    }
