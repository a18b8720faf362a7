"""The field's loop for integrated gradients (Dai et al. 2022, eq. 5), written plainly: for the neurons a of a layer

    score_i = a_i · Σ_k w_k ∂P(target | α_k a) / ∂a_i

For each layer: one clean pass for its neurons, then the whole prompt through all layers for every point of the path,
the target's probability from all positions' logits, and a traced gradient. This is the algorithm of the PyPI package
`knowledge-neurons` (`get_scores_for_layer`), for any wrapped model and at the input of the down-projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from knowedit.hooks import hooked, on_input
from knowedit.locate.quadrature import rule


def integrated_gradients(
    model, ids, read: int, target: int, *, quadrature: str = "eleuther", nodes: int = 20, batch: int = 10, layers=None
) -> Tensor:
    """Scores (n_layers, n_neurons) of all neurons for the probability of `target` at token `read` of `ids`."""
    alphas, weights = rule(quadrature, nodes)
    tokens = torch.tensor([list(ids)], device=model.device)
    layers = range(model.n_layers) if layers is None else layers
    return torch.stack([layer_scores(model, layer, tokens, read, target, alphas, weights, batch) for layer in layers])


def layer_scores(model, layer: int, tokens: Tensor, read: int, target: int, alphas, weights, batch: int = 10) -> Tensor:
    """Scores (n_neurons,) of one layer, by any points and weights; `tokens` (1, length)."""
    neurons = clean_neurons(model, layer, tokens, read)
    alphas, weights = neurons.new_tensor(alphas), neurons.new_tensor(weights)
    total = torch.zeros_like(neurons)
    for at, weight in zip(alphas.split(batch), weights.split(batch), strict=True):
        points = (at[:, None] * neurons).requires_grad_()
        with hooked(on_input(model.down(layer), _placed(points, read, tokens.shape[1]))):
            logits = model.hf(
                input_ids=tokens.repeat(len(at), 1), attention_mask=torch.ones_like(tokens).repeat(len(at), 1)
            ).logits
        probability = logits[:, read].softmax(-1)[:, target]
        (gradient,) = torch.autograd.grad(probability.sum(), points)
        total += weight @ gradient
    return total * neurons


@torch.no_grad()
def clean_neurons(model, layer: int, tokens: Tensor, read: int) -> Tensor:
    kept = []
    with hooked(on_input(model.down(layer), kept.append)):
        model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    return kept[0].reshape(tokens.shape[1], -1)[read].clone()


def _placed(points: Tensor, read: int, length: int):
    def patch(x: Tensor) -> Tensor:
        rows = x.reshape(-1, length, x.shape[-1]).clone()
        rows[:, read] = points.to(rows)
        return rows.reshape(x.shape)

    return patch
