"""What a study is to the engines that run it, and how one batch of it is run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ...errors import KnoweditError


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
