"""What a model writes of its own accord, each prompt under an edit of its own: what teacher forcing does not show.

Teacher-forced scores say which of two answers is likelier; a user reads what the model writes. So prompts are written
on from freely: for the fact itself (`free_ES`), its paraphrases (`free_PS`), under the chat template (`chat_ES`), for
questions that follow from it (`portability`, `probe:KIND`), and for the quality of longer text (`GE`, `RS`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ...edit.edit import Edit
from ...edit.rewrite_quality import paraphrases_of
from ...errors import InputError
from ...facts import Fact
from ...models.adapter import Model
from ...models.checks import quiet
from ...models.passes.batches import batches, padded
from .references import References
from .row_edits import row_edits
from .text_metrics import begins_with, generation_entropy, holds

BATCH_ROWS = 32
ANSWER, QUESTION, CHAT, TEXT = 10, 16, 24, 100  # new tokens; TEXT counts the prompt, as ROME does
TOP_K = 5  # of the longer text, as in ROME
LOCALITY = "locality"  # kind of probes that ask for what should not have changed


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
    found = [""] * len(prompts)
    for batch in batches([len(row) for row in ids], rows=BATCH_ROWS):
        new = [max(1, tokens - len(ids[i])) if total else tokens for i in batch]
        draws = None if top_k is None else [_generator(seed, prompts[i]) for i in batch]
        rows = _written(model, [ids[i] for i in batch], [edits[i] for i in batch], max(new), top_k, draws)
        for i, row, n in zip(batch, rows, new, strict=True):
            found[i] = model.tokenizer.decode(row[:n], skip_special_tokens=True)
    return found


def generation_metrics(
    model: Model,
    facts: Sequence[Fact],
    edits: Sequence[Edit | None],
    *,
    seed: int = 0,
    references: References | None = None,
) -> list[dict[str, float | None]]:
    """`free_ES`, `free_PS`, `chat_ES`, `portability`, `probe:KIND` and `GE` of each fact under its edit, and `RS` where
    there are `references`; all in [0, 1] but GE, which is in bits.

    The answer that counts is the fact's `target_new`, for probes any of theirs. A free answer must come at once; under
    the chat template, and to a question, it may come somewhere in the first words.
    """
    asked = [_Asked(model, fact) for fact in facts]
    said = {}
    for name, tokens, options in (
        ("free", ANSWER, {}),
        ("probe", QUESTION, {}),
        ("chat", CHAT, {"chat": True}),
        ("text", TEXT, {"top_k": TOP_K, "seed": seed, "total": True}),
    ):
        prompts = [(i, prompt) for i, a in enumerate(asked) for prompt in a.prompts[name]]
        texts = generate(model, [p for _, p in prompts], tokens=tokens, edits=[edits[i] for i, _ in prompts], **options)
        said[name] = iter(texts)
    return [_measured(a, said, references) for a in asked]


class _Asked:
    """What a fact's prompts are, by how they are asked."""

    def __init__(self, model: Model, fact: Fact):
        self.fact = fact
        chat = [f'Complete the sentence with a few words: "{fact.prompt}"']
        self.prompts = {
            "free": [fact.prompt, *paraphrases_of(fact, heldout=False)],
            "probe": [probe.prompt for probe in fact.probes],
            "chat": chat if getattr(model.tokenizer, "chat_template", None) else [],
            "text": list(fact.generation),
        }


def _measured(asked: _Asked, said: dict[str, Iterator[str]], references: References | None) -> dict[str, float | None]:
    fact = asked.fact
    texts = {name: [next(said[name]) for _ in prompts] for name, prompts in asked.prompts.items()}
    first, *others = (begins_with(text, fact.target_new) for text in texts["free"])
    found: dict[str, float | None] = {"free_ES": float(first), "free_PS": _mean(others)}
    found["chat_ES"] = _mean([holds(text, fact.target_new) for text in texts["chat"]])
    by_kind: dict[str, list[bool]] = {}
    for probe, text in zip(fact.probes, texts["probe"], strict=True):
        by_kind.setdefault(probe.kind, []).append(any(holds(text, answer) for answer in probe.answers))
    found["portability"] = _mean([right for kind, some in by_kind.items() if kind != LOCALITY for right in some])
    found |= {f"probe:{kind}": _mean(some) for kind, some in by_kind.items()}
    whole = [f"{prompt}{text}" for prompt, text in zip(fact.generation, texts["text"], strict=True)]
    found["GE"] = generation_entropy(whole)
    return found if references is None else {**found, "RS": references.score(whole, fact)}


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _written(model: Model, rows: Sequence, edits: Sequence[Edit | None], new: int, top_k, draws) -> list[list[int]]:
    """New token ids of each row, up to its end; prompts are padded on the left."""
    tokenizer = model.tokenizer
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    tokens, seen = padded(rows, left=True)
    config = GenerationConfig(do_sample=False, max_new_tokens=new, num_beams=1, pad_token_id=pad)
    processors = LogitsProcessorList([] if draws is None else [_Drawn(top_k, draws)])
    with row_edits(model, edits), torch.no_grad(), quiet():
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
