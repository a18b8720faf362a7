"""Causal tracing by gradients: all effects of a prompt from a few passes forward and back.

To first order, putting back what the clean run has at token `t` of layer `l` changes F by the gradient there times what
the noise changed (attribution patching, Nanda 2023; Syed et al. 2023). At the corrupted prompt itself that gradient is
a poor guide, because F is flat where the subject is gone. So gradients are taken on the way back, with the noise scaled
by 1 − α, and averaged over α (as EAP-IG does with the inputs of edges, Hanna et al. 2024):

    e(t, l) = mean over draws i and points α of  ∂ log-odds(h(α)) / ∂ h_t^l · (h_t^l clean − h_t^l corrupted),

    P(t, l) ≈ σ(log-odds of the corrupted prompt + e(t, l)),

F being the log-odds of the target, in which effects add up better than in its probability, and which keep P between 0
and 1. Every draw has its own `POINTS` points, and together they cover the whole way evenly. The effect of a window is
the sum over its layers, so what one of them hands to another counts twice there. How well all this ranks states is
measured by `benchmarks/quality/trace_ranks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...hooks import Enough, ending_early, hooked, on_call, on_output
from ...models.adapter import frozen
from ...models.passes.objective import Objective, read_rows
from ...models.passes.replay import Recording, record
from .corruption import SUBLAYERS, Corruption, sublayer
from .noise import on_noise
from .restore import Restoring, Window

POINTS = 2  # on the way of each draw
_LEAST, _REST = 1e-38, 1e-7  # float32 tells no smaller probability, and none closer to one


def approximate(
    corruption: Corruption, reads: Sequence[int], objectives: Sequence[Objective], kinds: dict[str, list[Window] | None]
) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
    """P clean, P corrupted (draws,) and by kind the approximate effects (draws, tokens, layers).

    `kinds` has None for states, and for `mlp` and `attention` the window around each layer.
    """
    exact = Restoring(corruption, reads, objectives)
    low = exact.corrupted.cpu().double()
    recording = record(corruption.model, corruption.ids, corruption.first)
    sums: dict[str, Any] = {kind: 0.0 for kind in kinds}
    for point in range(POINTS):
        alphas = (point + (torch.arange(corruption.draws) + 0.5) / corruption.draws) / POINTS
        for kind, part in gains(corruption, recording, reads, objectives, alphas, list(kinds)).items():
            sums[kind] = sums[kind] + part / POINTS
    effects = {}
    for kind, around in kinds.items():
        gain = sums[kind]  # (draws, tokens, layers)
        if around is not None:
            upto = torch.nn.functional.pad(gain.cumsum(-1), (1, 0))
            gain = upto[..., [w.end for w in around]] - upto[..., [w.first for w in around]]
        odds = (low.clamp_min(_LEAST).log() - (1 - low).clamp_min(_REST).log())[:, None, None] + gain
        effects[kind] = (odds.sigmoid() - low[:, None, None]).numpy()
    return exact.clean.double().item(), low.numpy(), effects


def gains(
    corruption: Corruption,
    recording: Recording,
    reads: Sequence[int],
    objectives: Sequence[Objective],
    alphas: Tensor,
    kinds: Sequence[str],
) -> dict[str, Tensor]:
    """By kind the change of the log-odds to first order at points `alphas` of the draws, (draws, tokens, layers).

    `recording` is of the clean prompt from the first corrupted token on: what stands before it is clean in all rows.
    """
    model, start = corruption.model, recording.start
    kept: dict[str, list[Tensor]] = {kind: [] for kind in SUBLAYERS}
    hooks = [
        on_output(sublayer(model, kind, layer), kept[kind].append)
        for kind in SUBLAYERS
        for layer in range(model.n_layers)
        if kind in kinds
    ]
    places = [read - start for read in reads]
    log = [replace(objective, kind="log_probability") for objective in objectives]
    with frozen(model), torch.enable_grad(), hooked(*hooks):
        hidden = _embedded(corruption, alphas)[:, start:].requires_grad_()
        kept["state"] = []
        for layer in range(model.n_layers):
            hidden = recording.block(layer, hidden)
            kept["state"].append(hidden)
        read = read_rows(model, hidden, places, log, gradient=True)
        slope = read.gradient / (1 - read.value.exp()).clamp_min(_REST)[:, None, None].to(read.gradient)
        wanted = [values for kind in kinds for values in kept[kind]]
        gradients = iter(torch.autograd.grad(read.normed, wanted, slope))
    return {kind: _along(corruption, kind, [next(gradients) for _ in kept[kind]]) for kind in kinds}


@torch.no_grad()
def _embedded(corruption: Corruption, alphas: Tensor) -> Tensor:
    """What the first block receives with the noise scaled by 1 − α, (draws, tokens, d_model)."""
    model, kept = corruption.model, []

    def stop(args: tuple, kwargs: dict) -> None:
        kept.append((args[0] if args else kwargs["hidden_states"]).clone())
        raise Enough

    noise = (1 - alphas)[:, None, None] * corruption.noise
    tokens = torch.tensor([corruption.ids] * corruption.draws, device=model.device)
    with ending_early(), hooked(on_noise(model, noise, corruption.start), on_call(model.blocks[0], stop)):
        model.run(tokens, attention_mask=torch.ones_like(tokens))
    return kept[0]


@torch.no_grad()
def _along(corruption: Corruption, kind: str, gradients: list[Tensor]) -> Tensor:
    """Gradients of the suffix times what the noise changed there, (draws, tokens, layers)."""
    clean, corrupted = corruption.clean, corruption.corrupted
    pairs = (
        zip(clean.states[1:], corrupted.states[1:], strict=True)
        if kind == "state"
        else zip(clean.outputs[kind], corrupted.outputs[kind], strict=True)
    )
    of_layers = []
    for (one, other), gradient in zip(pairs, gradients, strict=True):
        change = (one - other)[:, corruption.first :]
        of_layers.append((gradient.reshape(change.shape) * change).sum(-1))
    gains = torch.zeros(corruption.draws, len(corruption.ids), len(gradients), dtype=torch.float64)
    gains[:, corruption.first :] = torch.stack([gain.to(of_layers[-1].device) for gain in of_layers], -1).cpu()
    return gains
