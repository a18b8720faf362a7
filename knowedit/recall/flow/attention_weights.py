"""Where attention heads look: how much of what a head reads at a position comes from each token before it.

The weights are softmax(Q Kᵀ / √d), which only the plain ("eager") kernel of transformers gives out: the model runs with
it once, and has its own kernel again afterwards. Weights tell where a head looks, not what it moves (Jain and Wallace
2019): beside them belongs what the head adds to the answer (`recall/lens/decomposition.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ModelError
from ...hooks import hooked, on_return
from ...models.adapter import Model
from ...models.checks import quiet
from ...models.length import check_length
from ...prompts import Prompt


@torch.no_grad()
def attention_pattern(model: Model, prompt: Prompt, layer: int, position: str | int = "read") -> Tensor:
    """How much each head of `layer` looks at each token from `position`, (n_heads, tokens), each row a distribution.

    Raises `ModelError` for a layer without attention, and for a model that gives no weights out.
    """
    attention = model.attention(layer)
    check_length(model, prompt.ids)
    place = prompt.position(position)
    tokens = torch.tensor([prompt.ids], device=model.device)
    kernel = getattr(model.hf.config, "_attn_implementation", None)
    returned: list = []
    with quiet(), hooked(on_return(attention, returned.append)):
        try:
            model.hf.set_attn_implementation("eager")
            model.run(tokens, attention_mask=torch.ones_like(tokens))
        except (ValueError, NotImplementedError):
            returned.clear()
        finally:
            if kernel is not None:
                model.hf.set_attn_implementation(kernel)
    weights = [part for part in _parts(returned) if part.shape == (1, model.n_heads, len(prompt.ids), len(prompt.ids))]
    if weights:
        pattern = weights[0][0, :, place].float().cpu()
        if model.masked or not pattern[:, place + 1 :].any():  # Falcon's look at what comes later
            return pattern
    raise ModelError(f"{model.name} does not give out where its heads look; look at what they add instead")


def _parts(returned: list) -> list[Tensor]:
    """The tensors that the attention returned, its output among them."""
    return [part for output in returned if isinstance(output, tuple) for part in output if torch.is_tensor(part)]
