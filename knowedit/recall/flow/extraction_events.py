"""Extraction: which sublayers and heads put the answer into the last token (Geva et al. 2023, section 7).

An *extraction event* is an update that by itself promotes the answer above every other token: with E the unembedding
and a what a layer's attention, its MLP or one of its heads adds to the residual stream at the read position,

    argmax E a = answer,

without the final norm, as in the paper; `normed=True` puts it in between, which in models whose final norm weighs the
directions very unequally is closer to how the update is read in the end.

What a part adds is found without knowing the family: a block is called on zeros while its projections put out that part
alone, so norms and factors on the way to the residual stream (Gemma, OLMo 2, Granite) are the block's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ...hooks import hooked, on_input, on_output
from ...models.adapter import Model
from ...models.length import check_length
from ...models.passes.batches import fitting_logits
from ...models.passes.replay import Recording, record
from ...prompts import Query

LOGIT_ROWS = 256  # updates whose logits are held at once


@dataclass(frozen=True)
class Extraction:
    """Where the answer's first token, `answer`, is the first choice of an update.

    - `attention[l]`, `mlp[l]`: whether what layer `l`'s attention, or its MLP, adds is an extraction event.
    - `heads`: the heads that are events, as (layer, head).
    - `n_heads`: heads in a layer. `normed`: whether the final norm was in between.
    """

    answer: str
    attention: tuple[bool, ...]
    mlp: tuple[bool, ...]
    heads: tuple[tuple[int, int], ...]
    n_heads: int
    normed: bool

    def layers(self, sublayer: str) -> tuple[int, ...]:
        """The layers whose `attention` or `mlp` is an event."""
        return tuple(layer for layer, event in enumerate(getattr(self, sublayer)) if event)

    def at(self, layer: int) -> list[str]:
        """The events of a layer, by name: `attention`, `mlp`, `head 3`."""
        sublayers = [name for name, events in (("attention", self.attention), ("mlp", self.mlp)) if events[layer]]
        return sublayers + [f"head {head}" for at, head in self.heads if at == layer]

    def as_dict(self) -> dict:
        return {
            "answer": self.answer,
            "attention": list(self.layers("attention")),
            "mlp": list(self.layers("mlp")),
            "heads": [list(head) for head in self.heads],
            "n_layers": len(self.mlp),
            "n_heads": self.n_heads,
            "normed": self.normed,
        }


@torch.no_grad()
def extraction(model: Model, query: Query, *, normed: bool = False) -> Extraction:
    """The extraction events of a prompt; of a target of several tokens the first is looked for.

    Raises `ModelError` for masked models, whose updates have no unembedding of their own, and `InputError` for a prompt
    longer than the context.
    """
    if model.masked:
        raise ModelError(
            f"{model.name} is a masked model, whose head transforms the last state before it is read: no single update "
            "can be read by its unembedding; take a decoder"
        )
    check_length(model, query.prompt.ids)
    answer = query.target_ids[0]
    added = updates(model, query)  # (layers, 2 + heads, d_model)
    parts = added.flatten(0, 1).split(fitting_logits(model, LOGIT_ROWS))
    events = torch.cat([_argmax(model, rows, normed) for rows in parts]) == answer
    attention, mlp, heads = events.reshape(added.shape[:2]).cpu().split([1, 1, model.n_heads], 1)
    return Extraction(
        answer=model.token(answer),
        attention=tuple(attention[:, 0].tolist()),
        mlp=tuple(mlp[:, 0].tolist()),
        heads=tuple((layer, head) for layer, head in heads.nonzero().tolist()),
        n_heads=model.n_heads,
        normed=normed,
    )


@torch.no_grad()
def updates(model: Model, query: Query) -> Tensor:
    """What each part adds at the read position, (n_layers, 2 + n_heads, d_model): attention, the MLP, then the heads.

    A head is taken without the bias of its projection. A norm behind the projection gives a head its direction, but its
    own length.
    """
    recording, kept = _run(model, query)
    return torch.stack([_added(model, recording, layer, kept) for layer in range(model.n_layers)])


def _run(model: Model, query: Query) -> tuple[Recording, dict[tuple[str, int], Tensor]]:
    """The prompt run once, with each layer's joined heads and its projections' outputs at the read position."""
    kept: dict[tuple[str, int], Tensor] = {}

    def keep(name: str, layer: int):  # a copy: Falcon adds attention's output to the MLP's in place
        return lambda tensor: kept.__setitem__((name, layer), tensor.reshape(-1, tensor.shape[-1])[-1].clone())

    hooks = []
    for layer in range(model.n_layers):
        heads = model.heads(layer)
        hooks += [on_input(heads, keep("joined", layer)), on_output(heads, keep("attention", layer))]
        hooks += [on_output(model.down(layer), keep("mlp", layer))]
    prompt = query.prompt
    with hooked(*hooks):
        return record(model, prompt.ids[: prompt.read + 1], prompt.read), kept


def _added(model: Model, recording: Recording, layer: int, kept: dict[tuple[str, int], Tensor]) -> Tensor:
    """What a block that receives zeros gives for each part alone, less what it gives for none."""
    weight = model.heads_weight(layer)
    joined = kept["joined", layer].reshape(model.n_heads, -1)
    split = torch.einsum("hw,dhw->hd", joined, weight.reshape(len(weight), *joined.shape))
    zero = torch.zeros_like(split[:1])
    attention = torch.cat([zero, kept["attention", layer][None], zero, split])
    mlp = torch.cat([zero, zero, kept["mlp", layer][None].to(zero), torch.zeros_like(split)])
    hidden = torch.zeros_like(recording.inputs[layer]).repeat(len(attention), 1, 1)
    with hooked(
        on_output(model.heads(layer), lambda out: attention.reshape(out.shape)),
        on_output(model.down(layer), lambda out: mlp.reshape(out.shape)),
    ):
        given = recording.block(layer, hidden)[:, 0]
    return given[1:] - given[:1]


def _argmax(model: Model, added: Tensor, normed: bool) -> Tensor:
    """The token that each update promotes most, whatever the bias of the unembedding."""
    read = model.normed(added) if normed else _projected(model, added)
    bias = model.unembedding.bias
    logits = model.unembedding(read)
    return (logits if bias is None else logits - bias).argmax(-1)


def _projected(model: Model, added: Tensor) -> Tensor:
    """Updates as wide as the unembedding reads them: OPT's smallest models have a projection behind the last block."""
    for path in model.layout.final:
        module = dict(model.hf.named_modules()).get(path.rstrip("?"))
        if isinstance(module, nn.Linear):
            added = nn.functional.linear(added, module.weight)
    return added
