"""From a fact to its neurons: score every prompt, keep what is coarse, refine over paraphrases, label what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from ..errors import InputError, did_you_mean
from ..facts import Fact, fill
from ..models.adapter import Model
from ..models.passes.replay import record
from ..progress import Progress, silent
from ..prompts import Query, with_target_ids
from ..sources import builtin_facts
from .attribution import Attribution, AttributionConfig, attribute
from .neuron_kinds import ControlPool, Controls, kinds
from .neurons import KINDS, Neuron, NeuronSet, adjusted_p, coarse, shared, vocabulary
from .rankings import RANKINGS, rank
from .scaled_answers import ScaledAnswers


@dataclass(frozen=True)
class LocateConfig:
    """How neurons are chosen.

    - `method`: the ranking (`rankings.RANKINGS`); `attribution`: how `ig` integrates.
    - `t`, `p`: thresholds of coarse and refined; `adjust`: move p towards 2 to 5 neurons, as Dai et al. do.
    - `most`: keep at most so many neurons, the strongest.
    - `layers`: locate in these layers only.
    - `drop`: kinds to leave out of the set, `("general",)` for instance.
    - `chat`: ask through the tokenizer's chat template.
    """

    method: str = "ig"
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    t: float = 0.2
    p: float = 0.7
    adjust: bool = False
    most: int | None = None
    layers: tuple[int, ...] | None = None
    drop: tuple[str, ...] = ()
    chat: bool = False

    def __post_init__(self):
        if self.method not in RANKINGS:
            raise InputError(
                f"no ranking is called {self.method!r}{did_you_mean(self.method, RANKINGS)}; "
                f"there are {', '.join(RANKINGS)}"
            )
        for name, value in (("t", self.t), ("p", self.p)):
            if not 0 < value <= 1:
                raise InputError(f"{name} is {value!r}, expected a fraction above 0 and up to 1")
        for kind in self.drop:
            if kind not in KINDS:
                raise InputError(f"no kind is called {kind!r}{did_you_mean(kind, KINDS)}; there are {', '.join(KINDS)}")
        if self.most is not None and self.most < 1:
            raise InputError(f"at most {self.most!r} neurons were asked for, expected 1 or more")

    def as_dict(self) -> dict:
        """For JSON: a baseline tensor is only named."""
        record = asdict(self)
        if not isinstance(self.attribution.baseline, str):
            record["attribution"]["baseline"] = "tensor"
        for name in ("layers", "drop"):
            record[name] = None if record[name] is None else list(record[name])
        return record


def locate_fact(
    model: Model,
    fact: Fact,
    config: LocateConfig | None = None,
    *,
    negatives: Sequence[str] = (),
    pool: ControlPool | None = None,
    weights_hash: str | None = None,
    progress: Progress = silent,
) -> NeuronSet:
    """The neurons with which `model` recalls `fact`.

    The fact's template and paraphrases locate them; its held-out templates are not looked at. `negatives` are prompts
    about something else: what is coarse for them, for the answer that the model itself gives there, is removed.
    `pool` holds the controls that tell the neurons' kinds (the built-in facts by default). `progress` counts prompts,
    negatives too.

    Raises `InputError` for prompts and targets that cannot be used.
    """
    found = locate_prompts(
        model,
        [fill(template, fact.subject) for template in (fact.template, *fact.paraphrases)],
        fact.target,
        config,
        subject=fact.subject,
        relation=fact.relation,
        negatives=negatives,
        pool=pool,
        weights_hash=weights_hash,
        progress=progress,
    )
    return replace(found, fact=fact.id)


def locate_prompts(
    model: Model,
    prompts: Sequence[str],
    target: str,
    config: LocateConfig | None = None,
    *,
    subject: str | None = None,
    relation: str | None = None,
    negatives: Sequence[str] = (),
    pool: ControlPool | None = None,
    weights_hash: str | None = None,
    progress: Progress = silent,
) -> NeuronSet:
    """As `locate_fact`, for prompts in so many words: the first is the fact, the others refine it."""
    config = config or LocateConfig()
    for layer in config.layers or ():
        model.check_layer(layer)
    found = []
    for prompt in prompts:
        found.append(_score(model, model.query(prompt, target, subject, chat=config.chat), config))
        progress(len(found))
    sets = [coarse(f.scores, config.t, config.layers) for f in found]
    p = adjusted_p(sets, config.p) if config.adjust else config.p
    rates = shared(sets, p)
    removed = set()
    for done, prompt in enumerate(negatives, len(prompts) + 1):
        scores = _score(model, _own_answer(model, prompt, config), config).scores
        removed |= set(coarse(scores, config.t, config.layers)) & set(rates)
        progress(done)
    chosen = sorted((s for s in rates if s not in removed), key=lambda s: -_mean(found, s))
    controls = (pool or ControlPool(model, builtin_facts())).controls(subject, target, relation)
    neurons = [n for n in _describe(model, found, rates, chosen, controls) if n.kind not in config.drop]
    main = found[0]
    return NeuronSet(
        model=model.name,
        weights_hash=weights_hash or model.weights_hash(),
        prompt=prompts[0],
        target=target,
        neurons=tuple(neurons[: config.most]),
        probability=main.response.probability,
        method=config.method,
        subject=subject,
        relation=relation,
        refined_on=tuple(prompts),
        negatives=tuple(negatives),
        gap=tuple(main.attribution.gap.tolist()) if main.attribution else (),
        tests={"p": p, "controls": controls.counts()},
        config=config.as_dict(),
        note=_note(model, sets, rates, removed, neurons, p, main.response, config),
    )


@dataclass
class _Found:
    """One prompt's scores."""

    scores: Tensor
    response: ScaledAnswers
    attribution: Attribution | None


