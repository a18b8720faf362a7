"""Knowledge-neuron surgery: rewrite, or erase, the value slots of located neurons (Dai et al. 2022, section 5).

The value slot of neuron (l, i) is column i of W_down in layer l, written w_i. With t the word embedding of a target,

    update   w_i ← w_i − λ1 · (‖w_i‖/‖t_old‖) · t_old + λ2 · (‖w_i‖/‖t_new‖) · t_new       (λ1 = 1, λ2 = 8)
    erase    w_i ← 0

The scaling by norms is in the authors' code. The neurons that more than a tenth of the relation's other facts share are
left out of an update, as in the paper (`relation_neurons.py` locates them). The embedding is a row of the unembedding
(the same as BERT's, which ties them), for a target of several tokens their mean.

A neuron adds its activation a_i times w_i to the residual stream. Dai et al.'s have a GELU and are positive where they
fire; those of a gated MLP are as often negative, and the update would then push towards the old target. So here the
two embeddings enter with the sign of a_i; `signed=False` is the paper to the letter.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from ...errors import InputError, ModelError
from ...facts import Fact
from ...locate.config import LocateConfig
from ...locate.locate import locate_fact
from ...locate.neurons import NeuronSet
from ...locate.proof.neuron_kinds import ControlPool
from ...locate.rankings import scoring_passes
from ...models.adapter import Model
from ...models.passes.replay import record
from ...progress import counted
from ...sources import builtin_facts
from ..delta import LowRank
from ..edit import Edit, check_request, make_edit
from .method import Bars, Editor, Method
from .relation_neurons import RelationNeurons, relation_of

Sites = Iterable[tuple[int, int]]  # (layer, index), as a NeuronSet gives them


REFINED = LocateConfig(select="refined", prompts=None, adjust=True, kinds=False)  # as Dai et al. choose neurons


@dataclass(frozen=True)
class KnowledgeNeuronsConfig:
    """How a fact is rewritten.

    - `lambda1`, `lambda2`: how much of the old target's embedding goes, and of the new one's comes.
    - `signed`: turn the change of a slot round where its neuron's activation is negative (not in the paper).
    - `shared`: leave out neurons that more than this share of the relation's other facts have too; 1 keeps them all.
    - `others`: how many of the relation's other facts that is a share of.
    - `locate`: how neurons are found; by default refined over the paraphrases to 2 to 5, as Dai et al. do.
    """

    lambda1: float = 1.0
    lambda2: float = 8.0
    signed: bool = True
    shared: float = 0.1
    others: int = 10
    locate: LocateConfig = REFINED

    def __post_init__(self):
        for name in ("lambda1", "lambda2"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected 0 or more")
        if not 0 <= self.shared <= 1:
            raise InputError(f"shared is {self.shared!r}, expected a fraction from 0 to 1")
        if not isinstance(self.others, int) or self.others < 1:
            raise InputError(f"others are {self.others!r}, expected a number of facts from 1 on")

    def as_dict(self) -> dict:
        return {
            "lambda1": self.lambda1,
            "lambda2": self.lambda2,
            "signed": self.signed,
            "shared": self.shared,
            "others": self.others,
            "locate": self.locate.as_dict(),
        }


@dataclass(frozen=True)
class EraseConfig:
    """How facts are erased: the `most` commonest of their neurons, each fact's located as `locate` says."""

    most: int = 20
    locate: LocateConfig = REFINED

    def __post_init__(self):
        if not isinstance(self.most, int) or self.most < 1:
            raise InputError(f"at most {self.most!r} neurons were to be erased, expected 1 or more")

    def as_dict(self) -> dict:
        return {"most": self.most, "locate": self.locate.as_dict()}


