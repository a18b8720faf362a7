"""From a fact to its neurons: score every prompt, refine over the paraphrases, describe the neurons that are left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..answers import says
from ..errors import InputError
from ..facts import Fact
from ..models.adapter import Model
from ..models.passes.scaled_answers import ScaledAnswers
from ..progress import Progress, counted, silent
from ..prompts import Query, with_target_ids
from ..sources import builtin_facts
from ..writing.counts import number_of
from .attribution import Attribution, attribute_many
from .config import CANDIDATES, MOST, SELECT_ON, LocateConfig, P
from .fact_prompts import FactPrompts
from .neurons import Neuron, NeuronSet, vocabulary
from .proof.ablation import ablation_values
from .proof.neuron_kinds import CONTROLS, SORTS, ControlPool, kinds
from .quadrature import ENDS
from .rankings import rank_many
from .refinement import Refinement, Site, Taken, coarse, coarse_of_any, refine, select, strongest


@dataclass(frozen=True)
class PromptScores:
    """The scores of all neurons for one prompt and its target.

    - `text`: the prompt as it was given; `query`: the same with its target, as tokens.
    - `scores`: (n_layers, n_neurons); `attribution`: what they come from, where the method is `ig`.
    """

    text: str
    query: Query
    scores: Tensor
    attribution: Attribution | None


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

    The fact's template and paraphrases locate them; its held-out templates play no part. `negatives` are prompts about
    something else: neurons that are coarse there, for the model's own answer, are removed. `pool` holds the controls
    that tell the neurons' kinds (the built-in facts by default). `progress` counts prompts, negatives too.

    Raises `InputError` for prompts and targets that cannot be used.
    """
    return locate_prompts(
        model, FactPrompts.all_of(fact), config, negatives=negatives, pool=pool, weights_hash=weights_hash,
        progress=progress,
    )  # fmt: skip


def locate_prompts(
    model: Model,
    prompts: FactPrompts,
    config: LocateConfig | None = None,
    *,
    negatives: Sequence[str] = (),
    pool: ControlPool | None = None,
    weights_hash: str | None = None,
    progress: Progress = silent,
) -> NeuronSet:
    """The neurons that the locating ones of `prompts` share, as `locate_fact` returns them."""
    config, weights_hash = config or LocateConfig(), weights_hash or model.weights_hash()
    pool = pool or ControlPool(model, builtin_facts(), weights_hash=weights_hash)
    scored = score_prompts(model, prompts, config, pool, progress=progress)
    others = score_negatives(model, negatives, config, pool, progress=lambda done: progress(len(scored) + done))
    return describe(model, prompts, scored, config, negatives=others, pool=pool, weights_hash=weights_hash)


def score_prompts(
    model: Model, prompts: FactPrompts, config: LocateConfig, pool: ControlPool, *, progress: Progress = silent
) -> list[PromptScores]:
    """The scores of all neurons for each of the locating prompts; `pool` has what patches are of."""
    if not prompts.locating:
        raise InputError("there is no prompt to locate neurons with; give one that the target continues")
    for layer in config.layers or ():
        model.check_layer(layer)
    texts = prompts.locating[: config.prompts]
    queries = [prompts.query(model, text, chat=config.chat) for text in texts]
    start = config.attribution.baseline_name
    starts = [] if start == "tensor" else [_values(start, prompts, text, config, pool) for text in texts]
    return _scored(model, texts, queries, config, progress, starts)


def _values(name: str, prompts: FactPrompts, text: str, config: LocateConfig, pool: ControlPool) -> Tensor | None:
    """What neurons are set to by the baseline or ablation of that name."""
    return ablation_values(name, pool, text, prompts, chat=config.chat, position=config.position)


def score_negatives(
    model: Model, prompts: Sequence[str], config: LocateConfig, pool: ControlPool, *, progress: Progress = silent
) -> list[PromptScores]:
    """The scores for each of the prompts, whose target is the model's own first choice."""
    name = config.attribution.baseline_name
    if prompts and name == "patch":
        raise InputError("a negative prompt has no other subject for a patch; take mean or zero as the baseline")
    if prompts and config.position != "read":
        raise InputError("a negative prompt names no subject where neurons could be scaled; take the read position")
    queries = [_own_answer(model, text, config) for text in prompts]
    base = [pool.mean_activation if name == "mean" else None] * len(queries)
    return _scored(model, prompts, queries, config, progress, base)


