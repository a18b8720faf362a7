"""The slow reference: captum's integrated gradients over whole forward passes.

    score_l = captum.attr.IntegratedGradients(F_l).attribute(a, baselines=b)

F_l(x) runs the *whole* model from its token ids with x (rows, positions, n_neurons) in place of the input of layer
l's down-projection at the path's positions, and reads F from the logits that the model itself returns. It shares no
cache, sweep, head or quadrature with the engine that it checks; only the path's ends are the same.
(captum's `LayerIntegratedGradients` moves the embeddings instead, which is another score.)

captum keeps points and weights of its rules in torch's default dtype, so a comparison beyond float32 needs
`torch.set_default_dtype(torch.float64)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..hooks import hooked, on_input
from ..models.adapter import Model, frozen
from ..models.passes.objective import Objective, at_least_float
from .integration_path import IntegrationPaths, Reading
from .quadrature import Integral

METHODS = {
    "auto": "gausslegendre",
    "gauss-legendre": "gausslegendre",
    "midpoint": "riemann_middle",
    "left": "riemann_left",
    "dai": "riemann_left",
    "right": "riemann_right",
}
BATCH_ROWS = 16  # whole prompts in one forward pass


def integrate(paths: IntegrationPaths, config) -> list[Integral]:
    """The integrals of every layer, as `quadrature.integrate` gives them.

    Raises `InputError` for rules that captum does not have and where captum is not installed.
    """
    check(config)
    if config.quadrature == "auto" and paths.model.normalised and not paths.baseline.any():
        raise InputError(
            f"engine 'captum' has not the points that 'auto' takes for {paths.model.name}; set quadrature to "
            "gauss-legendre"
        )
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise InputError("engine 'captum' needs the package captum: install it, or use engine 'sweep'") from None
    starts = paths.baseline.expand(-1, len(paths.readings), -1)
    return [
        _integral(paths.model, reading, starts[:, prompt, None], paths.delta[:, prompt], config, IntegratedGradients)
        for prompt, reading in enumerate(paths.readings)
    ]


def _integral(model: Model, reading: Reading, starts: Tensor, deltas: Tensor, config, method) -> Integral:
    """Of one prompt, from `starts` (n_layers, 1, n_neurons) by `deltas` (n_layers, positions, n_neurons)."""
    scores, baseline_values = [], []
    with frozen(model):
        for layer, (start, delta) in enumerate(zip(starts, deltas, strict=True)):

            def value(points: Tensor, layer=layer) -> Tensor:
                return _value(model, reading, layer, points)

            score = method(value).attribute(
                (start + delta)[None],
                baselines=start.expand_as(delta)[None],
                n_steps=config.nodes,
                method=METHODS[config.quadrature],
                internal_batch_size=BATCH_ROWS,
            )
            scores.append(score[0].detach().sum(0))
            with torch.no_grad():
                baseline_values.append(value(start.expand_as(delta)[None]).item())
    return Integral(torch.stack(scores), baseline_values, [config.nodes] * model.n_layers, "nodes")


def check(config) -> None:
    """Raise `InputError` for a rule or number of nodes that captum cannot do."""
    if config.quadrature not in METHODS:
        raise InputError(f"engine 'captum' has no rule {config.quadrature!r}; it has {', '.join(METHODS)}")
    least = 1 if config.quadrature in ("auto", "gauss-legendre") else 2
    if config.nodes == "auto" or config.nodes < least:
        raise InputError(
            f"engine 'captum' was given {config.nodes!r} nodes, expected a number of at least {least} "
            f"for {config.quadrature}, such as nodes=20"
        )


def _value(model: Model, reading: Reading, layer: int, points: Tensor) -> Tensor:
    """F (rows,) of the whole model with `points` (rows, positions, n_neurons) for the neurons of `layer`."""
    tokens = torch.tensor([reading.ids], device=model.device).repeat(len(points), 1)

    def patch(neurons: Tensor) -> Tensor:
        rows = neurons.reshape(len(points), tokens.shape[1], -1).clone()
        rows[:, list(reading.positions)] = points.to(rows)
        return rows.reshape(neurons.shape)

    with hooked(on_input(model.down(layer), patch)):
        logits = _logits(model, tokens)
    parts = [_read(logits[:, at], objective) for at, objective in zip(reading.reads, reading.objectives, strict=True)]
    stacked = torch.stack(parts, dim=1)
    return stacked.prod(1) if reading.objectives[0].kind == "probability" else stacked.sum(1)


def _logits(model: Model, tokens: Tensor) -> Tensor:
    mask = torch.ones_like(tokens)
    return model.hf(input_ids=tokens, attention_mask=mask, **({} if model.masked else {"use_cache": False})).logits


def _read(logits: Tensor, objective: Objective) -> Tensor:
    """F of each row of `logits` (rows, vocabulary)."""
    logits = at_least_float(logits)
    if objective.kind == "probability":
        return logits.softmax(-1)[:, objective.target]
    if objective.kind == "log_probability":
        return logits.log_softmax(-1)[:, objective.target]
    if objective.kind == "logit":
        return logits[:, objective.target]
    return logits[:, objective.target] - logits[:, objective.foil]
