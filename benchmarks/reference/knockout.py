"""Attention knockout (Geva et al. 2023) written plainly: a run of the whole model for each set and window.

In the layers ℓ of a window the last token r may not attend to the tokens c of a set: M^ℓ[r, c] = −∞, added to the
attention's scores, as in the paper's own code. For decoders whose blocks take the mask that is added.
"""

from __future__ import annotations

import torch

from knowedit.hooks import hooked
from knowedit.models.adapter import Model
from knowedit.prompts import Query
from knowedit.recall.flow.knockout import source_sets, windows


@torch.no_grad()
def plain_knockout(model: Model, query: Query, width: int) -> dict[str, list[float]]:
    """The target's probability by set and layer around which the window of `width` layers lies."""
    return {
        name: [_probability(model, query, sources, layers) for layers in windows(model.n_layers, width)]
        for name, sources in source_sets(query).items()
    }


def _probability(model: Model, query: Query, sources: tuple[int, ...], layers: tuple[int, ...]) -> float:
    tokens, read = torch.tensor([query.prompt.ids]), query.prompt.read
    (target,) = query.target_ids
    lowest = torch.finfo(model.dtype).min
    mask = torch.full((tokens.shape[1], tokens.shape[1]), lowest, dtype=model.dtype).triu(1)
    mask[read, list(sources)] = lowest

    def masked(_, args, kwargs):
        return args, {**kwargs, "attention_mask": mask[None, None]}

    blocks = [model.blocks[layer] for layer in layers]
    masking = (lambda bound, b=b: b.register_forward_pre_hook(bound(masked), with_kwargs=True) for b in blocks)
    with hooked(*masking):
        logits = model.hf(input_ids=tokens).logits[0, read]
    return logits.double().softmax(-1)[target].item()
