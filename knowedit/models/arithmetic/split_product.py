"""Products of float32 with weights in bfloat16, to 5e-6 of their size and without a copy of the weights.

A number in float32 is the sum of two in bfloat16 to 17 bits, so

    x W = x₁ W + x₂ W        products in bfloat16, added up in float32

on the units that a CUDA device has for it: faster than a product in float32 (Henry, Tang and Heinecke 2019, arXiv
1904.06376). A third part would be nearer to x, and nothing to the product: these units add up to 18 bits or so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

AMPERE = (8, 0)  # the first cards with units for bfloat16
PARTS = 2
"""Numbers in bfloat16, of 8 bits and a sign each, that a float32 is taken for."""


def on_units(weight: Tensor) -> bool:
    """Whether the device multiplies numbers in bfloat16 and adds them up in float32 in one call."""
    if weight.device.type != "cuda" or torch.version.cuda is None or not hasattr(torch.ops.aten.mm, "dtype"):
        return False
    return torch.cuda.get_device_capability(weight.device) >= AMPERE


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x (…, in) in float32 times a matrix (in, out), in float32: its gradient reaches x, not the matrix.

    A matrix in bfloat16 lies on a device `on_units`; one in float32 may lie anywhere.
    """
    if matrix.dtype == x.dtype:
        return x @ matrix
    return _Product.apply(x, matrix) if torch.is_grad_enabled() else _times(x, matrix)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.matrix = matrix
        return _times(x, matrix)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _times(gradient, ctx.matrix.T), None


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    return _by_rows(x.device)(x.reshape(-1, x.shape[-1]), matrix).view(*x.shape[:-1], -1)


@cache
def _by_rows(device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """What multiplies x (rows, in) and a matrix (in, out): one kernel where Triton can build it.

    It is tried, for Triton builds its launcher by the machine's C compiler, which fails in ways of its own.
    """
    try:
        from .split_kernel import product as in_one_kernel

        in_one_kernel(torch.zeros(1, 16, device=device), torch.zeros(16, 16, dtype=torch.bfloat16, device=device))
    except Exception as error:  # whatever a compiler says
        _log.info("products are made in parts, since no kernel can be built: %s", error)
        return _in_parts
    return in_one_kernel


def _in_parts(x: Tensor, matrix: Tensor) -> Tensor:
    return _added(_split(x).flatten(0, 1), matrix).unflatten(0, (PARTS, -1)).sum(0)


def _split(x: Tensor) -> Tensor:
    """The `PARTS` numbers in bfloat16 whose sum each number of x (rows, in) is taken for, (PARTS, rows, in)."""
    rest = x
    parts = torch.empty(PARTS, *x.shape, dtype=torch.bfloat16, device=x.device)
    for i, part in enumerate(parts):
        part.copy_(rest)
        if i < PARTS - 1:
            rest = rest - part
    return parts


def _added(rows: Tensor, matrix: Tensor) -> Tensor:
    """A product in bfloat16 that is added up in float32."""
    return torch.mm(rows, matrix, out_dtype=torch.float32)
