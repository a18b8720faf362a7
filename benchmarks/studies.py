"""Benchmarks that are studies: their records lie in a run folder, and the same command goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from knowedit.evaluate.runs.engine import run_study
from knowedit.models.adapter import Model


class RecordStudy:
    """A study (`knowedit.evaluate.runs.study.Study`) that measures one record at a time by a function."""

    sequential = False

    def __init__(
        self,
        name: str,
        model: Model,
        config: dict,
        ids: Sequence[str],
        measure: Callable[[str], dict],
        summary: Callable[[dict[str, dict]], dict],
    ):
        """`measure(id)` gives a record as JSON values, `summary({id: record})` what all of them say.

        `config` and `ids` are what a run that goes on must share with the one that was stopped.
        """
        self.name, self.model, self.ids, self.measure, self.summary = name, model, list(ids), measure, summary
        self.config = {**config, "ids": self.ids}

    def identity(self) -> dict:
        return {"model": self.model.weights_hash(), "model_name": self.model.name}

    def batches(self) -> list[list[str]]:
        return [[name] for name in self.ids]

    def run(self, batch: list[str]) -> list[dict]:
        records = []
        for name in batch:
            started = time.process_time()
            record = self.measure(name)
            records.append({"id": name, **record, "seconds": {"processor": time.process_time() - started}})
        return records

    def restore(self, rows: list[dict]) -> None:
        """Nothing stays on the model."""

    def summarise(self, rows: Iterable[dict]) -> dict:
        by_id = {row["id"]: {key: row[key] for key in row if key not in ("id", "seconds")} for row in rows}
        return {"metrics": {}, "summary": self.summary({name: by_id[name] for name in self.ids if name in by_id})}


def summary_of(study: RecordStudy, folder: Path) -> dict:
    """What all records of `study` say; those that `folder` lacks are measured first.

    Raises `RuntimeError` where one of them failed.
    """
    run = run_study(study, folder, resume=(folder / "manifest.json").exists())
    failed = [f"{row['id']}: {row['error']}" for row in run.rows() if "error" in row]
    if failed:
        raise RuntimeError(f"{len(failed)} records failed, the first is {failed[0]}; delete {folder} and run again")
    return run.summary["summary"]
