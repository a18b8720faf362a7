"""A model whose output is the same, but whose gradients pass by its nonlinearities: the rules of RelP.

Jafari, Eberle, Khakzar & Nanda 2025 (arXiv 2508.21258), after layer-wise relevance propagation. A nonlinear step is
taken as the linear one that it is at this very input, so that one gradient tells what a part adds, not what a small
change of it would do:

- norms divide by a constant; attention has constant patterns;
- a nonlinearity is a slope, act(x) = (act(x) / x) · x, with a constant in brackets;
- of a product of two, act(gate) · up, each factor gets half of the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...hooks import hooked, on_input
from ..adapter import Model
from ..expansion import expansions


@contextmanager
def linearised(model: Model) -> Iterator[None]:
    """Gradients of `model` follow these rules while the context lasts; values stay what they are, up to rounding.

    Raises `LayoutError` where an MLP's expansion is not known, since its gate would not be.
    """
    gated = [layer for layer, found in expansions(model).items() if found.gated]
    with hooked(*(on_input(model.down(layer), _half) for layer in gated)), _Rules():
        yield


class _Rules(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        rule = _RULES.get(func)
        if rule is None:
            return func(*args, **(kwargs or {}))
        return rule(func, *args, **(kwargs or {}))


def _half(product: Tensor) -> Tensor:
    return (product + product.detach()) / 2


def _constant(func: Callable, *args, **kwargs) -> Tensor:
    return func(*args, **kwargs).detach()


def _slope(func: Callable, x: Tensor, *args, **kwargs) -> Tensor:
    with torch.no_grad():
        y = func(x.clone(), *args, **kwargs)  # some work in place
        slope = torch.where(x == 0, torch.zeros_like(y), y / x)
    return x * slope


def _power(func: Callable, x: Tensor, exponent, *args, **kwargs) -> Tensor:
    y = func(x, exponent, *args, **kwargs)
    return y.detach() if isinstance(exponent, float) and abs(exponent) == 0.5 else y  # as norms divide


def _layer_norm(func: Callable, x: Tensor, shape, weight=None, bias=None, eps: float = 1e-5) -> Tensor:
    over = tuple(range(-len(shape), 0))
    centred = x - x.mean(over, keepdim=True)
    normed = centred * (centred.square().mean(over, keepdim=True) + eps).rsqrt().detach()
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


def _rms_norm(func: Callable, x: Tensor, shape, weight=None, eps: float | None = None) -> Tensor:
    over = tuple(range(-len(shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    normed = x * (x.square().mean(over, keepdim=True) + eps).rsqrt().detach()
    return normed if weight is None else normed * weight


def _attention(func: Callable, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs) -> Tensor:
    return func(query.detach(), key.detach(), value, *args, **kwargs)


_RULES: dict[Callable, Callable] = {
    **dict.fromkeys((torch.rsqrt, Tensor.rsqrt, torch.sqrt, Tensor.sqrt), _constant),
    **dict.fromkeys((torch.softmax, Tensor.softmax, F.softmax), _constant),
    # inside of GELUs and SiLUs that are written out: x · (1 + tanh(…)), x · sigmoid(…)
    **dict.fromkeys((torch.tanh, Tensor.tanh, F.tanh, torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.erf), _constant),
    **dict.fromkeys((F.gelu, F.silu, F.relu, torch.relu, F.mish, F.leaky_relu, F.softplus, torch.square), _slope),
    **dict.fromkeys((torch.pow, Tensor.pow, Tensor.__pow__), _power),
    F.layer_norm: _layer_norm,
    torch.rms_norm: _rms_norm,
    F.rms_norm: _rms_norm,
    F.scaled_dot_product_attention: _attention,
}
