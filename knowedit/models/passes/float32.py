"""Weights in half precision, computed with as float32: F rounded to 8 bits has no gradient to speak of.

    with in_float32(model):
        ...                     # all that the model computes is float32, to its rounding

Elsewhere they are copied, at four bytes a weight. On a CUDA device weights in bfloat16 stay as they are: a number in
float32 is the sum of three in bfloat16, so

    x W = x₁ W + x₂ W + x₃ W        products in bfloat16, added up in float32

is one product of three times as many rows, on the units that a card has for it: faster than one in float32, and no
weight is copied (Henry, Tang and Heinecke 2019, arXiv 1904.06376).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...hooks import differentiable
from ..adapter import Model

HALF = (torch.float16, torch.bfloat16)
AMPERE = (8, 0)  # the first cards with units for bfloat16
PARTS = 3
"""Numbers in bfloat16, of 8 bits each, that have the 24 bits of a float32 together."""


@contextmanager
def in_float32(model: Model) -> Iterator[None]:
    """Weights in half precision are float32 while the context lasts, and the very same tensors again behind it.

    Packed weights, and those that are kept elsewhere, stay as they are. Whoever reads a weight meanwhile, and does not
    call its module, takes it from `adapter.weight_of`.
    """
    weights = list(model.hf.parameters())
    plain = all(w.is_floating_point() and not w.is_meta and not w.is_inference() for w in weights)
    tensors = [*weights, *model.hf.buffers()] if plain else []
    kept = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in HALF]
    split = _split_modules(model.hf) if plain else {}
    left = {id(module.weight) for module in split}
    try:
        with differentiable():
            for module, forward in split.items():
                module.forward = forward
                module._kept_half = module.weight.data
            for tensor, data in kept:
                tensor.data = _nothing(data) if id(tensor) in left else data.float()
        yield
    finally:
        for tensor, data in kept:
            tensor.data = data
        for module in split:
            del module.forward, module._kept_half


def _split_modules(hf: nn.Module) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """What computes in float32 with weights in bfloat16, of all modules that can, on a CUDA device."""
    owners: dict[int, list[nn.Module]] = defaultdict(list)
    for module in hf.modules():
        for weight in module.parameters(recurse=False):
            owners[id(weight)].append(module)
    last = _Last()
    return {
        module: _forward(module, last)
        for module in hf.modules()
        if _splits(module) and all(map(_splits, owners[id(module.weight)]))
    }


def _splits(module: nn.Module) -> bool:
    known = type(module) in (nn.Linear, Conv1D, nn.Embedding) and not hasattr(module, "_hf_hook")
    weight = module.weight if known else None
    return known and weight.dtype == torch.bfloat16 and on_units(weight) and "forward" not in vars(module)


def on_units(weight: Tensor) -> bool:
    """Whether the device multiplies numbers in bfloat16 and adds them up in float32 in one call."""
    if weight.device.type != "cuda" or torch.version.cuda is None or not hasattr(torch.ops.aten.mm, "dtype"):
        return False
    return torch.cuda.get_device_capability(weight.device) >= AMPERE


def _nothing(data: Tensor) -> Tensor:
    """Takes the place of a weight that is put aside: of no size, and what reads it is NaN."""
    return data.new_full((), torch.nan, dtype=torch.float32).expand_as(data)


def _forward(module: nn.Module, last: _Last) -> Callable[[Tensor], Tensor]:
    weight = module.weight.data
    if isinstance(module, nn.Embedding):
        return lambda ids: nn.functional.embedding(ids, weight).float()
    matrix = weight if isinstance(module, Conv1D) else weight.T

    def forward(x: Tensor) -> Tensor:
        y = _Product.apply(x, matrix, last)
        return y if module.bias is None else y + module.bias

    return forward


class _Product(torch.autograd.Function):
    """x (…, in) times a matrix (in, out) in bfloat16, in float32."""

    @staticmethod
    def forward(ctx, x: Tensor, matrix: Tensor, last: _Last) -> Tensor:
        ctx.matrix = matrix
        return _times(last.split(x), matrix).reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _times(_split(gradient), ctx.matrix.T).reshape(*gradient.shape[:-1], -1), None, None


class _Last:
    """What was split last: several projections read the same tensor one after another."""

    def __init__(self):
        self.of: tuple[Tensor, int] | None = None
        self.parts: Tensor | None = None

    def split(self, x: Tensor) -> Tensor:
        if self.of is None or self.of[0] is not x or self.of[1] != x._version:
            self.of, self.parts = (x, x._version), _split(x)
        return self.parts


def _split(x: Tensor) -> Tensor:
    """The `PARTS` numbers in bfloat16 whose sum each number of x (…, in) is, (PARTS, rows, in)."""
    rest = x.reshape(-1, x.shape[-1])
    parts = torch.empty(PARTS, *rest.shape, dtype=torch.bfloat16, device=x.device)
    for i, part in enumerate(parts):
        part.copy_(rest)
        if i < PARTS - 1:
            rest = rest - part
    return parts


def _times(parts: Tensor, matrix: Tensor) -> Tensor:
    return _added(parts.flatten(0, 1), matrix).unflatten(0, (PARTS, -1)).sum(0)


def _added(rows: Tensor, matrix: Tensor) -> Tensor:
    """A product in bfloat16 that is added up in float32."""
    return torch.mm(rows, matrix, out_dtype=torch.float32)