def knowledge_neurons(
    model: Model,
    fact: Fact,
    config: KnowledgeNeuronsConfig | None = None,
    *,
    neurons: Sites | None = None,
    others: Sequence[Sites] | None = None,
    pool: ControlPool | None = None,
) -> Edit:
    """The edit that puts the new target's embedding into the value slots of the fact's knowledge neurons.

    `neurons`, a `NeuronSet` or pairs of (layer, index), are rewritten where given; otherwise the fact is located with
    its template and paraphrases, and what more than `config.shared` of `others` hold too is left out: the neurons of
    other facts of the relation, by default of built-in ones. `pool` is `locate_fact`'s. The change is of low rank, a
    column for each neuron; the edit's notes hold `neurons`, how many more were `shared` and so left out, and the
    number of `others` that they were compared with.

    Raises `InputError` for a fact without a usable `target_new` and where no neuron is found or left.
    """
    config = config or KnowledgeNeuronsConfig()
    target_new = check_request(fact)
    embeddings = [_embedding(model, fact, target) for target in (fact.target, target_new)]
    located: NeuronSet | list[tuple[int, int]]
    sites: Sequence[tuple[int, int]] | NeuronSet
    if neurons is None:
        located = locate_fact(model, fact, config.locate, pool=pool)
        if config.shared == 1:
            others = ()
        elif others is None:
            others = RelationNeurons(model, builtin_facts(), config.locate, config.others).of_others(fact)
        sites = _own(located, others, config.shared)
    else:
        located, others = _checked(model, neurons), ()
        sites = located
    if not sites:
        raise InputError(f"no neuron to rewrite for {fact.prompt!r}: {_why(located)}")
    old, new = (embedding / embedding.norm() for embedding in embeddings)
    direction = config.lambda2 * new - config.lambda1 * old
    signs = _signs(model, fact) if config.signed else None
    deltas = {}
    for layer, indices in _by_layer(sites).items():
        scale = _slots(model, layer, indices).norm(dim=0)
        if signs is not None:
            scale = scale * signs[layer, indices]
        deltas[layer] = _columns(model, torch.outer(direction, scale), indices)
    named = {} if neurons is None else {"neurons": _listed(sites)}
    return make_edit(
        model,
        deltas,
        method="knowledge_neurons",
        config={**config.as_dict(), **named},
        facts=(fact,),
        notes={"neurons": _listed(sites), "shared": len(located) - len(sites), "others": len(others)},
    )


def erase(
    model: Model,
    facts: Fact | Sequence[Fact],
    config: EraseConfig | None = None,
    *,
    neurons: Sites | None = None,
    pool: ControlPool | None = None,
) -> Edit:
    """The edit that empties the value slots of the neurons that one fact, or a relation's facts, have most in common.

    Of neurons that equally many facts have the higher-scoring come first. `neurons` are all erased where given;
    `target_new` plays no part. The edit's notes hold `neurons`, and `facts_with` each, None where neurons were given.

    Raises `InputError` without facts and where no neuron is found for any of them.
    """
    config = config or EraseConfig()
    facts = (facts,) if isinstance(facts, Fact) else tuple(facts)
    if not facts:
        raise InputError("there is no fact to erase, expected one or those of a relation")
    counts = None
    if neurons is None:
        weights_hash = model.weights_hash()
        pool = pool or ControlPool(model, builtin_facts(), weights_hash=weights_hash)
        located = [locate_fact(model, fact, config.locate, pool=pool, weights_hash=weights_hash) for fact in facts]
        if not any(located):
            raise InputError(f"no neuron to erase for {facts[0].prompt!r}: {_why(located[0])}")
        counts, sites = _commonest(located, config.most)
    else:
        sites = _checked(model, neurons)
        if not sites:
            raise InputError(f"no neuron to erase for {facts[0].prompt!r}: {_why(sites)}")
    deltas = {
        layer: _columns(model, -_slots(model, layer, indices), indices) for layer, indices in _by_layer(sites).items()
    }
    named = {} if neurons is None else {"neurons": _listed(sites)}
    return make_edit(
        model,
        deltas,
        method="knowledge_neurons_erase",
        config={**config.as_dict(), **named},
        facts=facts,
        notes={"neurons": _listed(sites), "facts_with": counts and [counts[site] for site in sites]},
    )


def _embedding(model: Model, fact: Fact, target: str) -> Tensor:
    """The target's word embedding, (d_model,): the mean of its tokens' rows of the unembedding."""
    ids = model.query_of(fact, target).target_ids
    with align_module_device(model.unembedding):
        embedding = model.unembedding.weight[list(ids)].detach().float().mean(0).cpu()
    if len(embedding) != model.d_model:
        raise ModelError(
            f"word embeddings of {model.name} have {len(embedding)} coordinates, its value slots {model.d_model}; "
            "knowledge_neurons needs one space for both, choose another method"
        )
    if not embedding.norm() > 0:
        raise InputError(f"the word embedding of {target!r} is zero in {model.name}; choose another target")
    return embedding


