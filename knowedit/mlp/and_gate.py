"""The AND-gate test: does a neuron answer to a whole subject, and to neither of its parts?

A superposed feature such as "Eiffel Tower" can be read by a neuron whose nonlinearity works as an AND: it is on only
where both parts are there. A fact's prompt is asked five times, with the subject whole, with its first part or its
last part alone, and with each part joined to the other part of another subject. For the strongest neurons of a layer
at the lookup position, with the whole subject, by |a|·‖v‖ (activation times length of the value vector):

    on(x)    a(x) / a(whole) ≥ 1/2
    and      neither part alone is on        first, last    only that part is        either    both are, each alone

`and_swapped` is the share of neurons that are AND gates and stay off for both swapped subjects too: then it is this
pair and not any longer subject that they answer to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..display.result import Record, Table
from ..errors import InputError
from ..facts import Fact, fill
from ..models.adapter import Model
from ..models.expansion import Expansion
from ..progress import Progress, silent
from ..statistics import Estimate, mean
from ..writing.counts import number_of
from .activations import collect

KINDS = ("and", "first", "last", "either")
STRONGEST = 32  # neurons of a layer
ON = 0.5
_VARIANTS = 5
_NAMES = {
    "and": "need both parts",
    "first": "the first part is enough",
    "last": "the last part is enough",
    "either": "either part is enough",
}


@dataclass(frozen=True)
class Gates(Record):
    """By layer, the mean share of the strongest neurons of each kind, with intervals over facts.

    - `facts`: how many have a subject of two words or more; `skipped`: how many have not.
    - `shares`: kind → one estimate a layer; they add up to 1. `and_swapped`: one estimate a layer, not measured where
      no other subject is there to swap with.
    - `examples`: the AND gates with the strongest activation: (subject, layer, index, whole, first alone, last alone).
    """

    facts: int
    skipped: int
    strongest: int
    shares: dict[str, tuple[Estimate, ...]]
    and_swapped: tuple[Estimate, ...]
    examples: tuple[tuple[str, int, int, float, float, float], ...]

    def table(self, layer: int) -> Iterator[str | Table]:
        """The kinds of one layer's neurons, and the strongest AND gates of all layers."""
        neurons = f"the {self.strongest} strongest neurons of layer {layer}"
        yield f"AND gates: {neurons}, {number_of(self.facts, 'subject')} of several words"
        rows = [(_NAMES[kind], shares[layer].text("share")) for kind, shares in self.shares.items()]
        swapped = self.and_swapped[layer].text("share")
        yield Table(("", "share"), [*rows, ("need both parts of this subject", swapped)])
        examples = [
            (subject, f"{at}/{index}", *(f"{value:.2f}" for value in values))
            for subject, at, index, *values in self.examples[:5]
        ]
        yield Table(("strongest AND gates", "neuron", "whole", "first alone", "last alone"), examples)


def parts(subject: str | None) -> tuple[str, str] | None:
    """A subject's first words and its last one; None for a single word, or none."""
    first, _, last = (subject or "").strip().rpartition(" ")
    return (first.strip(), last) if first.strip() else None


def and_gates(
    model: Model,
    facts: Sequence[Fact],
    others: Sequence[Fact] = (),
    *,
    strongest: int = STRONGEST,
    seed: int = 0,
    progress: Progress = silent,
) -> Gates:
    """Test the neurons of every layer on the subjects of `facts`; parts are swapped with those of `others` too.

    Raises `InputError` where no subject has two words. `progress` counts prompts.
    """
    split = [(fact, words) for fact in facts if (words := parts(fact.subject))]
    if not split:
        raise InputError("no subject has two words or more, so none has parts; the AND-gate test needs one that has")
    rng = np.random.default_rng(seed)
    pool = [(fact, words) for fact in (*facts, *others) if (words := parts(fact.subject))]
    prompts, swapped = [], []
    for fact, (first, last) in split:
        apart = [(other, words) for other, words in pool if not {*words} & {first, last}]
        strangers = [words for other, words in apart if other.relation == fact.relation] or [
            words for _, words in apart
        ]
        swapped.append(bool(strangers))
        drawn = [strangers[i] for i in rng.integers(len(strangers), size=2)] if strangers else [(first, last)] * 2
        for subject in (fact.subject, first, last, f"{first} {drawn[0][1]}", f"{drawn[1][0]} {last}"):
            prompts.append(model.encode(fill(fact.template, subject), subject))
    # only the neurons are wanted, so no layer's expansion has to be known
    plain = {layer: Expansion(model.layout.down, None, torch.nn.Identity()) for layer in range(model.n_layers)}
    values = collect(model, prompts, lambda p: [p.lookup], plain, ("neurons",), progress)
    shares: dict[str, list[Estimate]] = {kind: [] for kind in KINDS}
    and_swapped, examples = [], []
    for layer in range(model.n_layers):
        neurons = values[layer]["neurons"].reshape(len(split), _VARIANTS, -1)
        norms = model.down_weight(layer).detach().float().norm(dim=0).cpu()
        top, kinds, both = _kinds(neurons, norms, min(strongest, model.n_neurons))
        for kind in KINDS:
            shares[kind].append(mean([float((row == kind).mean()) for row in kinds]))
        and_swapped.append(mean([float(row.mean()) for row, there in zip(both, swapped, strict=True) if there]))
        examples += [_example(split[i][0], layer, row, neurons[i]) for i, row in _strongest_and(top, kinds)]
    examples.sort(key=lambda e: -abs(e[3]) * float(model.down_weight(e[1])[:, e[2]].detach().float().norm()))
    return Gates(
        facts=len(split),
        skipped=len(facts) - len(split),
        strongest=min(strongest, model.n_neurons),
        shares={kind: tuple(estimates) for kind, estimates in shares.items()},
        and_swapped=tuple(and_swapped),
        examples=tuple(examples[:10]),
    )


def _kinds(neurons: Tensor, norms: Tensor, n: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """The strongest neurons of each fact (facts, n), their kinds, and whether they are AND gates for swapped parts too.

    `neurons` are (facts, variants, n_neurons): whole, first, last, first with another last, another first with last.
    """
    top = (neurons[:, 0].abs() * norms).topk(n, -1).indices
    picked = neurons.gather(2, top[:, None].expand(-1, _VARIANTS, -1)).double()
    whole = picked[:, :1]
    on = (picked / torch.where(whole == 0, 1.0, whole) >= ON).numpy()
    first, last = on[:, 1], on[:, 2]
    kinds = np.select([first & last, first, last], ["either", "first", "last"], "and")
    return top, kinds, (kinds == "and") & ~on[:, 3] & ~on[:, 4]


def _strongest_and(top: Tensor, kinds: np.ndarray) -> list[tuple[int, int]]:
    """(fact, index) of each fact's strongest AND gate in a layer."""
    gates = []
    for i, row in enumerate(kinds):
        places = np.flatnonzero(row == "and")
        if len(places):
            gates.append((i, int(top[i, places[0]])))
    return gates


def _example(fact: Fact, layer: int, index: int, neurons: Tensor) -> tuple[str, int, int, float, float, float]:
    whole, first, last = neurons[:3, index].tolist()
    return fact.subject, layer, index, whole, first, last
