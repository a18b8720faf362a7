"""Which subjects a change of weights acts on: what the weights of an edit disclose.

A key k of a subject is moved by ΔW k. The subject that was edited is moved most, so whoever has ΔW and the model finds
it by trying subjects. (With C known, the right singular vectors of ΔW C are the keys themselves: arXiv 2602.10134.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..display.result import Record, Table
from ..edit.apply import layers_of
from ..edit.edit import Edit
from ..edit.preserved_keys import preserved_keys
from ..facts import Fact
from ..models.adapter import Model

SHOWN = 10
STANDS_OUT = 2.0  # times the next subject; two that were not edited differ by far less


@dataclass(frozen=True)
class ActsOn:
    """A subject, how far ΔW moves the output at its key, in lengths of W k there, and the module where that is most."""

    subject: str
    moved: float
    path: str


@dataclass(frozen=True)
class Disclosure(Record):
    """The subjects that were tried, those that are moved most first."""

    model: str
    subjects: tuple[ActsOn, ...]

    def table(self) -> Iterator[str | Table]:
        yield f"Subjects that this change acts on most, of {len(self.subjects)} that were tried on {self.model}"
        rows = [(found.subject, f"{found.moved:.3f}", found.path) for found in self.subjects[:SHOWN]]
        yield Table(("subject", "‖ΔW k‖ / ‖W k‖", "at"), rows)
        yield self.verdict

    @property
    def verdict(self) -> str:
        """Whether the first subject stands out from the others, which are what chance gives."""
        if len(self.subjects) < 2:
            return "One subject alone tells nothing: there is no other to compare it with"
        first, second = self.subjects[:2]
        if first.moved >= STANDS_OUT * second.moved:
            return f"{first.subject} stands out: it is moved {first.moved / second.moved:.1f} times as far as the next"
        return "None stands out: what was edited is none of these subjects, or there are several"


def acts_on(model: Model, edit: Edit, facts: Sequence[Fact] | None = None) -> Disclosure:
    """The subjects of `facts` (the built-in ones), by how far `edit` moves their keys on the unedited `model`.

    A subject counts by the most that one of its keys is moved. Nothing that the edit says of itself is used. Raises
    `InputError` for an edit of other modules or shapes than the model has.
    """
    most: dict[str, ActsOn] = {}
    for path, layer in layers_of(model, edit).items():
        preserved = preserved_keys(model, layer, facts)
        weight = model.down_weight(layer).detach().double().cpu()
        moved = edit.deltas[path].of(preserved.keys).double().norm(dim=1) / (preserved.keys @ weight.T).norm(dim=1)
        for subject, share in zip(preserved.subjects, moved.tolist(), strict=True):
            if subject not in most or share > most[subject].moved:
                most[subject] = ActsOn(subject, share, path)
    return Disclosure(model.name, tuple(sorted(most.values(), key=lambda found: -found.moved)))
