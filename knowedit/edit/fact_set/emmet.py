"""EMMET: all facts held as equalities. Gupta et al. 2024, "A Unified Framework for Model Editing" (arXiv 2403.14236).

    ΔW = Rᵀ (K A⁻¹ Kᵀ + ε I)⁻¹ K A⁻¹

of all changes with ΔW kᵢ = rᵢ the one that moves other keys least. For one fact and ε = 0 it is ROME's. Beside MEMIT
only what is added to the diagonal differs: a fraction of it, as little as keys that are nearly alike allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ...errors import InputError

if TYPE_CHECKING:
    from ..preserved_keys import Metric


@dataclass(frozen=True)
class Emmet:
    """`ridge_share` is ε as a fraction of the mean kᵀ A⁻¹ k, where there are several facts (one needs none)."""

    ridge_share: float = 1e-4

    name: ClassVar[str] = "emmet"

    def __post_init__(self):
        if not self.ridge_share >= 0:
            raise InputError(f"the ridge_share is {self.ridge_share!r}, expected 0 or more")

    def spread(self, A: Metric, keys: Tensor) -> Tensor:
        """A⁻¹ Kᵀ (d_ff, n). Raises `InputError` for more facts than neurons, which cannot all hold."""
        facts, neurons = keys.shape
        if facts > neurons:
            raise InputError(
                f"{facts} facts are more than the {neurons} neurons of layer {A.layer}, so they cannot hold as "
                "equalities; take the solver memit, or fewer facts"
            )
        return A.inverse(keys.T)

    def ridge(self, diagonal: Tensor, d_ff: int) -> float:
        """What is added to the diagonal of K A⁻¹ Kᵀ, which is given."""
        return self.ridge_share * diagonal.mean().item() if len(diagonal) > 1 else 0.0