def _own(located: NeuronSet, others: Sequence[Sites], most: float) -> list[tuple[int, int]]:
    """The neurons that at most a share of the other facts have."""
    counts = Counter(site for sites in others for site in set(sites))
    return [site for site in located if counts[site] <= most * len(others)]


def _checked(model: Model, neurons: Sites) -> list[tuple[int, int]]:
    return list(dict.fromkeys(model.check_neuron(*site) for site in neurons))


def _why(located: NeuronSet | list) -> str:
    """Why no neuron is left of those located, or given."""
    if not located:
        return getattr(located, "note", None) or "none was given"
    return f"other facts of the relation share all {len(located)} that were located; raise shared"


def _commonest(sets: Sequence[NeuronSet], most: int) -> tuple[Counter, list[tuple[int, int]]]:
    """In how many sets each neuron is, and the neurons that are in most."""
    counts = Counter(site for neurons in sets for site in neurons)
    scores: dict[tuple[int, int], float] = defaultdict(float)
    for located in sets:
        for neuron in located.neurons:
            scores[neuron.site] += neuron.score
    return counts, sorted(counts, key=lambda site: (-counts[site], -scores[site], site))[:most]


def _signs(model: Model, fact: Fact) -> Tensor:
    """−1 where a neuron is negative at the read position of the main prompt, else 1: (n_layers, n_neurons)."""
    prompt = model.query_of(fact).prompt
    neurons = torch.stack([layer[prompt.read].float().cpu() for layer in record(model, prompt.ids).neurons])
    return torch.where(neurons < 0, -1.0, 1.0)


def _by_layer(sites: Sites) -> dict[int, list[int]]:
    layers: dict[int, list[int]] = {}
    for layer, index in sorted(sites):
        layers.setdefault(layer, []).append(index)
    return layers


def _slots(model: Model, layer: int, indices: list[int]) -> Tensor:
    """The value slots of neurons, (d_model, neurons)."""
    return model.down_weight(layer)[:, indices].detach().float().cpu()


def _columns(model: Model, columns: Tensor, indices: list[int]) -> LowRank:
    """What adds `columns` (d_model, neurons) to the value slots `indices` and nothing to the others."""
    v = torch.zeros(model.n_neurons, len(indices))
    v[indices, range(len(indices))] = 1
    return LowRank(columns, v)


def _listed(sites: Sites) -> list[list[int]]:
    return [list(site) for site in sites]


# ---------------------------------------------------------------- as the table has it


def _prepare(model: Model, config: KnowledgeNeuronsConfig, facts: Sequence[Fact], bars: Bars) -> Editor:
    pool = ControlPool(model, ())  # what else neurons answer for does not matter here
    relations = RelationNeurons(model, facts, config.locate, config.others)

    def edit(facts: Sequence[Fact]) -> list[Edit]:
        with bars("locating", len(facts), "fact") as step:
            step(0)
            return [edit_fact(fact) for fact in counted(facts, step)]

    def edit_fact(fact: Fact) -> Edit:
        others = relations.of_others(fact) if config.shared < 1 else ()
        return knowledge_neurons(model, fact, config, others=others, pool=pool)

    return Editor(edit)


def _passes(
    config: KnowledgeNeuronsConfig, facts: Sequence[Fact], others: Sequence[Fact], model: Model | None
) -> dict[str, int]:
    """To locate the facts, and at most `config.others` others of each relation."""
    passes = {"search": _located(facts, config.locate, model)}
    if config.shared < 1:
        relations = {relation_of(fact) for fact in facts} - {None}
        beside = [[fact for fact in others if relation_of(fact) == relation] for relation in sorted(relations)]
        passes["others"] = sum(_located(group[: config.others + 1], config.locate, model) for group in beside)
    return passes


def _located(facts: Sequence[Fact], config: LocateConfig, model: Model | None) -> int:
    prompts = sum(len((fact.template, *fact.paraphrases)[: config.prompts]) for fact in facts)
    return prompts * scoring_passes(config.method, config.attribution.nodes, model)


METHOD = Method(KnowledgeNeuronsConfig, _prepare, passes=_passes)
