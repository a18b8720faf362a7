"""ROME's search for δ, written plainly: every step runs all rows from the first token to the last layer, forward and
backward, and makes logits at all positions, as the original does. The yardstick of `benchmarks.speed.edit`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from knowedit.edit.methods.v_star import Request, VStarSearch
from knowedit.hooks import hooked, on_output


def plain_delta(model, request: Request, layer: int, search: VStarSearch) -> tuple[Tensor, int]:
    """δ (d_model,) and the forward passes made."""
    rows = request.rows
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for r, row in enumerate(rows):
        ids[r, : len(row.ids)] = torch.tensor(row.ids)
        mask[r, : len(row.ids)] = 1
    lookups = torch.tensor([row.lookup for row in rows])
    every = torch.arange(len(rows))
    weights = list(model.hf.parameters())
    delta = torch.zeros(model.d_model, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.lr)
    seen = {}

    def add(output: Tensor) -> Tensor:
        seen.setdefault("v0", output[0, lookups[0]].detach().clone())
        output = output.clone()
        output[every, lookups] += delta
        return output

    for weight in weights:
        weight.requires_grad_(False)
    for step in range(1, search.steps + 1):
        adam.zero_grad()
        with hooked(on_output(model.down(layer), add)):
            log_p = model.hf(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        prompts = rows[:-1]
        nll = sum(-log_p[r, i, t] / len(row.reads) for r, row in enumerate(prompts) for i, t in row.reads) / len(
            prompts
        )
        essence = log_p[len(rows) - 1, lookups[-1]]
        clean = seen.setdefault("clean", essence.detach().clone())
        kl = (essence.exp() * (essence - clean)).sum()
        norm = (delta.square().sum() + 1e-30).sqrt()
        loss = nll + search.kl * kl + search.decay * norm / seen["v0"].norm() ** 2
        if step == search.steps or (search.stop_loss is not None and loss.item() < search.stop_loss):
            break
        loss.backward()
        adam.step()
        with torch.no_grad():
            longest_delta = search.clamp * seen["v0"].norm()
            if delta.norm() > longest_delta:
                delta *= longest_delta / delta.norm()
    for weight in weights:
        weight.requires_grad_(True)
    return delta.detach(), step
