"""Keys of subjects that an edit is to leave alone: those of the built-in facts.

C says how keys usually lie, but two subjects of one sort ("Al-Azhar Mosque", "Badshahi Mosque"; "Albania", "Serbia")
share most of theirs, far more than text in general. So their keys k_i join the covariance,

    A = C + ρ I + w · mean_i k_i k_iᵀ,    q = A⁻¹ k*

and ΔW = δ qᵀ / (k*ᵀ q) still maps k* where it should and moves them less. Left out are the subjects of the facts that
are edited and those of their neighbours, which are there to measure the edit. This goes beyond ROME, where w = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..errors import InputError
from ..facts import Fact
from ..hooks import Enough, ending_early, hooked, on_input, unaltered
from ..models.adapter import Model
from ..models.cache import key_of
from ..models.passes.batches import batches
from ..prompts import Prompt
from ..sources import builtin_facts
from .covariance import Covariance, kept_statistics

BATCH_ROWS = 64


@dataclass(frozen=True, eq=False)
class PreservedKeys:
    """Keys of other subjects in one layer: `subjects[i]` has `keys[i]` (m, n_neurons), float64 on the CPU."""

    layer: int
    subjects: tuple[str, ...]
    keys: Tensor
    _joined: dict = field(init=False, repr=False, default_factory=dict)

    def metric(self, C: Covariance, weight: float, shrinkage: float, about: Sequence[int]) -> Metric:
        """A without the keys `about`."""
        if not weight or not len(self.keys):
            return Metric(C, shrinkage, torch.zeros(len(C.C), 0, dtype=torch.float64, device=C.device))
        if (id(C), weight) not in self._joined:
            self._joined[id(C), weight] = C, C.plus(self.keys, weight)
        left_out = self.keys[list(about)].T.to(C.device) * (weight / len(self.keys)) ** 0.5
        return Metric(self._joined[id(C), weight][1], shrinkage, left_out)

    def about(self, fact: Fact) -> list[int]:
        """Which of the keys are about the fact's subject or about its neighbours."""
        subjects = {(name or "").casefold() for name in (fact.subject, *(n.subject for n in fact.neighbours))}
        prompts = " ".join(n.prompt for n in fact.neighbours)
        return [i for i, subject in enumerate(self.subjects) if subject.casefold() in subjects or subject in prompts]


@dataclass(frozen=True, eq=False)
class Metric:
    """A of one layer: C with all preserved keys, `whole`, and its shrinkage, less `left_out` (n_neurons, r) squared."""

    whole: Covariance
    shrinkage: float
    left_out: Tensor

    @property
    def layer(self) -> int:
        return self.whole.layer

    def inverse(self, x: Tensor) -> Tensor:
        """A⁻¹ x for x (n_neurons, n), float64 on the covariance's device."""
        solved = self.whole.solve(torch.cat([x.to(self.left_out), self.left_out], 1), self.shrinkage)
        whole, spread = solved.tensor_split([x.shape[1]], 1)
        inner = -self.left_out.T @ spread  # Woodbury, for a downdate
        inner.diagonal().add_(1)
        return whole + spread @ torch.linalg.solve(inner, self.left_out.T @ whole)

    def free(self, energy: float) -> Tensor:
        """The eigenvectors of A, (n_neurons, r), of its smallest eigenvalues, with at most `energy` of the trace."""
        values, vectors = torch.linalg.eigh(self.whole.shrunk(self.shrinkage) - self.left_out @ self.left_out.T)
        values = values.clamp(min=0)
        free = int((values.cumsum(0) <= energy * values.sum()).sum())
        if not free:
            raise InputError(f"no direction of layer {self.layer} has an energy of {energy:g} or less; take more")
        return vectors[:, :free]


def preserved_keys(
    model: Model, layer: int, facts: Sequence[Fact] | None = None, *, weights_hash: str | None = None
) -> PreservedKeys:
    """The keys of the subjects of `facts` (the built-in ones): in their prompts, and each alone at the start.

    With the hash of the model's weights they are kept in the cache, beside the covariances.
    """
    facts = [fact for fact in (builtin_facts() if facts is None else facts) if fact.subject is not None]
    texts = [(fact.prompt, fact.subject) for fact in facts]
    texts += [(subject, subject) for subject in dict.fromkeys(fact.subject for fact in facts)]
    prompts: list[Prompt] = []
    subjects: list[str] = []
    for text, subject in texts:
        try:
            prompts.append(model.encode(text, subject))
        except InputError:  # a subject that this tokenizer leaves nothing of
            continue
        subjects.append(subject)
    weights_hash = unaltered(model.hf, weights_hash)
    if weights_hash is None or not prompts:
        return PreservedKeys(layer, tuple(subjects), lookup_keys(model, layer, prompts))
    dtype = torch.promote_types(model.dtype, torch.float32)  # which loses nothing of an activation
    request = {
        "weights": weights_hash,
        "dtype": str(model.dtype),
        "layer": layer,
        "lookups": [(prompt.ids, prompt.position("lookup")) for prompt in prompts],
    }
    keys = kept_statistics().remembered(
        {"keys of": key_of(request)},
        (len(prompts), model.n_neurons),
        dtype,
        lambda: lookup_keys(model, layer, prompts).to(dtype),
    )
    return PreservedKeys(layer, tuple(subjects), keys.double())


@torch.no_grad()
def lookup_keys(model: Model, layer: int, prompts: Sequence[Prompt]) -> Tensor:
    """The key at the lookup position of each prompt, (prompts, n_neurons), float64 on the CPU."""
    keys = torch.zeros(len(prompts), model.n_neurons, dtype=torch.float64)
    for batch in batches([len(prompt.ids) for prompt in prompts], rows=BATCH_ROWS, equal=True):
        ids = torch.tensor([prompts[i].ids for i in batch], device=model.device)
        lookups = torch.tensor([prompts[i].position("lookup") for i in batch])
        take = partial(_take, keys, batch, lookups, ids.shape[1], model.offloaded)
        with ending_early(), hooked(on_input(model.down(layer), take)):
            model.run(ids, attention_mask=torch.ones_like(ids))
    return keys


def _take(keys: Tensor, rows: list[int], lookups: Tensor, length: int, whole: bool, x: Tensor) -> None:
    x = x.reshape(len(rows), length, -1)
    keys[rows] = x[torch.arange(len(rows)), lookups.to(x.device)].double().cpu()
    if not whole:
        raise Enough
