"""A tiny BERT that was trained on the made-up facts of `trained`, and fills them all in.

Its weights are kept in `trained_masked.safetensors`. `PYTHONPATH=tests python -m support.trained_masked` trains it
again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from support import trained
from support.trained import CITIES, HOME, JOBS, WORK
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from knowedit import Fact, Model, wrap

WEIGHTS = Path(__file__).with_name("trained_masked.safetensors")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def facts() -> tuple[Fact, ...]:
    """Those of `trained`, with a mask where the answer belongs."""
    masked = lambda templates: tuple(f"{template} [MASK]" for template in templates)  # noqa: E731
    return tuple(
        replace(f, template=f"{f.template} [MASK]", paraphrases=masked(f.paraphrases), heldout=masked(f.heldout))
        for f in trained.facts()
    )


@cache
def trained_masked() -> Model:
    """The model, which answers every prompt of every fact; in float32, one for all tests."""
    assert torch.get_default_dtype() is torch.float32, "ask for it before float64 is on"
    hf, tokenizer = _untrained()
    load_model(hf, WEIGHTS)
    return wrap(hf, tokenizer, name="trained-masked")


def _untrained() -> tuple[BertForMaskedLM, PreTrainedTokenizerFast]:
    words = sorted({w for f in facts() for t in (*HOME, *WORK) for w in t.replace("{}", f.subject).split()})
    vocabulary = {w: i for i, w in enumerate([*SPECIAL, *words, *CITIES, *JOBS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=32, pad_token_id=0, initializer_range=0.2,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForMaskedLM(config).float().eval(), fast


def _train() -> None:
    torch.manual_seed(0)
    hf, tokenizer = _untrained()
    model = wrap(hf, tokenizer)
    asked: dict[int, list] = {}
    for fact in facts():
        for template in (fact.template, *fact.paraphrases, *fact.heldout):
            query = model.query_of(fact, prompt=template.replace("{}", fact.subject))
            asked.setdefault(len(query.prompt.ids), []).append((query.prompt.ids, query.prompt.read, *query.target_ids))
    batches = [(torch.tensor([ids for ids, _, _ in rows]), *torch.tensor([row[1:] for row in rows]).T)
               for rows in asked.values()]  # fmt: skip
    optimizer = torch.optim.AdamW(hf.parameters(), lr=3e-3, weight_decay=1.0)
    for _ in range(100):
        loss = sum(
            torch.nn.functional.cross_entropy(hf(ids).logits[torch.arange(len(ids)), read], target)
            for ids, read, target in batches
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_model(hf, str(WEIGHTS))
    WEIGHTS.chmod(0o644)


if __name__ == "__main__":
    _train()
