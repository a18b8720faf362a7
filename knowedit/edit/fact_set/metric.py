"""A, the second moment of the keys that a set of facts is to leave alone, in one layer.

    A = C + ρ I + w · mean_i k_i k_iᵀ

C is of text, k_i are keys of the subjects of built-in facts (`preserved_keys.py`), as in ROME here; those about the
facts of the set and their neighbours are left out. So A, too, is a function of the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import InputError
from ...facts import Fact
from ..covariance import Covariance
from ..preserved_keys import PreservedKeys


@dataclass(frozen=True, eq=False)
class Statistics:
    """C and preserved keys of one layer, and A of all of them with its factor, made once, float64 on `device`."""

    C: Covariance
    preserved: PreservedKeys
    weight: float
    shrinkage: float
    device: torch.device
    _made: dict = field(init=False, repr=False, default_factory=dict)

    @property
    def layer(self) -> int:
        return self.C.layer

    def about(self, facts: Sequence[Fact]) -> list[int]:
        """Which of the preserved keys are about `facts`."""
        return sorted({i for fact in facts for i in self.preserved.about(fact)}) if self.weight else []

    def metric(self, about: list[int]) -> Metric:
        """A without some of the preserved keys."""
        share = (self.weight / max(1, len(self.preserved.keys))) ** 0.5
        left_out = self.preserved.keys[about].T.to(self.device, torch.float64) * share  # (d_ff, r)
        return Metric(self.layer, *self._whole(), left_out)

    def _whole(self) -> tuple[Tensor, Tensor]:
        """A with all preserved keys, and its Cholesky factor."""
        if not self._made:
            C = self.C.plus(self.preserved.keys, self.weight) if self.weight and len(self.preserved.keys) else self.C
            A = C.C.to(self.device, torch.float64, copy=True)
            A.diagonal().add_(self.shrinkage * A.diagonal().mean().item())
            try:
                self._made["A"] = A, torch.linalg.cholesky(A)
            except torch.linalg.LinAlgError:
                raise InputError(
                    f"the covariance of layer {self.layer} is not positive definite with a shrinkage of "
                    f"{self.shrinkage:g}; take more tokens or a larger shrinkage, such as 0.01"
                ) from None
        return self._made["A"]


@dataclass(frozen=True, eq=False)
class Metric:
    """A of one layer for one set of facts: `whole` (d_ff, d_ff) with its factor, less `left_out` (d_ff, r) squared."""

    layer: int
    whole: Tensor
    factor: Tensor
    left_out: Tensor

    def inverse(self, x: Tensor) -> Tensor:
        """A⁻¹ x for x (d_ff, n)."""
        found = torch.cholesky_solve(x, self.factor)
        if not self.left_out.shape[1]:
            return found
        spread = torch.cholesky_solve(self.left_out, self.factor)
        inner = -self.left_out.T @ spread  # Woodbury, for a downdate
        inner.diagonal().add_(1)
        return found + spread @ torch.linalg.solve(inner, self.left_out.T @ found)

    def free(self, energy: float) -> Tensor:
        """The eigenvectors of A, (d_ff, r), of its smallest eigenvalues, which have at most `energy` of the trace."""
        values, vectors = torch.linalg.eigh(self.whole - self.left_out @ self.left_out.T)
        values = values.clamp(min=0)
        free = int((values.cumsum(0) <= energy * values.sum()).sum())
        if not free:
            raise InputError(f"no direction of layer {self.layer} has an energy of {energy:g} or less; take more")
        return vectors[:, :free]
