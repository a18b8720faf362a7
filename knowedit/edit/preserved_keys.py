"""Keys of subjects that an edit is to leave alone: those of the built-in facts.

C says how keys usually lie, but two subjects of one sort ("Al-Azhar Mosque", "Badshahi Mosque"; "Albania", "Serbia")
share most of theirs, far more than text in general. So their keys k_i join the covariance,

    A = C + ρ I + w · mean_i k_i k_iᵀ,    q = A⁻¹ k*

and ΔW = δ qᵀ / (k*ᵀ q) still maps k* where it should and moves them less. Left out are the fact's own subject and those
of its neighbours, which are there to measure the edit. This goes beyond ROME, where w = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..errors import InputError
from ..facts import Fact
from ..hooks import Enough, ending_early, hooked, on_input
from ..models.adapter import Model
from ..models.passes.batches import batches
from ..prompts import Prompt
from ..sources import builtin_facts
from .covariance import Covariance

BATCH_ROWS = 64


@dataclass(frozen=True, eq=False)
class PreservedKeys:
    """Keys of other subjects in one layer: `subjects[i]` has `keys[i]` (m, n_neurons), float64 on the CPU."""

    layer: int
    subjects: tuple[str, ...]
    keys: Tensor
    _joined: dict = field(init=False, repr=False, default_factory=dict)

    def solve(self, C: Covariance, k: Tensor, fact: Fact, weight: float, shrinkage: float) -> Tensor:
        """A⁻¹ k (n_neurons,), float64, for an edit of `fact`."""
        if not weight or not len(self.subjects):
            return C.solve(k, shrinkage)
        if (id(C), weight) not in self._joined:
            self._joined[id(C), weight] = C, C.plus(self.keys, weight)
        A = self._joined[id(C), weight][1]
        own_keys = self.keys[self.about(fact)].T * (weight / len(self.keys)) ** 0.5  # (n_neurons, r): taken out again
        solved = A.solve(torch.cat([k[:, None], own_keys], 1), shrinkage)
        q, spread = solved[:, 0], solved[:, 1:]
        inner = torch.eye(own_keys.shape[1], dtype=torch.float64) - own_keys.T @ spread  # Woodbury, for a downdate
        return q + spread @ torch.linalg.solve(inner, own_keys.T @ q)

    def about(self, fact: Fact) -> list[int]:
        """Which of the keys are about the fact's subject or about its neighbours."""
        subjects = {(name or "").casefold() for name in (fact.subject, *(n.subject for n in fact.neighbours))}
        prompts = " ".join(n.prompt for n in fact.neighbours)
        return [i for i, subject in enumerate(self.subjects) if subject.casefold() in subjects or subject in prompts]


def preserved_keys(model: Model, layer: int, facts: Sequence[Fact] | None = None) -> PreservedKeys:
    """The keys of the subjects of `facts` (the built-in ones): in their prompts, and each alone at the start."""
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
    return PreservedKeys(layer, tuple(subjects), lookup_keys(model, layer, prompts))


@torch.no_grad()
def lookup_keys(model: Model, layer: int, prompts: Sequence[Prompt]) -> Tensor:
    """The key at the lookup position of each prompt, (prompts, n_neurons), float64 on the CPU."""
    keys = torch.zeros(len(prompts), model.n_neurons, dtype=torch.float64)
    whole = any(hasattr(module, "_hf_hook") for module in model.hf.modules())  # offloaded weights must be given back
    for batch in batches([len(prompt.ids) for prompt in prompts], rows=BATCH_ROWS, equal=True):
        ids = torch.tensor([prompts[i].ids for i in batch], device=model.device)
        lookups = torch.tensor([prompts[i].position("lookup") for i in batch])
        take = partial(_take, keys, batch, lookups, ids.shape[1], whole)
        with ending_early(), hooked(on_input(model.down(layer), take)):
            model.run(ids, attention_mask=torch.ones_like(ids))
    return keys


def _take(keys: Tensor, rows: list[int], lookups: Tensor, length: int, whole: bool, x: Tensor) -> None:
    x = x.reshape(len(rows), length, -1)
    keys[rows] = x[torch.arange(len(rows)), lookups.to(x.device)].double().cpu()
    if not whole:
        raise Enough