def mean_scores(scored: Sequence[PromptScores]) -> Tensor:
    """The scores of all neurons over the prompts, (n_layers, n_neurons)."""
    return sum((prompt.scores for prompt in scored[1:]), scored[0].scores) / len(scored)


def describe(
    model: Model,
    prompts: FactPrompts,
    scored: Sequence[PromptScores],
    config: LocateConfig,
    *,
    negatives: Sequence[PromptScores] = (),
    pool: ControlPool,
    weights_hash: str | None = None,
) -> NeuronSet:
    """The neurons that scored prompts share, with their kinds and words: the second half of `locate_prompts`."""
    first = scored[0]
    others = [prompt.scores for prompt in negatives]
    taken: dict[Site, Taken] = {}
    position, about = config.position, (prompts.subject, prompts.target, prompts.relation)
    controls = pool.controls(*about, sorts=SORTS if config.kinds else (), position=position)
    selecting = (config.select_on or SELECT_ON) if config.select == "causal" else 0
    asked = prompts.locating[: max(len(scored), selecting)]
    answers = _answers(model, prompts, asked, config, pool)
    if config.select == "causal":
        against = _against(pool, prompts, position) if config.specific else None
        selected_on = answers.only(range(len(asked))[:selecting])
        general = pool.general_neurons(*about, position)
        refined, taken = _selected(scored, selected_on, config, others, general, against)
    else:
        refined = refine(
            [prompt.scores for prompt in scored], config.t, config.p or P, adjust=config.adjust, layers=config.layers,
            negatives=others,
        )  # fmt: skip
    sites = list(refined.scores)
    mean_activations = answers.activations[: len(scored)].mean(0)
    activations = [mean_activations[site].item() for site in sites]
    tests: dict = {} if refined.p is None else {"p": refined.p}
    labels: list[str | None] = [None] * len(sites)
    if config.kinds:
        labels = kinds(model, sites, activations, first.query.target_ids[0], controls)
        tests["controls"] = controls.counts()
    known = bool(answers.known[0])
    neurons = tuple(
        _neuron(model, site, scored, refined, activation, kind, taken.get(site), known)
        for site, activation, kind in zip(sites, activations, labels, strict=True)
        if kind not in config.drop
    )
    return NeuronSet(
        model=model.name,
        weights_hash=weights_hash or model.weights_hash(),
        prompt=first.text,
        target=prompts.target,
        neurons=neurons[: config.most],
        probability=float(answers.probability[0]),
        rank=answers.rank[0],
        method=config.method,
        subject=prompts.subject,
        separator=prompts.separator,
        fact=prompts.fact,
        relation=prompts.relation,
        refined_on=tuple(asked),
        negatives=tuple(prompt.text for prompt in negatives),
        gap=tuple(first.attribution.gap.tolist()) if first.attribution else (),
        missing=_missing(scored, config),
        ended=max((p.attribution.ended for p in scored if p.attribution), key=ENDS.index, default=None),
        tests=tests,
        config=config.as_dict(),
        note=_note(model, refined, neurons, answers, config),
    )


def _answers(
    model: Model, prompts: FactPrompts, texts: Sequence[str], config: LocateConfig, pool: ControlPool
) -> ScaledAnswers:
    """The answers after some of the prompts, with neurons taken away as the config says."""
    queries = [prompts.query(model, text, chat=config.chat) for text in texts]
    away = [_values(config.ablation, prompts, text, config, pool) for text in texts]
    return ScaledAnswers(model, queries, away, config.position)


def _selected(
    scored: Sequence[PromptScores],
    answers: ScaledAnswers,
    config: LocateConfig,
    negatives: Sequence[Tensor],
    general: set[Site],
    against: ScaledAnswers | None,
) -> tuple[Refinement, dict[Site, Taken]]:
    """The neurons of a causal selection as they were taken, with their mean scores and the prompts that share them.

    Candidates are neither coarse for a negative prompt nor `general`. `answers`, `against`: as in `select`.
    """
    mean = mean_scores(scored)
    removed = coarse_of_any(negatives, config.t, config.layers) | general
    candidates = [
        site for site in strongest(mean, config.candidates or CANDIDATES, config.layers) if site not in removed
    ]
    steps = select(answers, candidates, config.most or MOST, against)
    taken = {step.site: step for step in steps}
    sets = tuple(coarse(prompt.scores, config.t, config.layers) for prompt in scored)
    rates = {site: sum(site in sites for sites in sets) / len(scored) for site in taken}
    return Refinement(sets, None, rates, {site: mean[site].item() for site in taken}, len(candidates)), taken


