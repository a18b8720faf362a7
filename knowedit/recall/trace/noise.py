"""The noise that makes a model forget who is asked about (Meng et al. 2022, section 2.1).

The embeddings of the subject's tokens are corrupted,

    h⁰_i + ε,      ε ~ N(0, ν²),      ν = 3σ,

σ being the standard deviation of the numbers in the embeddings of many subjects. Noise is added to what the token
embedding module gives: before positions, norms or factors, as in the paper's code.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ...errors import InputError
from ...hooks import Register, on_output
from ...models.adapter import Model
from ...sources import builtin_facts


@torch.no_grad()
def embedding_spread(model: Model, subjects: Iterable[str] | None = None) -> float:
    """σ: the standard deviation over all numbers in the embeddings of `subjects`, by default the built-in facts'.

    Every subject counts once, tokenized by itself. Raises `InputError` where there is none.
    """
    chosen = {fact.subject for fact in builtin_facts()} if subjects is None else set(subjects)
    rows = model.tokenizer(sorted(chosen), add_special_tokens=False)["input_ids"] if chosen else []
    ids = [token for row in rows for token in row]
    if not ids:
        raise InputError("no subjects were given to measure the spread of embeddings on; give some")
    embedded = model.hf.get_input_embeddings()(torch.tensor([ids], device=model.device))
    return embedded.double().std(correction=0).item()


def draw_noise(model: Model, level: float, draws: int, tokens: int, seed: int) -> Tensor:
    """`draws` samples of noise for `tokens` tokens, (draws, tokens, width of an embedding), in float32.

    The first draws of more are the same as those of fewer.
    """
    width = model.hf.get_input_embeddings().embedding_dim
    generator = torch.Generator().manual_seed(seed)
    return level * torch.stack([torch.randn(tokens, width, generator=generator) for _ in range(draws)])


def on_noise(model: Model, noise: Tensor, start: int) -> Register:
    """Add `noise` (rows, tokens, width) to the embeddings from token `start` on. For `hooks.hooked`."""

    def corrupt(embedded: Tensor) -> Tensor:
        there = noise[:, : max(0, embedded.shape[1] - start)].to(embedded)
        corrupted = embedded.clone()
        corrupted[:, start : start + there.shape[1]] += there
        return corrupted

    return on_output(model.hf.get_input_embeddings(), corrupt)
