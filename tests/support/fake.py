"""A study of nothing: its records follow from their ids, or from all that came before where it is sequential."""

from __future__ import annotations

import random
import sys
import time
from functools import partial

from knowedit.errors import InputError
from knowedit.evaluate.runs.engine import run_study


class Fake:
    name = "edit"

    def __init__(self, n=23, size=4, sequential=False, fail=(), pause=0.0, config=None, data="d"):
        self.ids = [f"r/{i}" for i in range(n)]
        self.size, self.sequential, self.fail, self.pause = size, sequential, set(fail), pause
        self.config = {"n": n, **(config or {})}
        self.data = data
        self.state = 0
        self.calls = []

    def identity(self):
        return {"data": self.data, "model": "m"}

    def batches(self):
        return [self.ids[i : i + self.size] for i in range(0, len(self.ids), self.size)]

    def run(self, batch):
        self.calls.append(list(batch))
        rows = []
        for i in batch:
            time.sleep(self.pause)
            if i in self.fail:
                if not self.sequential:
                    raise InputError(f"{i} cannot be run")
                rows.append({"id": i, "error": "it cannot be run"})
                continue
            self._step(i)
            seen = self.state if self.sequential else len(batch)
            value = random.Random(f"{i} {seen}").random()
            rows.append({"id": i, "after": {"ES": value}, "seconds": {"run": time.perf_counter()}})
        return rows

    def _step(self, i):
        self.state = hash_of(self.state, i)

    def restore(self, rows):
        for row in rows:
            if "error" not in row:
                self._step(row["id"])

    def summarise(self, rows):
        values = [row["after"]["ES"] for row in rows]
        return {"metrics": {"ES": {"value": sum(values) / max(1, len(values)), "low": None, "high": None}}}


def hash_of(state, i):
    return random.Random(f"{state} {i}").getrandbits(40)


def build(**options):
    return partial(Fake, **options)


def records(run):
    """The records without their timings, by id."""
    return {row["id"]: {k: v for k, v in row.items() if k != "seconds"} for row in run.rows()}


if __name__ == "__main__":  # a run to be killed: folder, sequential, resume
    study = Fake(n=60, size=4, sequential=sys.argv[2] == "1", pause=0.002)
    run_study(study, sys.argv[1], resume=sys.argv[3] == "1", progress=False)
