"""The paper's loop for causal tracing (Meng et al. 2022, section 2.1), written plainly: of a token and a layer

    indirect effect = P(target | subject corrupted, clean h of the token and layer) − P(target | subject corrupted)

For each token and layer the whole prompt goes through the whole model, one clean row and one for each draw of noise;
what is restored is copied out of the clean row as the model runs, and all positions get their logits. This is the
algorithm of the paper's own code (`trace_with_patch`), for any wrapped model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from knowedit.hooks import hooked, on_output


def tables(model, ids, reads, targets, noise: Tensor, start: int, window: int, kinds, severed=None, tokens=None):
    """P of `targets` at `reads` (their product) clean, corrupted, and by kind restored (tokens, n_layers)."""
    clean, corrupted = probabilities(model, ids, reads, targets, noise, start, {}, {})
    restored_p = {}
    for kind in kinds:
        rows = []
        for token in range(len(ids)) if tokens is None else tokens:
            row = []
            for layer in range(model.n_layers):
                layers = [layer]
                if kind != "state":
                    layers = range(max(0, layer - window // 2), min(model.n_layers, layer - (-window // 2)))
                restored = {(kind, at): [token] for at in layers}
                kept = {(severed, at): [token] for at in range(model.n_layers)} if severed else {}
                row.append(probabilities(model, ids, reads, targets, noise, start, restored, kept)[1])
            rows.append(row)
        restored_p[kind] = torch.tensor(rows, dtype=torch.float64)
    return clean, corrupted, restored_p


@torch.no_grad()
def probabilities(model, ids, reads, targets, noise: Tensor, start: int, restored: dict, kept: dict):
    """P clean and, the mean over all draws, corrupted with `restored` put back: {(kind, layer): tokens}.

    `kept` keeps its corrupted values: {(kind, layer): tokens}.
    """
    rows = torch.tensor([list(ids)] * (len(noise) + 1), device=model.device)
    first: dict = {}
    for restoring in (False, True) if kept else (True,):  # the first pass only looks at what the corrupted run has
        hooks = [on_output(model.hf.get_input_embeddings(), lambda x: _noisy(x, noise, start))]
        for place in {**restored, **kept}:
            tokens = (restored.get(place, []), kept.get(place, [])) if restoring else ([], [])
            hooks.append(on_output(_module(model, *place), _patch(len(rows), place, *tokens, first, not restoring)))
        with hooked(*hooks):
            logits = model.hf(input_ids=rows, attention_mask=torch.ones_like(rows)).logits
    p = logits[:, list(reads)].softmax(-1)[:, range(len(reads)), list(targets)].prod(1)
    return p[0].item(), p[1:].double().mean().item()


def _noisy(embedded: Tensor, noise: Tensor, start: int) -> Tensor:
    embedded = embedded.clone()
    embedded[1:, start : start + noise.shape[1]] += noise.to(embedded)
    return embedded


def _module(model, kind: str, layer: int):
    if kind == "state":
        return model.blocks[layer]
    return model.down(layer) if kind == "mlp" else model.heads(layer)


def _patch(rows: int, place, restored, kept, first: dict, looking: bool):
    def patch(x: Tensor) -> Tensor:
        by_row = x.reshape(rows, -1, x.shape[-1]).clone()
        if looking:
            first[place] = by_row.clone()
        for token in restored:
            by_row[1:, token] = by_row[0, token]
        for token in kept:
            by_row[1:, token] = first[place][1:, token]
        return by_row.reshape(x.shape)

    return patch
