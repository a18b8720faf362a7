"""An edit is a value: what is to be added to which down-projections, and where it came from.

    edit = knowedit.rome(model, fact)
    with edit.applied(model):
        ...
    edit.save("eiffel-in-rome")

Making an edit never touches a model; `apply.py` does, and takes it back. A weight is always seen as (out, in), so for
a rank-k change ΔW = u vᵀ with u (out, k) and v (in, k).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..facts import Fact

if TYPE_CHECKING:
    from ..models.adapter import Model
    from .apply import Handle


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


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a model's down-projections, with its provenance.

    - `deltas`: module path inside the transformers model → what is added to its weight.
    - `bases`: module path → `weight_hash` of the weight that the edit was made for.
    - `method`, `config`, `seed`: how it was made; `facts`: what for.
    - `model`: the model's name; `versions`: of knowedit, torch and transformers.
    - `notes`: what the method measured on the way (JSON values): steps, losses, kᵀC⁻¹k and the like.
    - `created`: a time stamp, outside of `content_hash`, as are `versions` and `notes`.

    The same request on the same model with the same seed and thread count gives the same bytes and `content_hash`.
    """

    deltas: Mapping[str, Delta]
    bases: Mapping[str, str]
    method: str
    config: Mapping = field(default_factory=dict)
    facts: tuple[Fact, ...] = ()
    model: str = ""
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping = field(default_factory=dict)
    created: str = ""

    def __post_init__(self):
        for name in ("deltas", "bases", "config", "versions", "notes"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        if not self.deltas:
            raise InputError("an edit without a change, expected at least one module path with its factors")
        if set(self.deltas) != set(self.bases):
            raise InputError("an edit names the base of every weight that it changes, and of no other")

    def applied(self, model: Model) -> AbstractContextManager[Handle]:
        """The edit is on `model` while the context lasts; the model is bit-identical after, also on exceptions."""
        from .apply import applied

        return applied(model, self)

    def save(self, folder: str | Path) -> Path:
        """Write the edit to a new folder: factors as safetensors, provenance as JSON, all or nothing."""
        from .storage import save_edit

        return save_edit(self, folder)

    @property
    def content_hash(self) -> str:
        """SHA-256 over the change, what it is for and how it was made."""
        digest = hashlib.sha256(json.dumps(self.content(), sort_keys=True, ensure_ascii=True).encode())
        for path, delta in sorted(self.deltas.items()):
            for name, tensor in delta.tensors().items():
                digest.update(f"{path} {name} {tuple(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def content(self) -> dict:
        """What besides the factors makes the edit what it is, for JSON."""
        return {
            "method": self.method,
            "config": dict(self.config),
            "facts": [fact.as_dict() for fact in self.facts],
            "model": self.model,
            "seed": self.seed,
            "bases": dict(self.bases),
        }


def weight_hash(weight: Tensor) -> str:
    """SHA-256 of a weight seen as (out, in): type, shape and bytes."""
    flat = weight.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{flat.dtype} {tuple(flat.shape)}".encode())
    digest.update(flat.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _checked(name: str, tensor: Tensor) -> Tensor:
    """A private float32 copy on the CPU."""
    if not isinstance(tensor, Tensor) or tensor.dim() != 2:
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InputError(f"the factor {name} is {shape}, expected a matrix")
    tensor = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
    if not torch.isfinite(tensor).all():  # also what was finite in float64 and is not in float32
        raise InputError(f"the factor {name} holds NaN or infinity; this edit has failed and cannot be used")
    return tensor
