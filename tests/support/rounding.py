"""How far apart two right computations of one number may be: the rule for the tolerances of the tests.

A step rounds by at most eps/2 of what it holds. The errors of n steps are independent and of mean zero, so they add up
like √n: they stay below λ·√n·eps/2 of the largest value in between, but with probability 2·exp(−λ²/2) (Higham and Mary
2019, theorem 2.4). Two computations differ by twice that. With λ = 8 the tolerance is

    8 · eps · √operations · size

- `operations`: the roundings in a row from what both computations share to what is compared. A sum of n products has n.
- `size`: the largest magnitude on the way, not that of the result: the difference of two logits of 20 is as uncertain
  as they are, a probability p = exp(l) is as uncertain as p·|l|, an average over terms of both signs as the terms.

Other processors, kernels and thread counts add in other orders: they change the errors, not this bound. Values that
Python or NumPy compute in float64 from the same numbers are compared by `pytest.approx` as it is: its 1e-6 is far above
rounding and far below any mistake. Where a path is so steep that rounding is multiplied, a test computes in float64
(fixture `doubled`).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

LAMBDA = 8
PASS = 600
"""Roundings in a row in one pass of a tiny model: 3 layers of 4 products of width 32 and one of 48, and a readout."""


LOGITS = 20
"""The largest logits of tiny models: their probabilities exp(l) are as uncertain as p·|l|."""
ADAM = 1e3
"""Adam divides each gradient by its own size: entries a thousand times smaller are a thousand times as uncertain."""


def pass_operations(model) -> int:
    """The roundings in a row in one pass through `model`: products into and out of heads, into and out of neurons."""
    width = model.d_model
    return model.n_layers * (4 * width + model.n_neurons) + width


def rounding(size: float = 1.0, operations: int = PASS, dtype: torch.dtype | None = None) -> float:
    """The tolerance of the rule above; `dtype` is torch's default one where it is not told (float64 in `doubled`)."""
    return LAMBDA * torch.finfo(dtype or torch.get_default_dtype()).eps * operations**0.5 * float(size)


def near_probability(p, operations: int = PASS):
    """`near` for probabilities, and other exponentials of logits or losses, of tiny models."""
    return near(p, size=LOGITS * float(np.abs(np.asarray(p, dtype=float)).max(initial=0.0)), operations=operations)


def near(wanted, size: float | None = None, operations: int = PASS, dtype: torch.dtype | None = None):
    """`pytest.approx` of `wanted` within rounding; `size` is the largest of `wanted` where it is not told."""
    if isinstance(wanted, torch.Tensor):
        wanted = wanted.detach().cpu().double().numpy()
    if size is None:
        size = np.abs(np.asarray(list(wanted.values()) if isinstance(wanted, dict) else wanted)).max(initial=0.0)
    return pytest.approx(wanted, abs=rounding(size, operations, dtype))


def assert_near(found, wanted, size: float | None = None, operations: int = PASS, dtype: torch.dtype | None = None):
    """Fail unless all of `found` is `wanted` within rounding; the dtype is that of `found` where it is a tensor's."""
    if dtype is None and isinstance(found, torch.Tensor):
        dtype = found.dtype
    found, wanted = (
        np.asarray(x.detach().cpu().double() if isinstance(x, torch.Tensor) else x) for x in (found, wanted)
    )
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    allowed = rounding(np.abs(wanted).max(initial=0.0) if size is None else size, operations, dtype)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=allowed)
