"""What a study is to the engines that run it, how one batch of it is run, and what all studies of facts share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol

from ...edit.apply import unedited
from ...errors import KnoweditError
from ...facts import Fact
from ...models.adapter import Model
from ...selection import source_of
from ...sources import Source


class Study(Protocol):
    """What is measured about each record.

    - `name`: `"edit"` or `"neurons"`; `config`: all that changes results, as JSON values.
    - `sequential`: whether a batch depends on those before it.
    """

    name: str
    config: dict
    sequential: bool

    def identity(self) -> dict:
        """Hashes of data and model, as JSON values: what the records are about."""

    def batches(self) -> list[list[str]]:
        """Ids of the records that are run together, in order."""

    def run(self, batch: list[str]) -> list[dict]:
        """One JSON object for each record, with its "id"; what differs from run to run is under "seconds" alone.

        Raises an error where a record cannot be run, but a sequential study returns {"id", "error"} for it."""

    def restore(self, rows: list[dict]) -> None:
        """Sequential: bring the model to where it was after these records."""

    def summarise(self, rows: Iterable[dict]) -> dict:
        """{"metrics": {name: {value, low, high, n}}, …} of all records, as JSON values."""


class FactStudy:
    """A `Study` with one record for each fact of a source.

    A study of this kind defines `name`, `chosen_facts`, `run` and `summarise`; its config has the fields `source`,
    `format`, `revision`, `model`, `dtype` and `batch`, and `as_dict()`.
    """

    name: str
    sequential = False

    def __init__(self, config, model: Model, source: Source | None = None):
        """`source`: by default the one that `config` names."""
        self.settings = config
        self.config = config.as_dict()
        self.model = model
        self.source = source or source_of(config)
        self.skipped = list(self.source.skipped)
        self.facts = {fact.id: fact for fact in self.chosen_facts()}

    @classmethod
    def from_config(cls, config, *, device: str | None = None, trust_remote_code: bool = False, **parts):
        """The study of the model and the source that `config` names; `parts` go to the constructor."""
        from ...models.loading import load

        parts.setdefault("source", source_of(config))  # a mistyped one is said before a model is loaded
        model = load(config.model, dtype=config.dtype, device=device, trust_remote_code=trust_remote_code)
        return cls(config, model, **parts)

    def chosen_facts(self) -> Sequence[Fact]:
        """The facts of `self.source` that `self.settings` choose, in their order. Raises `InputError` for none."""
        raise NotImplementedError

    def identity(self) -> dict:
        return {"data": self.source.sha256, "model": self._weights_hash, "model_name": self.model.name}

    def batches(self) -> list[list[str]]:
        ids = list(self.facts)
        return [ids[i : i + self.settings.batch] for i in range(0, len(ids), self.settings.batch)]

    def restore(self, rows: list[dict]) -> None:
        """Nothing stays on the model."""

    @cached_property
    def _weights_hash(self) -> str:
        with unedited(self.model):
            return self.model.weights_hash()


def run_batch(study: Study, batch: list[str]) -> list[dict]:
    """The records of a batch. Where it fails each record is run alone, and one that fails alone is {"id", "error"}."""
    try:
        return study.run(batch)
    except Exception as error:  # whatever it is: one record must not end a run of thousands
        if study.sequential:
            raise
        if len(batch) == 1:
            return [{"id": batch[0], "error": error_line(error)}]
    return [row for i in batch for row in run_batch(study, [i])]


def error_line(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, KnoweditError) else f"{type(error).__name__}: {text}"
