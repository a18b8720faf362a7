"""What is added to one down-projection: ΔW, of low rank or in full.

A weight is always seen as (out, in), so for a rank-k change ΔW = u vᵀ with u (out, k) and v (in, k).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError
from ..models.tensor_cache import take_bytes


@dataclass(frozen=True, eq=False)
class LowRank:
    """ΔW = u vᵀ: `u` (out, k) and `v` (in, k), float32 on the CPU. Raises `InputError` for other shapes and values."""

    u: Tensor
    v: Tensor

    def __post_init__(self):
        for name in ("u", "v"):
            object.__setattr__(self, name, _checked(name, getattr(self, name)))
        if self.u.shape[1] != self.v.shape[1] or not self.u.shape[1]:
            raise InputError(
                f"factors of shapes {tuple(self.u.shape)} and {tuple(self.v.shape)}, expected (out, k) and (in, k)"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.u.shape[0], self.v.shape[0]

    @property
    def rank(self) -> int:
        return self.u.shape[1]

    def matrix(self) -> Tensor:
        """ΔW, (out, in)."""
        return self.u @ self.v.T

    def norm(self) -> float:
        """‖ΔW‖ (Frobenius), by tr(uᵀu vᵀv) without the matrix."""
        u, v = self.u.double(), self.v.double()
        return max(0.0, ((u.T @ u) * (v.T @ v)).sum().item()) ** 0.5

    def of(self, x: Tensor) -> Tensor:
        """ΔW x for inputs (…, in), float32 on the device of `x`: (…, out)."""
        return (x.float() @ self.v.to(x.device)) @ self.u.to(x.device).T

    def truncated(self, rank: int) -> LowRank:
        """The nearest ΔW of at most this rank (Eckart & Young 1936), by QR of the factors, in float64."""
        (q_u, r_u), (q_v, r_v) = (torch.linalg.qr(factor.double()) for factor in (self.u, self.v))
        left, values, right = torch.linalg.svd(r_u @ r_v.T)
        root = values[:rank].sqrt()
        return LowRank(q_u @ (left[:, :rank] * root), q_v @ (right[:rank].T * root))

    def tensors(self) -> dict[str, Tensor]:
        return {"u": self.u, "v": self.v}


@dataclass(frozen=True, eq=False)
class Dense:
    """ΔW in full, (out, in), float32 on the CPU, for methods whose change is not of low rank."""

    delta: Tensor

    def __post_init__(self):
        object.__setattr__(self, "delta", _checked("delta", self.delta))

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.delta.shape[0], self.delta.shape[1]

    @property
    def rank(self) -> int:
        return min(self.delta.shape)

    def matrix(self) -> Tensor:
        """ΔW, (out, in)."""
        return self.delta

    def norm(self) -> float:
        """‖ΔW‖ (Frobenius)."""
        return self.delta.double().norm().item()

    def of(self, x: Tensor) -> Tensor:
        """ΔW x for inputs (…, in), float32 on the device of `x`: (…, out)."""
        return x.float() @ self.delta.to(x.device).T

    def tensors(self) -> dict[str, Tensor]:
        return {"delta": self.delta}


Delta = LowRank | Dense


class Change(Protocol):
    """What is put on a model and taken off: an `Edit`, seen from below."""

    @property
    def deltas(self) -> Mapping[str, Delta]:
        """Module path → what is added to its weight."""

    @property
    def bases(self) -> Mapping[str, str]:
        """Module path → `weight_hash` of the weight that the change was made for."""

    @property
    def method(self) -> str:
        """How the change was made."""

    @property
    def model(self) -> str:
        """The name of the model that the change was made on."""


def weight_hash(weight: Tensor) -> str:
    """SHA-256 of a weight seen as (out, in): type, shape and bytes."""
    digest = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    take_bytes(digest, weight)
    return digest.hexdigest()


def _checked(name: str, tensor: Tensor) -> Tensor:
    """A private float32 copy on the CPU."""
    if not torch.is_tensor(tensor) or tensor.dim() != 2:
        shape = tuple(tensor.shape) if torch.is_tensor(tensor) else type(tensor).__name__
        raise InputError(f"the factor {name} is {shape}, expected a matrix")
    tensor = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    if not torch.isfinite(tensor).all():  # also what was finite in float64 and is not in float32
        raise InputError(f"the factor {name} holds NaN or infinity; this edit has failed and cannot be used")
    return tensor
