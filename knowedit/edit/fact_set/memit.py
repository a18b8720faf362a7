"""MEMIT: least squares over all facts and the keys of other text. Meng et al. 2023 (arXiv 2210.07229), eq. 14.

    ΔW = Rᵀ K (λ A + Kᵀ K)⁻¹  =  Rᵀ (K A⁻¹ Kᵀ + λ I)⁻¹ K A⁻¹

K (n, d_ff) are the facts' keys, R (n, d) what is to be added to their values, A the second moment of keys that are to
stay (`preserved_keys.py`). The second form, by Woodbury's identity, is what is computed: n × n, not d_ff × d_ff.

The paper's λ is a number for one model's C and all its layers. Here it is a share of the diagonal that it is added to,
so that each layer of each model gives up as much: where keys are large beside A, as above the layers in which massive
activations arise, one λ for all of them lets a few facts with weak keys take nearly all of the change.

By default it is `LEAST`, or (n / d_ff)² where that is more. The nearer n comes to d_ff, the smaller are the least
eigenvalues of K A⁻¹ Kᵀ, and the larger is the change: with the share that suits 100 facts, 1,000 in layers of 1,536
neurons raise the perplexity of plain text fivefold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ...errors import InputError

if TYPE_CHECKING:
    from ..preserved_keys import Metric

LEAST = 0.02  # as a share: two facts of one subject have keys that are nearly alike


@dataclass(frozen=True)
class Memit:
    """`ridge_share` is λ as a fraction of the mean kᵀ A⁻¹ k: how much other keys count beside the facts'. None: by the
    number of facts, as described above."""

    ridge_share: float | None = None

    name: ClassVar[str] = "memit"

    def __post_init__(self):
        if self.ridge_share is not None and not self.ridge_share > 0:
            raise InputError(f"the ridge_share is {self.ridge_share!r}, expected a number above 0")

    def spread(self, A: Metric, keys: Tensor) -> Tensor:
        """A⁻¹ Kᵀ (d_ff, n)."""
        return A.inverse(keys.T)

    def ridge(self, diagonal: Tensor, d_ff: int) -> float:
        """What is added to the diagonal of K A⁻¹ Kᵀ, which is given."""
        share = self.ridge_share or max(LEAST, (len(diagonal) / d_ff) ** 2)
        return share * diagonal.mean().item()
