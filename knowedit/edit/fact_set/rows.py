"""What is kept of each fact: its row, which is found once on the unedited model and never changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...errors import InputError, ModelError
from ...facts import Fact
from ...hooks import unaltered
from ...models.adapter import Model
from ...models.cache import cache_root, key_of
from ...models.tensor_cache import TensorCache
from ...texts.rows import tokenization
from ..edit import check_request
from .config import FactSetConfig


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


class KeptRows:
    """The rows that any set of these weights and settings has found, in the cache: nobody searches for them again.

    What the change is solved with (other layers, solver, C) has no part in them. While hooks alter the model there are
    none.
    """

    def __init__(self, model: Model, config: FactSetConfig, weights: str):
        self._model, self._config, self._weights = model, config, unaltered(model.hf, weights)
        self._shapes = {"key": (model.n_neurons,), "delta": (model.d_model,)}
        self._cache = TensorCache(cache_root() / "rows")

    @cached_property
    def _request(self) -> dict:
        """All that decides a row but the fact."""
        model, config = self._model, self._config
        return {
            "weights": self._weights,
            "dtype": str(model.dtype),
            "device": model.device.type,
            "torch": torch.__version__,
            **tokenization(model),
            "layer": config.rows.layer,
            "search": asdict(config.rows.search),
            "contexts": config.rows.contexts,
            "key_contexts": config.key_contexts,
        }

    def read(self, name: str) -> Row | None:
        """The row of that name, if it is there and sound."""
        if self._weights is None or (read := self._cache.read(self._key(name), self._shapes)) is None:
            return None
        record, tensors = read
        return Row(tensors["key"], tensors["delta"], record["probability"], record["steps"])

    def write(self, rows: Mapping[str, Row]) -> None:
        """Keep rows by name. A cache that cannot be written keeps nothing."""
        with suppress(ModelError):
            for name, row in () if self._weights is None else rows.items():
                record = {"probability": row.probability, "steps": row.steps}
                self._cache.write(self._key(name), record, {"key": row.key, "delta": row.delta})

    def _key(self, name: str) -> str:
        return key_of({**self._request, "row": name})


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
