"""ROME's search for v* written plainly, as the original does it (Meng et al. 2022, eq. 4): δ is added to the output of
the edited layer's down-projection at the lookup position, and Adam minimises

    mean_j −log P(target | x_j + prompt) / |target|  +  λ_KL · KL(P_δ ‖ P)(essence)  +  λ_decay · ‖δ‖ / ‖v₀‖²

Every step runs all rows from the first token to the last layer, forward and backward, with logits at all positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from knowedit.edit.methods.search_rows import Request
from knowedit.edit.methods.v_star import Value, VStarSearch
from knowedit.hooks import hooked, on_input, on_output
from knowedit.models.adapter import Model


def plain_v_star(model: Model, request: Request, layer: int, search: VStarSearch) -> Value:
    """δ, v₀ and the keys of one request, in a decoder; the target's `probability` and `clamped` are not measured."""
    *prompts, essence = rows = request.rows
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for r, row in enumerate(rows):
        ids[r, : len(row.ids)] = torch.tensor(row.ids, device=model.device)
        mask[r, : len(row.ids)] = 1
    lookups = torch.tensor([row.lookup for row in rows], device=model.device)
    every = torch.arange(len(rows), device=model.device)
    weights = list(model.hf.parameters())
    delta = torch.zeros(model.d_model, device=model.device, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=search.lr)
    first = {}  # what the model as it is has: keys, v0, and the essence's log-probabilities

    def look(x: Tensor) -> None:
        first.setdefault("keys", x.reshape(*ids.shape, -1)[every, lookups][: len(prompts)].detach().clone())

    def add(output: Tensor) -> Tensor:
        first.setdefault("v0", output[0, lookups[0]].detach().clone())
        output = output.clone()
        output[every, lookups] += delta.to(output)
        return output

    for weight in weights:
        weight.requires_grad_(False)
    for step in range(1, search.steps + 1):
        adam.zero_grad()
        with hooked(on_input(model.down(layer), look), on_output(model.down(layer), add)):
            log_p = model.hf(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
        nlls = [-log_p[r, i, t] / len(row.reads) for r, row in enumerate(prompts) for i, t in row.reads]
        after = log_p[len(prompts), essence.lookup]
        before = first.setdefault("essence", after.detach().clone())
        kl = (after.exp() * (after - before)).sum()
        norm = (delta.square().sum() + 1e-30).sqrt()
        loss = sum(nlls) / len(prompts) + search.kl * kl + search.decay * norm / first["v0"].float().norm() ** 2
        if step == search.steps or (search.stop_loss is not None and loss.item() < search.stop_loss):
            break
        loss.backward()
        adam.step()
        with torch.no_grad():
            longest_delta = search.clamp * first["v0"].float().norm()
            if delta.norm() > longest_delta:
                delta *= longest_delta / delta.norm()
    for weight in weights:
        weight.requires_grad_(True)
    return Value(delta.detach(), first["v0"], first["keys"], request.rows[0].lookup, loss.item(), 0.0, step, False)
