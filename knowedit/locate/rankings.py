"""Ways to rank all neurons for one prompt and target, each giving scores (n_layers, n_neurons).

- `ig`: integrated gradients (`attribution.py`).
- `gradient`: gradient × activation, the first-order estimate of what removing a neuron does.
- `activation`: the neuron's value alone; Dai et al. 2022 use it as their baseline.
- `logit`: activation × what the neuron's value vector adds to the target's logit, straight from its layer to the
  head, the final norm linearised at the clean state (direct logit attribution).
- `ablation`: F minus F with the neuron set to zero, one row for each: the ground truth for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError, did_you_mean
from ..models.adapter import Model, frozen, in_float32
from ..models.passes.objective import Objective, at_least_float, read_rows
from ..models.passes.scaled_answers import SWEEP_ROWS
from ..models.passes.sweep import sweep
from ..prompts import Prompt, Query
from .attribution import AttributionConfig, attribute, make_path
from .quadrature import START

RANKINGS = ("ig", "gradient", "activation", "logit", "ablation")


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
    if method not in RANKINGS:
        raise InputError(
            f"no ranking is called {method!r}{did_you_mean(method, RANKINGS)}; there are {', '.join(RANKINGS)}"
        )
    config = config or AttributionConfig()
    query = prompt if isinstance(prompt, Query) else model.query(prompt, target, subject, chat=chat)
    if method == "ig":
        return attribute(model, query, config=config).scores
    if method == "gradient":
        return attribute(model, query, config=replace(config, quadrature="right", nodes=1, baseline="zero")).scores
    score = {"activation": _activation, "logit": _logit, "ablation": _ablation}[method]
    with in_float32(model):
        scores = [score(model, step, token, config) for step, token in zip(query.steps, query.target_ids, strict=True)]
    return torch.stack(scores).mean(0)


def scoring_passes(method: str, nodes: int | str, layers: Sequence[int] | None) -> int:
    """Sequences that run through the model to score one prompt: the prompt itself, and for `ig` the rows of its paths.

    `layers` are those in which neurons are located; None counts one, where the model is not known.
    """
    if method != "ig":
        return 1
    return 1 + (START if nodes == "auto" else int(nodes)) * (1 if layers is None else len(layers))


def _path(model: Model, step: Prompt, token: int, config: AttributionConfig):
    kind = config.of if config.of != "logit_difference" else "logit"
    position = step.position(config.position)
    return make_path(
        model, step.ids, [position], [step.read], [Objective(kind, token)], replace(config, baseline="zero")
    )


def _activation(model: Model, step: Prompt, token: int, config: AttributionConfig) -> Tensor:
    return _path(model, step, token, config).delta[:, 0].cpu()


def _logit(model: Model, step: Prompt, token: int, config: AttributionConfig) -> Tensor:
    path = _path(model, step, token, config)
    with frozen(model), torch.enable_grad():
        hidden = path.recording.output[:, path.reads].detach().requires_grad_()  # (1, 1, d_model)
        logit, _ = model.logits_of(model.normed(hidden), [token])
        (direction,) = torch.autograd.grad(logit.sum(), hidden)
    direction = direction.flatten()
    weights = [
        at_least_float(direction.to(w) @ w).to(path.delta.device) for w in map(model.down_weight, range(model.n_layers))
    ]
    return (path.delta[:, 0] * torch.stack(weights)).detach().cpu()


@torch.no_grad()
def _ablation(model: Model, step: Prompt, token: int, config: AttributionConfig) -> Tensor:
    path = _path(model, step, token, config)
    scores = torch.zeros(model.n_layers, model.n_neurons, dtype=path.delta.dtype)
    position = path.positions[0]
    for layer in range(model.n_layers):
        active = path.delta[layer, 0].nonzero()[:, 0]  # a neuron that is zero already takes nothing away
        for indices in active.split(SWEEP_ROWS):
            joining = [len(indices) if at == layer else 0 for at in range(model.n_layers)]

            def patch(at: int, neurons: Tensor, layer=layer, indices=indices) -> Tensor:
                if at != layer:
                    return neurons
                neurons = neurons.clone()
                neurons[torch.arange(len(indices)), position, indices.to(neurons.device)] = 0
                return neurons

            hidden = sweep(path.recording, joining, patch)
            value = read_rows(model, hidden, path.reads, path.objectives).value
            scores[layer, indices.cpu()] = path.clean - value.cpu()
    return scores
