"""Weights in half precision, computed with as float32: F rounded to 8 bits has no gradient to speak of.

    with in_float32(model):
        ...                     # all that the model computes is float32

They are copied, at four bytes a weight. On a CUDA device weights in bfloat16 stay as they are, and products are right
to 5e-6 (`arithmetic/split_product.py`); attention reads keys and values where they are (`arithmetic/grouped_heads.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...hooks import differentiable
from ..adapter import Model
from ..arithmetic.grouped_heads import grouped_heads
from ..arithmetic.split_product import on_units, product

HALF = (torch.float16, torch.bfloat16)


@contextmanager
def in_float32(model: Model) -> Iterator[None]:
    """Weights in half precision are float32 while the context lasts, and the very same tensors again behind it.

    Packed weights, and those that are kept elsewhere, stay as they are. Whoever reads a weight meanwhile, and does not
    call its module, takes it from `adapter.weight_of`.
    """
    modules = list(model.hf.modules())
    weights = {id(w): w for module in modules for w in module._parameters.values() if w is not None}
    plain = all(w.is_floating_point() and not w.is_meta and not w.is_inference() for w in weights.values())
    tensors = [*weights.values(), *model.hf.buffers()] if plain else []
    kept = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in HALF]
    split = _split_modules(modules) if plain else {}
    left = {id(module.weight) for module in split}
    nothing: dict[torch.device, Tensor] = {}
    try:
        with differentiable(), grouped_heads() if model.device.type == "cuda" else nullcontext():
            for module, forward in split.items():
                module.forward = forward
                module._kept_half = module.weight.data
            for tensor, data in kept:
                tensor.data = _nothing(data, nothing) if id(tensor) in left else data.float()
            yield
    finally:
        for tensor, data in kept:
            tensor.data = data
        for module in split:
            del module.forward, module._kept_half


def _split_modules(modules: Sequence[nn.Module]) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """What computes in float32 with weights in bfloat16, of all modules that can, on a CUDA device."""
    owners: dict[int, list[nn.Module]] = defaultdict(list)
    for module in modules:
        for weight in module._parameters.values():
            owners[id(weight)].append(module)
    return {
        module: _forward(module)
        for module in modules
        if _splits(module) and all(map(_splits, owners[id(module.weight)]))
    }


def _splits(module: nn.Module) -> bool:
    known = type(module) in (nn.Linear, Conv1D, nn.Embedding) and not hasattr(module, "_hf_hook")
    weight = module.weight if known else None
    return known and weight.dtype == torch.bfloat16 and on_units(weight) and "forward" not in vars(module)


def _nothing(data: Tensor, made: dict[torch.device, Tensor]) -> Tensor:
    """Takes the place of a weight that is put aside: of no size, and what reads it is NaN. One a device is `made`."""
    if data.device not in made:
        made[data.device] = data.new_full((), torch.nan, dtype=torch.float32)
    return made[data.device].expand_as(data)


def _forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    weight = module.weight.data
    if isinstance(module, nn.Embedding):
        return lambda ids: nn.functional.embedding(ids, weight).float()
    matrix = weight if isinstance(module, Conv1D) else weight.T

    def forward(x: Tensor) -> Tensor:
        y = product(x, matrix)
        return y if module.bias is None else y + module.bias

    return forward
