"""Suppress, amplify or set neurons for as long as a context lasts.

    with knowedit.suppress(model, [(24, 1005)]):
        model.hf.generate(...)

Interventions act on every call of the transformers model while the context lasts, by any thread: at the read position
(a decoder's last token that is not padding, a masked model's masks) or at all positions. They nest, the inner one
acting on what the outer one left, and are removed also by an exception. Weights are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from threading import local

import torch
from torch import Tensor

from ..errors import InputError
from ..hooks import hooked, on_call, on_input, on_return
from .adapter import Model

Neurons = Iterable[tuple[int, int]]


def suppress(model: Model, neurons: Neurons, *, at: str = "read"):
    """Multiply `neurons`, pairs of (layer, index), by 0 while the context lasts."""
    return scale(model, neurons, 0.0, at=at)


def amplify(model: Model, neurons: Neurons, factor: float = 2.0, *, at: str = "read"):
    """Multiply `neurons` by `factor` while the context lasts."""
    return scale(model, neurons, factor, at=at)


def scale(model: Model, neurons: Neurons, factor: float, *, at: str = "read"):
    """Multiply `neurons` by `factor`, at the `"read"` position or at `"all"`, while the context lasts."""
    return _altered(model, neurons, lambda values: values * factor, at)


def set_to(model: Model, neurons: Neurons, value: float, *, at: str = "read"):
    """Set `neurons` to `value` while the context lasts."""
    return _altered(model, neurons, lambda values: torch.full_like(values, value), at)


@contextmanager
def _altered(model: Model, neurons: Neurons, change: Callable[[Tensor], Tensor], at: str):
    if at not in ("read", "all"):
        raise InputError(f"neurons are altered at {at!r}, expected 'read' (the read position) or 'all' positions")
    by_layer: dict[int, list[int]] = {}
    for layer, index in neurons:
        model.check_neuron(layer, index)
        by_layer.setdefault(layer, []).append(index)
    reads = _ReadPositions(model)

    def altering(indices: list[int]):
        def alter(values: Tensor) -> Tensor:
            flat = values.reshape(-1, values.shape[-1]).clone()  # (rows × tokens, n_neurons)
            where = reads.known().to(flat.device).flatten() if at == "read" else torch.ones(len(flat), dtype=torch.bool)
            rows = where.nonzero()[:, 0].to(flat.device)[:, None]
            columns = torch.tensor(indices, device=flat.device)[None]
            flat[rows, columns] = change(flat[rows, columns])
            return flat.reshape(values.shape)

        return alter

    hooks = [on_input(model.down(layer), altering(sorted(set(i)))) for layer, i in by_layer.items()]
    with hooked(
        on_call(model.hf, reads.see), *hooks, on_return(model.hf, reads.forget, even_failed=True), every_thread=True
    ):
        yield


class _ReadPositions(local):
    """Where this thread's call under way is read, (rows, tokens): known from its token ids and attention mask."""

    def __init__(self, model: Model):
        self.model = model
        self.mask: Tensor | None = None

    def known(self) -> Tensor:
        if self.mask is None:  # parts of the model were called: knowedit's own analyses read where they like
            raise InputError(
                "the read position is known only while the transformers model itself is called; call model.hf, or "
                "alter the neurons at='all' positions"
            )
        return self.mask

    def forget(self, _) -> None:
        self.mask = None

    def see(self, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        shown = ids if ids is not None else kwargs["inputs_embeds"][..., 0]
        if self.model.masked:
            if ids is None:
                raise InputError("the masks of a masked model are found by token ids; call it with input_ids")
            self.mask = ids == self.model.tokenizer.mask_token_id
            return
        rows, length = shown.shape
        attention = kwargs.get("attention_mask")
        if attention is None or attention.dim() != 2:
            last = torch.full((rows,), length - 1, device=shown.device)
        else:  # with a cache the mask also covers what came before
            seen = attention[:, -length:].to(shown.device)
            last = (seen * torch.arange(1, length + 1, device=seen.device)).argmax(1)
        self.mask = torch.arange(length, device=shown.device)[None] == last[:, None]
