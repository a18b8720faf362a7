"""The imputation experiment written plainly: a run of the whole model for each layer and each set S of dimensions.

What a layer's down-projection puts out at the read position is y (d_model), of which y_i ← (1/d) Σ_j y_j for i in S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from knowedit.hooks import hooked, on_output


@torch.no_grad()
def plain_imputation(model, ids, read: int, target: int, chosen: list[list[Tensor | None]]) -> list[list[float]]:
    """Log-probabilities of `target` at token `read`, by layer and set of `chosen[layer]`; None: the highest 8 %."""
    tokens = torch.tensor([list(ids)], device=model.device)
    return [
        [_run(model, layer, tokens, read, target, dimensions) for dimensions in sets]
        for layer, sets in enumerate(chosen)
    ]


def _run(model, layer: int, tokens: Tensor, read: int, target: int, dimensions: Tensor | None) -> float:
    def alter(output: Tensor) -> Tensor:
        rows = output.reshape(tokens.shape[1], -1).clone()
        y = rows[read].clone()
        top = y.argsort(descending=True)[: round(0.08 * len(y))] if dimensions is None else dimensions
        rows[read, top] = y.mean()
        return rows.reshape(output.shape)

    with hooked(on_output(model.down(layer), alter)):
        logits = model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, read]
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)[target].item()
