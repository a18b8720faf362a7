"""Memory of a whole run (records, table, summary) with few and with many records: is it flat?

    python -m benchmarks.speed.run_memory

A stand-in for the model gives records of the size of real ones at once, so what is measured is the machinery: engine,
run folder, parquet table, intervals. Each figure is the most that Python and numpy held in a process of its own, and
the largest resident size beyond what the process had after its imports.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterable

from knowedit.evaluate.edits import summary as edit_summary
from knowedit.evaluate.neurons import summary as neuron_summary
from knowedit.evaluate.runs.engine import run_study
from knowedit.locate.neurons import Neuron, NeuronSet

from ..results import save

RECORDS = {"edit": (1000, 20_000), "neurons": (1000, 5000)}
BATCH = 16
DRAWS = 20
_RATES = ("ES", "PS", "NS", "ES_argmax", "PS_argmax", "NS_argmax", "EM", "PM", "NM", "free_ES", "free_PS", "GE")


class StandIn:
    """A study whose records are random figures; `name` is that of the study whose records they resemble."""

    sequential = False

    def __init__(self, name: str, records: int):
        self.name, self.records = name, records
        self.config = {"records": records}

    def identity(self) -> dict:
        return {"data": "none"}

    def batches(self) -> list[list[str]]:
        return [
            [f"counterfact/{i}" for i in range(start, min(start + BATCH, self.records))]
            for start in range(0, self.records, BATCH)
        ]

    def run(self, batch: list[str]) -> list[dict]:
        return [(self._edit if self.name == "edit" else self._neurons)(i) for i in batch]

    def restore(self, rows: list[dict]) -> None:
        """Nothing stays on."""

    def summarise(self, rows: Iterable[dict]) -> dict:
        if self.name == "edit":
            return edit_summary.summary(rows)
        found = neuron_summary.summary(rows, layers=30)
        found.pop("located")
        return found

    def _edit(self, i: str) -> dict:
        draw = random.Random(i)
        return {
            "id": i, "relation": f"P{draw.randrange(34)}", "subject": "Danielle Darrieux", "known": draw.random() < 0.5,
            "before": {name: draw.random() for name in _RATES}, "after": {name: draw.random() for name in _RATES},
            "perplexity": draw.random(), "edit": {"method": "rome", "norm": draw.random()}, "seconds": {"edit": 0.1},
        }  # fmt: skip

    def _neurons(self, i: str) -> dict:
        draw = random.Random(i)
        sites = [(draw.randrange(30), draw.randrange(1536)) for _ in range(4)]
        neurons = tuple(Neuron(*site, 0.1, None, 1.0, 1.0, "fact", ("a",) * 8, ("b",) * 8) for site in sites)
        located = NeuronSet("stand-in", "0" * 64, "Danielle Darrieux speaks", "French", neurons, 0.5)

        def changed(n: int) -> dict[str, list[float]]:
            return {what: [draw.random() for _ in range(n)] for what in ("suppressed", "amplified")}

        def prompts(n: int) -> dict[str, list[float]]:
            return {"before": [draw.random() for _ in range(n)], **changed(n)}

        proof = {
            **prompts(5),
            "control": {"activation": changed(DRAWS), "layer": changed(DRAWS)},
            "match": {"located": 1.0, "drawn": 1.0, "drawn_by_layer": 0.1},
            "neurons": 4,
            "specificity": {"same_relation": prompts(8), "other_relations": prompts(8)},
            "recalled": 1.0,
            "rivals": {"activation": changed(5)},
        }
        return {
            "id": i, "relation": f"P{draw.randrange(34)}", "subject": "Danielle Darrieux",
            "located": located.as_dict(), "proof": proof, "rivals": {"activation": sites}, "seconds": {"locate": 0.1},
        }  # fmt: skip


def measured(name: str, records: int) -> dict:
    """Peaks in bytes, of this process."""
    before = _resident()
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        found = run_study(StandIn(name, records), f"{folder}/run", progress=False).summary
    peak = tracemalloc.get_traced_memory()[1]
    if found["records"] != records:
        raise RuntimeError(f"{found['records']} records, expected {records}")
    return {"peak": peak, "resident": _resident() - before}


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measured(sys.argv[1], int(sys.argv[2]))))
        return
    found = {}
    for name, counts in RECORDS.items():
        for records in counts:
            command = [sys.executable, "-m", "benchmarks.speed.run_memory", name, str(records)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.setdefault(name, {})[str(records)] = json.loads(done.stdout)
    a_record = {}
    for name, (few, many) in RECORDS.items():
        less, more = found[name][str(few)], found[name][str(many)]
        a_record[name] = {what: (more[what] - less[what]) / (many - few) for what in less}
    save("robustness/run_memory", {"bytes": found, "bytes_a_record": a_record})


if __name__ == "__main__":
    main()
