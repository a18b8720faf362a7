"""What a model writes of its own accord, each prompt under an edit of its own: what teacher forcing does not show.

Teacher-forced scores say which of two answers is likelier; a user reads what the model writes. So prompts are written
on from freely: for the fact itself (`free_ES`), its paraphrases (`free_PS`), under the chat template (`chat_ES`), for
questions that follow from it (`portability`, `probe:KIND`), and for the quality of longer text (`GE`, `RS`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ...edit.edit import Edit
from ...edit.rewrite_quality import paraphrases_of
from ...errors import InputError
from ...facts import Fact
from ...hooks import measuring
from ...models.adapter import Model
from ...models.checks import quiet
from ...models.passes.batches import batches, halving, padded
from .row_edits import row_edits

BATCH_ROWS = 32
ANSWER, QUESTION, CHAT, TEXT = 10, 16, 24, 100  # new tokens; TEXT counts the prompt, as ROME does
TOP_K = 5  # of the longer text, as in ROME


def generate(
    model: Model,
    prompts: Sequence[str],
    *,
    tokens: int,
    edits: Sequence[Edit | None] | None = None,
    top_k: int | None = None,
    seed: int = 0,
    chat: bool = False,
    total: bool = False,
) -> list[str]:
    """What the model goes on with after each prompt, under `edits[i]` (None: as it is).

    **Arguments:**

    - `tokens`: new ones at most; with `total` those of the prompt count, too.
    - `top_k`: draw among so many; without it the first choices are taken. What is drawn depends on `seed` and the
      prompt alone, not on what shares its batch.
    - `chat`: the prompt is a user's message in the model's chat template.

    Raises `InputError` for a masked model, and for `chat` where there is no template.
    """
    if model.masked:
        raise InputError(f"{model.name} is a masked model, which generates no text")
    if not prompts:
        return []
    if chat and not getattr(model.tokenizer, "chat_template", None):
        raise InputError(f"the tokenizer of {model.name} has no chat template")
    edits = [None] * len(prompts) if edits is None else list(edits)
    ids = [model.encode(prompt, chat=chat).ids for prompt in prompts]
    generated = [""] * len(prompts)

    def work(batch: list[int]) -> None:
        new = [max(1, tokens - len(ids[i])) if total else tokens for i in batch]
        draws = None if top_k is None else [_generator(seed, prompts[i]) for i in batch]
        rows = _written(model, [ids[i] for i in batch], [edits[i] for i in batch], max(new), top_k, draws)
        for i, row, n in zip(batch, rows, new, strict=True):
            generated[i] = model.tokenizer.decode(row[:n], skip_special_tokens=True)

    for _ in halving(model, batches([len(row) for row in ids], rows=BATCH_ROWS), work, "prompts"):
        pass
    return generated


@dataclass(frozen=True)
class Writing:
    """What a model wrote about a fact.

    - `free`: after its prompt and its paraphrases; `chat`: the answer to its prompt under the chat template, if the
      tokenizer has one; `probes`: after each of its probes.
    - `texts`: longer ones for its quality, each with the prompt that it goes on from.
    """

    free: tuple[str, ...]
    chat: tuple[str, ...]
    probes: tuple[str, ...]
    texts: tuple[str, ...]


def writings(
    model: Model,
    facts: Sequence[Fact],
    edits: Sequence[Edit | None],
    asked: Sequence[Callable[[str], str]] | None = None,
    *,
    seed: int = 0,
) -> list[Writing]:
    """What the model writes about each fact, under that fact's edit (None: as it is).

    `asked`: for each fact, what the model is given in the place of a prompt; by default the prompt.
    """
    chat = getattr(model.tokenizer, "chat_template", None) is not None
    prompts = {
        "free": [[fact.prompt, *paraphrases_of(fact, heldout=False)] for fact in facts],
        "chat": [[f'Complete the sentence with a few words: "{fact.prompt}"'] if chat else [] for fact in facts],
        "probes": [[probe.prompt for probe in fact.probes] for fact in facts],
        "texts": [list(fact.generation) for fact in facts],
    }
    options: dict[str, dict[str, Any]] = {
        "free": {"tokens": ANSWER},
        "chat": {"tokens": CHAT, "chat": True},
        "probes": {"tokens": QUESTION},
        "texts": {"tokens": TEXT, "top_k": TOP_K, "seed": seed, "total": True},
    }
    written: dict[str, list[tuple[str, ...]]] = {}
    for kind, by_fact in prompts.items():
        owners = [i for i, of_fact in enumerate(by_fact) for _ in of_fact]
        flat = [prompt for of_fact in by_fact for prompt in of_fact]
        if asked is not None:
            flat = [asked[i](prompt) for i, prompt in zip(owners, flat, strict=True)]
        texts = iter(generate(model, flat, edits=[edits[i] for i in owners], **options[kind]))
        written[kind] = [tuple(islice(texts, len(of_fact))) for of_fact in by_fact]
    written["texts"] = [
        tuple(prompt + text for prompt, text in zip(fact.generation, texts, strict=True))
        for fact, texts in zip(facts, written["texts"], strict=True)
    ]
    return [Writing(*(written[kind][i] for kind in prompts)) for i in range(len(facts))]


def _written(model: Model, rows: Sequence, edits: Sequence[Edit | None], new: int, top_k, draws) -> list[list[int]]:
    """New token ids of each row, up to its end; prompts are padded on the left."""
    tokenizer = model.tokenizer
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    tokens, seen = padded(rows, left=True)
    config = GenerationConfig(do_sample=False, max_new_tokens=new, num_beams=1, pad_token_id=pad)
    processors = LogitsProcessorList([] if draws is None else [_Drawn(top_k, draws)])
    with row_edits(model, edits), measuring(model.hf), torch.no_grad(), quiet():
        out = model.hf.generate(
            tokens.to(model.device),
            attention_mask=seen.to(model.device),
            generation_config=config,
            logits_processor=processors,
        )
    return out[:, tokens.shape[1] :].tolist()


class _Drawn(LogitsProcessor):
    """Draws among the top k by adding Gumbel noise of each row's own: the first choice is then a sample."""

    def __init__(self, k: int, generators: Sequence[torch.Generator]):
        self.k, self.generators = k, generators

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        best, at = scores.float().topk(min(self.k, scores.shape[1]))
        noise = torch.stack([torch.rand(best.shape[1], generator=generator) for generator in self.generators])
        drawn = best - (-noise.clamp(1e-20, 1 - 1e-7).log()).log().to(best.device)
        return torch.full_like(scores, -torch.inf).scatter(1, at, drawn.to(scores.dtype))


def _generator(seed: int, prompt: str) -> torch.Generator:
    number = int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)
