"""AlphaEdit: changes only in directions that other keys hardly take. Fang et al. 2025 (arXiv 2410.02355).

    ΔW = Rᵀ K P (P Kᵀ K P + λ I)⁻¹  =  Rᵀ (K P Kᵀ + λ I)⁻¹ K P

P projects onto the eigenvectors of A with the smallest eigenvalues: those that together have `energy` of the trace. The
paper cuts at an absolute eigenvalue, which means another thing for each model. A set holds all facts at once, so the
history that the paper adds up from batch to batch is the Kᵀ K of the bracket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ...errors import InputError

if TYPE_CHECKING:
    from ..preserved_keys import Metric


@dataclass(frozen=True)
class AlphaEdit:
    """`energy`: the share of A's trace that counts as free. `ridge_share`: λ as a fraction of the mean kᵀ P k."""

    energy: float = 0.1
    ridge_share: float = 0.1

    name: ClassVar[str] = "alphaedit"

    def __post_init__(self):
        for name in ("energy", "ridge_share"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected a number between 0 and 1")

    def spread(self, A: Metric, keys: Tensor) -> Tensor:
        """P Kᵀ (d_ff, n)."""
        free = A.free(self.energy)  # (d_ff, r)
        return free @ (free.T @ keys.T)

    def ridge(self, diagonal: Tensor, d_ff: int) -> float:
        """What is added to the diagonal of K P Kᵀ, which is given."""
        return self.ridge_share * diagonal.mean().item()
