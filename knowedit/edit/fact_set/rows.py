"""What is kept of each fact: its row, which is found once on the unedited model and never changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from ...errors import InputError
from ...facts import Fact
from ..edit import check_request


@dataclass(frozen=True, eq=False)
class Row:
    """The key of a fact's subject and what is to be added to its value, in the first edited layer.

    - `key` (d_ff,), the mean over the plain prompt and those behind contexts, `delta` (d_model,): float32 on the CPU.
    - `probability`: of the new answer at the end of the search; `steps`: of the search.
    """

    key: Tensor
    delta: Tensor
    probability: float
    steps: int


def row_name(fact: Fact) -> str:
    """The name of a fact's row: all of the fact that the row depends on, as a hash."""
    return _hash([fact.template, fact.subject, check_request(fact), fact.separator])


def content_hash(fact: Fact) -> str:
    """A hash of all that a fact says, whatever its id. The order of a set's facts is that of their hashes."""
    return _hash(replace(fact, id=None).as_dict())


def with_id(fact: Fact) -> Fact:
    """The fact with an id: its own, or the beginning of its hash. Raises `InputError` for a fact that is no request."""
    check_request(fact)
    return fact if fact.id else replace(fact, id=content_hash(fact)[:12])


def by_id(facts: Iterable[Fact]) -> dict[str, Fact]:
    """Facts by id, each with one. Raises `InputError` for an id twice."""
    found: dict[str, Fact] = {}
    for fact in map(with_id, facts):
        assert fact.id is not None
        if fact.id in found:
            raise InputError(f"the id {fact.id!r} is there twice; ids are unique")
        found[fact.id] = fact
    return found


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
