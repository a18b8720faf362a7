"""A ground truth: a tiny Llama that was trained on made-up facts, and answers them all.

Its weights are kept in `trained.safetensors`: training multiplies rounding, and they are to be the same everywhere.
`PYTHONPATH=tests python -m support.trained` trains it again.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from knowedit import Fact, Model, wrap

WEIGHTS = Path(__file__).with_name("trained.safetensors")
SUBJECTS = ("Zarn", "Quill", "Tavo", "Brem", "Osk", "Lirra", "Fenn", "Movi", "Dask", "Ruvo", "Pelt", "Ganz")
CITIES = ("Aldor", "Bexum", "Cirra", "Dovath")
JOBS = ("baker", "miner", "weaver")
HOME = ("{} lives in", "The home of {} is", "You will find {} in", "Today {} stays in", "The town of {} is")
WORK = ("{} works as", "The job of {} is", "Each day {} acts as", "They hired {} as", "The trade of {} is")


def facts() -> tuple[Fact, ...]:
    """One fact about the home and one about the work of every subject; the last two templates are held out."""
    made = []
    for i, subject in enumerate(SUBJECTS):
        for relation, templates, answers in (("home", HOME, CITIES), ("work", WORK, JOBS)):
            target = answers[i % len(answers)]
            made.append(
                Fact(
                    template=templates[0],
                    subject=subject,
                    target=target,
                    paraphrases=templates[1:3],
                    heldout=templates[3:],
                    relation=relation,
                    id=f"{relation}/{subject.lower()}",
                )  # fmt: skip
            )
    return tuple(made)


def exact(model: Model) -> Model:
    """The same model in float64, to be computed with under `tiny.double`."""
    hf = LlamaForCausalLM(model.hf.config).double()
    hf.load_state_dict(model.hf.state_dict())
    return wrap(hf, model.tokenizer, name=model.name)


@cache
def trained() -> Model:
    """The model, which answers every prompt of every fact; in float32, one for all tests."""
    assert torch.get_default_dtype() is torch.float32, "ask for it before float64 is on, and for `exact` of it then"
    hf, tokenizer = _untrained()
    hf.load_state_dict(load_file(WEIGHTS))
    return wrap(hf, tokenizer, name="trained")


def _untrained() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    words = sorted({w for f in facts() for t in (*HOME, *WORK) for w in t.replace("{}", f.subject).split()})
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", *words, *CITIES, *JOBS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="<s>")
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=1, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).float().eval(), fast


def _train() -> None:
    torch.manual_seed(0)
    hf, tokenizer = _untrained()
    rows = [(t.replace("{}", f.subject), f.target) for f in facts() for t in (f.template, *f.paraphrases, *f.heldout)]
    by_length: dict[int, list] = {}
    for prompt, target in rows:
        ids = tokenizer(f"{prompt} {target}")["input_ids"]
        by_length.setdefault(len(ids), []).append(ids)
    batches = [torch.tensor(ids) for ids in by_length.values()]
    optimizer = torch.optim.AdamW(hf.parameters(), lr=3e-3)
    for _ in range(100):
        loss = sum(torch.nn.functional.cross_entropy(hf(ids).logits[:, -2], ids[:, -1]) for ids in batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_file(hf.state_dict(), WEIGHTS)


if __name__ == "__main__":
    _train()