def _score(model: Model, query: Query, config: LocateConfig) -> _Found:
    if config.method == "ig":
        attribution = attribute(model, query, config=config.attribution)
        return _Found(attribution.scores, ScaledAnswers(model, query), attribution)
    return _Found(
        rank(model, query, method=config.method, config=config.attribution), ScaledAnswers(model, query), None
    )


def _own_answer(model: Model, prompt: str, config: LocateConfig) -> Query:
    """A negative prompt with the model's own first choice as target."""
    encoded = model.encode(prompt, chat=config.chat)
    mask = model.tokenizer.mask_token_id if model.masked else None
    top = ScaledAnswers(model, with_target_ids(encoded, (encoded.ids[-1],), mask)).top
    return with_target_ids(encoded, (top,), mask)


def _mean(found: list[_Found], site: tuple[int, int]) -> float:
    return sum(f.scores[site].item() for f in found) / len(found)


def _describe(
    model: Model, found: list[_Found], rates: dict, chosen: list[tuple[int, int]], controls: Controls
) -> list[Neuron]:
    activations = [sum(f.response.activations[site].item() for f in found) / len(found) for site in chosen]
    labels = kinds(model, chosen, activations, found[0].response.query.target_ids[0], controls)
    neurons = []
    for site, activation, kind in zip(chosen, activations, labels, strict=True):
        promotes, suppresses = vocabulary(model, *site, sign=activation)
        spans = [f.attribution.span[site[0]].item() for f in found if f.attribution]
        neurons.append(
            Neuron(
                layer=site[0],
                index=site[1],
                score=_mean(found, site),
                share=_mean(found, site) / (sum(spans) / len(spans)) if spans and sum(spans) else None,
                prompts=rates[site],
                activation=activation,
                kind=kind,
                promotes=promotes,
                suppresses=suppresses,
            )
        )
    return neurons


def _note(
    model: Model,
    sets: list,
    rates: dict,
    removed: set,
    neurons: list,
    p: float,
    response: ScaledAnswers,
    config: LocateConfig,
) -> str | None:
    """Why a set is empty, or what to think of when reading it."""
    if not neurons:
        if not any(sets):
            return "no neuron raises this target's probability for any of the prompts"
        if not rates:
            return (
                f"no neuron is coarse for {p:.0%} of the {len(sets)} prompts: the paraphrases share none; lower p or t"
            )
        if removed and len(removed) == len(rates):
            return "every neuron that the paraphrases share is also coarse for a negative prompt"
        return f"every neuron found is of a kind that was to be left out ({', '.join(config.drop)})"
    if not response.known:
        top = model.tokenizer.decode([response.top])
        return f"the model does not know this fact: its first choice is {top!r}, not the target"
    return None


def mean_activation(model: Model, texts: Sequence[str]) -> Tensor:
    """The mean of every neuron over all tokens of `texts` but their first: a baseline, (n_layers, n_neurons)."""
    if not texts:
        raise InputError("a mean activation needs at least one text")
    total, tokens = torch.zeros(model.n_layers, model.n_neurons, dtype=torch.float64), 0
    for text in texts:
        neurons = record(model, model.encode(text).ids).neurons
        kept = torch.stack([n[1:].double().cpu() for n in neurons])
        total += kept.sum(1)
        tokens += kept.shape[1]
    return (total / max(tokens, 1)).float()