def _against(pool: ControlPool, prompts: FactPrompts, position: str) -> ScaledAnswers:
    """Known facts of the relation which a selection is to leave alone; specificity is measured on others."""
    about = prompts.subject, prompts.target, prompts.relation
    controls = pool.controls(*about, 2 * CONTROLS, sorts=("relation",), position=position)
    others = controls.relation.only(range(CONTROLS, len(controls.relation)))
    if not len(others):
        known = f"{len(controls.relation)} of {prompts.relation!r} are known" if prompts.relation else "none is named"
        raise InputError(f"a specific selection needs more than {CONTROLS} other facts of the relation, {known}")
    return others


def _scored(
    model: Model,
    texts: Sequence[str],
    queries: Sequence[Query],
    config: LocateConfig,
    progress: Progress,
    starts: Sequence[Tensor | None],
) -> list[PromptScores]:
    """The scores for each of some prompts; where a baseline is given, paths start there."""
    results: Iterator[tuple[Tensor, Attribution | None]]
    if config.method == "ig":
        results = ((found.scores, found) for found in attribute_many(model, queries, config.attribution, starts))
    else:
        results = ((scores, None) for scores in rank_many(model, queries, config.method, config.attribution))
    columns = zip(texts, queries, results, strict=True)
    return [PromptScores(text, query, *found) for text, query, found in counted(columns, progress)]


def _own_answer(model: Model, prompt: str, config: LocateConfig) -> Query:
    """A prompt with the model's own first choice as target."""
    encoded = model.encode(prompt, chat=config.chat)
    mask = model.tokenizer.mask_token_id if model.masked else None
    (top,) = ScaledAnswers(model, [with_target_ids(encoded, (encoded.ids[-1],), mask)]).top
    return with_target_ids(encoded, (top,), mask)


def _missing(scored: Sequence[PromptScores], config: LocateConfig) -> float | None:
    """The largest gap of a layer that was searched, as a fraction of F, over the prompts."""
    searched = slice(None) if config.layers is None else list(config.layers)
    gaps = [prompt.attribution.missing[searched].max().item() for prompt in scored if prompt.attribution]
    return max(gaps, default=None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _neuron(
    model: Model,
    site: tuple[int, int],
    scored: Sequence[PromptScores],
    refined: Refinement,
    activation: float,
    kind: str | None,
    taken: Taken | None,
    known: bool,
) -> Neuron:
    promotes, suppresses = vocabulary(model, *site, sign=activation)
    score = refined.scores[site]
    spans = [prompt.attribution.span[site[0]].item() for prompt in scored if prompt.attribution]
    span = _mean(spans) if spans and known else 0.0
    return Neuron(
        layer=site[0],
        index=site[1],
        score=score,
        share=score / span if 0 < score <= span else None,  # others may take it back: no part of a whole
        prompts=refined.rates[site],
        activation=activation,
        suppress=taken.suppress if taken else None,
        amplify=taken.amplify if taken else None,
        kind=kind,
        promotes=promotes,
        suppresses=suppresses,
    )


def _note(
    model: Model, refined: Refinement, neurons: Sequence[Neuron], answers: ScaledAnswers, config: LocateConfig
) -> str | None:
    """What to think of when reading a set: that the model says something else, and why the set is empty."""
    notes = []
    if not answers.known[0]:
        word, chance = says(model, answers.queries[0])
        notes.append(
            f"the model does not say this: it says {word!r} (p of its first token = {chance:.3f}), "
            f"and this answer is its choice number {answers.rank[0]}"
        )
    if not neurons:
        notes.append(_why_empty(refined, config))
    return "; ".join(notes) or None


def _why_empty(refined: Refinement, config: LocateConfig) -> str:
    if not any(refined.coarse):
        return "no neuron raises this target's probability for any of the prompts"
    if config.select == "causal" and not refined.candidates:
        return "every neuron with a large score is also coarse for a negative prompt, or needed by other answers"
    if config.select == "causal" and not refined.scores:
        return "no neuron with a large score makes the answer more probable when it is doubled"
    if not refined.rates:
        prompts = number_of(len(refined.coarse), "prompt")
        return f"no neuron is coarse for {refined.p:.0%} of {prompts}: the paraphrases share none; lower p or t"
    if not refined.scores:
        return "every neuron that the paraphrases share is also coarse for a negative prompt"
    return f"every neuron that was located is of a kind to leave out ({', '.join(config.drop)})"
