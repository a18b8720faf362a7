"""Ways to rank all neurons for one prompt and target, each giving scores (n_layers, n_neurons).

- `ig`: integrated gradients (`attribution.py`).
- `gradient`: gradient × activation, the first-order estimate of what removing a neuron does.
- `relp`: the same, with gradients by the rules of relevance propagation (`linearised.py`; Jafari et al. 2025).
- `activation`: the neuron's value alone; Dai et al. 2022 use it as their baseline.
- `logit`: activation × what the neuron's value vector adds to the target's logit, straight from its layer to the
  head, the final norm linearised at the clean state (direct logit attribution).
- `logp`: how much the neuron's output alone, added to what comes into its block, raises the target's log-probability as
  it is read there (Yu & Ananiadou 2024, arXiv 2312.12141).
- `ablation`: F minus F with the neuron set to zero, one row for each: the ground truth for the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..errors import InputError, did_you_mean
from ..models.adapter import Model, frozen
from ..models.passes.batches import halving
from ..models.passes.corner import added
from ..models.passes.float32 import in_float32
from ..models.passes.linearised import linearised
from ..models.passes.objective import Objective, at_least_float, read_states
from ..models.passes.scaled_answers import SWEEP_ROWS
from ..prompts import Query
from .attribution import AttributionConfig, attribute_many, grouped_readings
from .integration_path import IntegrationPaths, Reading, integration_paths
from .quadrature import START

RANKINGS = ("ig", "gradient", "relp", "activation", "logit", "logp", "ablation")


def rank(
    model: Model,
    prompt: str | Query,
    target: str | None = None,
    method: str = "ig",
    config: AttributionConfig | None = None,
    *,
    subject: str | None = None,
    chat: bool = False,
) -> Tensor:
    """Scores of all neurons by one of `RANKINGS`, (n_layers, n_neurons), averaged over the target's tokens."""
    query = prompt if isinstance(prompt, Query) else model.query(prompt, target, subject, chat=chat)
    (scores,) = rank_many(model, [query], method, config)
    return scores


def rank_many(
    model: Model, queries: Iterable[Query], method: str = "ig", config: AttributionConfig | None = None
) -> Iterator[Tensor]:
    """The scores of all neurons for each of many prompts, as `rank` gives them."""
    if method not in RANKINGS:
        raise InputError(
            f"no ranking is called {method!r}{did_you_mean(method, RANKINGS)}; there are {', '.join(RANKINGS)}"
        )
    config = config or AttributionConfig()
    if method == "ig":
        yield from (attribution.scores for attribution in attribute_many(model, queries, config))
        return
    score = {
        "gradient": _gradient, "relp": _relevance, "activation": _activation, "logit": _logit,
        "logp": _log_probability, "ablation": _ablation,
    }[method]  # fmt: skip

    def work(group: Sequence[tuple[Query, list[Reading]]]) -> list[Tensor]:
        with in_float32(model):
            paths = integration_paths(model, [r for _, part in group for r in part], "zero", config.row_limit)
            scores = score(paths).detach().cpu().split([len(part) for _, part in group], dim=1)
        return [of_query.mean(1) for of_query in scores]

    groups = grouped_readings(model, queries, replace(config, joint=config.joint and method in ("gradient", "relp")))
    for _, scores in halving(model, groups, work, "prompts"):
        yield from scores


def scoring_passes(method: str, nodes: int | str, model: Model | None) -> int:
    """Sequences that run through the model to score a token of a target: the prompt, and for `ig` rows of its paths.

    Paths go through all layers, also where neurons of some are located; without `model` one layer counts. Of `"auto"`
    nodes only those count that it begins with.
    """
    if method != "ig":
        return 1
    return 1 + (START if nodes == "auto" else int(nodes)) * (1 if model is None else model.n_layers)


def _gradient(paths: IntegrationPaths) -> Tensor:
    return (paths.gradients() * paths.delta).sum(2)


def _relevance(paths: IntegrationPaths) -> Tensor:
    with linearised(paths.model):
        return _gradient(paths)


def _activation(paths: IntegrationPaths) -> Tensor:
    return paths.delta[:, :, 0]


def _logit(paths: IntegrationPaths) -> Tensor:
    model = paths.model
    rows = torch.arange(len(paths.readings))[:, None]
    objectives = [Objective("logit", reading.objectives[0].target) for reading in paths.readings]
    with frozen(model), torch.enable_grad():
        hidden = paths.batch.output[rows, paths.reads].detach().requires_grad_()
        read = read_states(model, hidden, [objectives], gradient=True)
        (directions,) = torch.autograd.grad(read.normed, hidden, read.gradient)
    weights = [
        at_least_float(directions[:, 0].to(w) @ w).to(paths.delta.device)
        for w in map(model.down_weight, range(model.n_layers))
    ]
    return paths.delta[:, :, 0] * torch.stack(weights)


@torch.no_grad()
def _log_probability(paths: IntegrationPaths) -> Tensor:
    model = paths.model
    scores = torch.zeros_like(paths.delta[:, :, 0])
    for prompt, layer in itertools.product(range(len(paths.readings)), range(model.n_layers)):
        neurons = paths.delta[layer, prompt, 0]
        stream = paths.batch.inputs[layer][prompt, paths.reads[prompt, 0]]
        objective = Objective("log_probability", paths.readings[prompt].objectives[0].target)

        def read(indices: list[int], layer=layer, neurons=neurons, stream=stream, objective=objective) -> Tensor:
            weight = model.down_weight(layer)[:, indices]
            outputs = added(model, layer, (neurons[indices].to(weight) * weight).T)
            states = torch.cat([stream[None], stream + outputs.to(stream)])
            values = read_states(model, states[:, None], [objective]).value
            return values[1:] - values[:1]

        active = neurons.nonzero()[:, 0]
        for indices, values in halving(model, map(Tensor.tolist, active.split(SWEEP_ROWS)), read, "neurons"):
            scores[layer, prompt, indices] = values.to(scores)
    return scores


@torch.no_grad()
def _ablation(paths: IntegrationPaths) -> Tensor:
    model = paths.model
    scores = torch.zeros_like(paths.delta[:, :, 0])
    for prompt, layer in itertools.product(range(len(paths.readings)), range(model.n_layers)):
        active = paths.delta[layer, prompt, 0].nonzero()[:, 0]  # a neuron that is zero already takes nothing away
        without = partial(paths.without, prompt, layer)
        for indices, values in halving(model, map(Tensor.tolist, active.split(SWEEP_ROWS)), without, "neurons"):
            scores[layer, prompt, indices] = paths.clean[prompt] - values.to(scores)
    return scores
