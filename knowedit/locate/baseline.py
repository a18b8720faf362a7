"""Where the paths of integrated gradients start: at zero, or at the mean activation of each neuron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..models.adapter import Model
from ..models.passes.replay import record
from ..sources import builtin_facts

BASELINES = ("zero", "mean")
EVERY = 10  # built-in facts from one whose prompt counts in the mean to the next


def baseline_tensor(model: Model, baseline: str | Tensor) -> Tensor:
    """The baseline (n_layers, n_neurons) that a name stands for; a tensor is returned as it is.

    `"mean"` runs the model on a tenth of the built-in prompts. Raises `InputError` for a tensor of another shape.
    """
    if isinstance(baseline, str):
        if baseline == "zero":
            return torch.zeros(model.n_layers, model.n_neurons)
        return mean_activation(model, [fact.prompt for fact in builtin_facts()[::EVERY]])
    if tuple(baseline.shape) != (model.n_layers, model.n_neurons):
        raise InputError(f"the baseline is {tuple(baseline.shape)}, expected {(model.n_layers, model.n_neurons)}")
    return baseline


def mean_activation(model: Model, texts: Sequence[str]) -> Tensor:
    """The mean of every neuron over all tokens of `texts` but their first: a baseline, (n_layers, n_neurons)."""
    if not texts:
        raise InputError("a mean activation needs at least one text")
    total, tokens = torch.zeros(model.n_layers, model.n_neurons, dtype=torch.float64), 0
    for text in texts:
        neurons = record(model, model.encode(text).ids).neurons
        activations = torch.stack([layer[1:].double().cpu() for layer in neurons])
        total += activations.sum(1)
        tokens += activations.shape[1]
    return (total / max(tokens, 1)).float()
