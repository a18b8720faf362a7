"""Where a model's parameters and its arithmetic are: MLPs, attention, embeddings.

For a loaded model, or from a config alone (the model is built on the meta device, without weights). Projections of
a block are counted with their biases as its MLP's or its attention's; a tied unembedding is counted once; norms and
what else is left are "other". Operations are those of one forward pass over a sequence of T tokens, a multiply-add
counted as two, by token:

    projection (in → out)     2 · in · out                   unembedding    2 · d_model · vocabulary
    attention scores          2 · 2 · T · heads · width      query by key, and weights by value, for all T keys

The scores are those of the plain product, which a causal mask then halves in effect; a sliding window makes them
fewer. Norms, nonlinearities, biases and softmax are left out, as usual.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from ..display.result import Record, Table
from ..errors import InputError, ModelError, did_you_mean
from ..models.adapter import Model
from ..models.checks import check_config, one_line, quiet
from ..models.conversion import ALIASES
from ..models.expansion import projections
from ..models.layouts import Layout, find_layout, heads_path
from ..models.loading import auto_class, config_of

SEQUENCE_TOKENS = 1024
SHAPES: dict[str, dict[str, Any]] = {
    "gpt3": dict(model_type="gpt2", n_embd=12_288, n_layer=96, n_head=96, n_positions=2048, vocab_size=50_257),
    "gpt2": dict(model_type="gpt2"),
    "gpt2-xl": dict(model_type="gpt2", n_embd=1600, n_layer=48, n_head=25),
    "gptj-6b": dict(model_type="gptj"),
    "llama-2-7b": dict(model_type="llama"),
}
"""Published shapes by name; what is not said is as transformers has it."""

PARTS = {
    "mlp": "MLPs",
    "attention": "attention",
    "scores": "attention scores",
    "embeddings": "embeddings",
    "unembedding": "unembedding",
    "other": "norms and others",
}


@dataclass(frozen=True)
class Share:
    """One part: its parameters, and its operations for one token of a sequence."""

    parameters: int
    flops: int


@dataclass(frozen=True)
class Accounting(Record):
    """A model's parts: `mlp`, `attention` (projections), `scores`, `embeddings`, `unembedding`, `other`.

    - `tied`: the unembedding is the token embedding, which is counted under `embeddings`.
    - `tokens`: the length of the sequence that the operations are for.
    """

    model: str
    layers: int
    d_model: int
    n_neurons: int
    tied: bool
    tokens: int
    parts: dict[str, Share]

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts.values())

    @property
    def flops(self) -> int:
        """Of one token of the sequence."""
        return sum(part.flops for part in self.parts.values())

    def as_dict(self) -> dict:
        return super().as_dict() | {"parameters": self.parameters, "flops": self.flops}

    def table(self) -> Iterator[str | Table]:
        """Parameters and operations of each part, with their shares."""
        yield f"Accounting of {self.model}: {self.layers} layers, {self.d_model} → {self.n_neurons} → {self.d_model}"
        rows = []
        for name, part in self.parts.items():
            parameters, flops = part.parameters / self.parameters, part.flops / self.flops
            rows.append((PARTS[name], f"{part.parameters:,}", f"{parameters:.1%}", f"{part.flops:,}", f"{flops:.1%}"))
        rows.append(("all", f"{self.parameters:,}", "", f"{self.flops:,}", ""))
        yield Table(("part", "parameters", "", f"operations a token, {self.tokens} tokens long", ""), rows)
        if self.tied:
            yield "The unembedding is the token embedding, and is counted there."

    def figure(self, path: str | Path) -> Path:
        """Draw the shares of all parts."""
        from .figure import accounting_figure

        return accounting_figure(path, self)


def account(model: Model, tokens: int = SEQUENCE_TOKENS) -> Accounting:
    """The parts of a loaded model, with its operations for a sequence of `tokens`."""
    return _account(model.hf, model.layout, model.name, tokens)


def account_config(name: str, tokens: int = SEQUENCE_TOKENS) -> Accounting:
    """The same from a config alone: one of `SHAPES`, a config.json or a folder with one, or whatever `load` takes.

    Raises `ModelError` for a config that is none of a supported model.
    """
    _check_tokens(tokens)
    config = _config(name)
    check_config(config, name)
    auto = auto_class(config, name)
    try:
        with quiet(), torch.device("meta"):
            hf = auto.from_config(config)
    except Exception as error:  # a config from outside may ask for anything
        raise ModelError(f"no model can be built from the config {name!r}: {one_line(error)}") from error
    return _account(hf, find_layout(hf), name, tokens)


def _config(name: str):
    if name in SHAPES:
        return AutoConfig.for_model(**SHAPES[name])
    path = Path(os.path.expanduser(name))
    path = path / "config.json" if path.is_dir() else path
    if path.suffix == ".json" and path.is_file():
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return AutoConfig.for_model(**{"model_type": "", **record})
        except Exception as error:  # whatever is in there
            raise ModelError(f"{str(path)!r} is no config of a transformers model: {one_line(error)}") from None
    if name not in ALIASES and "/" not in name and not path.exists():
        known = (*SHAPES, *ALIASES)
        raise InputError(
            f"no config is called {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}, "
            "or give a config.json, a folder or a Hub id"
        )
    return config_of(name)


def _account(hf: nn.Module, layout: Layout, name: str, tokens: int) -> Accounting:
    _check_tokens(tokens)
    blocks = hf.get_submodule(layout.blocks)
    weights = {"mlp": 0, "attention": 0}
    flops = {"mlp": 0, "attention": 0}
    scores = 0
    for layer, block in enumerate(blocks):
        for part, modules in projections(hf, layout, layer).items():
            weights[part] += sum(p.numel() for module in modules.values() for p in module.parameters())
            flops[part] += sum(2 * module.weight.numel() for module in modules.values())
        attention = block.get_submodule(layout.attention)
        joined = attention.get_submodule(heads_path(layout, attention))
        scores += 4 * tokens * (joined.nx if isinstance(joined, Conv1D) else joined.in_features)
    unembedding = hf.get_output_embeddings()
    embeddings = {id(p): p.numel() for p in _embeddings(hf)}
    tied = id(unembedding.weight) in embeddings
    own = 0 if tied else unembedding.weight.numel()
    own += unembedding.bias.numel() if getattr(unembedding, "bias", None) is not None else 0
    total = sum(p.numel() for p in {id(p): p for p in hf.parameters()}.values())
    named = sum(weights.values()) + sum(embeddings.values()) + own
    down = blocks[0].get_submodule(layout.down)
    d_model, n_neurons = (down.nf, down.nx) if isinstance(down, Conv1D) else (down.out_features, down.in_features)
    return Accounting(
        model=name,
        layers=len(blocks),
        d_model=d_model,
        n_neurons=n_neurons,
        tied=tied,
        tokens=tokens,
        parts={
            "mlp": Share(weights["mlp"], flops["mlp"]),
            "attention": Share(weights["attention"], flops["attention"]),
            "scores": Share(0, scores),
            "embeddings": Share(sum(embeddings.values()), 0),
            "unembedding": Share(own, 2 * unembedding.weight.numel()),
            "other": Share(total - named, 0),
        },
    )


def _embeddings(hf: nn.Module) -> list[nn.Parameter]:
    """The weights of token, position and type embeddings, each once."""
    return list({id(m.weight): m.weight for m in hf.modules() if isinstance(m, nn.Embedding)}.values())


def _check_tokens(tokens: int) -> None:
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise InputError(f"a sequence of {tokens!r} tokens is asked for, expected 1 or more")
