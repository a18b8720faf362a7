"""Memory of a whole run (records, table, summary) with few and with many records: is it flat?

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

from ..registry import benchmark

RECORDS = {"edit": (1000, 20_000), "neurons": (1000, 5000)}
BATCH = 16
DRAWS = 20
RATES = ("ES", "PS", "NS", "ES_argmax", "PS_argmax", "NS_argmax", "EM", "PM", "NM", "free_ES", "free_PS", "GE")


@benchmark("robustness.run_memory", "Does the memory of a run grow with its records?")
def run_memory(share: float = 1.0) -> dict:
    """`share` of the usual numbers of records."""
    peaks, a_record = {}, {}
    for name, counts in RECORDS.items():
        few, many = (round(share * count) for count in counts)
        less, more = _in_process(name, few), _in_process(name, many)
        peaks[name] = {str(few): less, str(many): more}
        a_record[name] = {what: (more[what] - less[what]) / (many - few) for what in less}
    return {"bytes": peaks, "bytes_a_record": a_record}


@run_memory.row
def run_memory_row(record: dict) -> list[str]:
    return [
        f"{name}: {max(map(int, record['bytes'][name])):,} records take "
        f"{bytes_a_record['peak'] / 1000:.1f} kB more each (resident {bytes_a_record['resident'] / 1000:.1f} kB)"
        for name, bytes_a_record in record["bytes_a_record"].items()
    ]


def _in_process(name: str, records: int) -> dict:
    code = f"import json; from {__name__} import measured; print(json.dumps(measured({name!r}, {records})))"
    process = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(process.stdout)


def measured(name: str, records: int) -> dict:
    """Peaks in bytes, of this process."""
    before = _resident()
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        count = run_study(StandIn(name, records), f"{folder}/run", progress=False).summary["records"]
    peak = tracemalloc.get_traced_memory()[1]
    if count != records:
        raise RuntimeError(f"{count} records, expected {records}")
    return {"peak": peak, "resident": _resident() - before}


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class StandIn:
    """A study whose records are random figures; `name` is that of the study whose records they resemble."""

    sequential = False

    def __init__(self, name: str, records: int):
        self.name, self.records = name, records
        self.config = {"records": records}

    def identity(self) -> dict:
        return {"data": "none"}

    def batches(self) -> list[list[str]]:
        ids = [f"counterfact/{i}" for i in range(self.records)]
        return [ids[start : start + BATCH] for start in range(0, self.records, BATCH)]

    def run(self, batch: list[str]) -> list[dict]:
        return [{"id": i, **self._shared(draw := random.Random(i)), **self._own(draw)} for i in batch]

    def restore(self, rows: list[dict]) -> None:
        """Nothing stays on."""

    def summarise(self, rows: Iterable[dict]) -> dict:
        if self.name == "edit":
            return edit_summary.summary(rows)
        summary = neuron_summary.summary(rows, layers=30)
        summary.pop("located")
        return summary

    def _shared(self, draw: random.Random) -> dict:
        return {"relation": f"P{draw.randrange(34)}", "subject": "Danielle Darrieux", "known": draw.random() < 0.5}

    def _own(self, draw: random.Random) -> dict:
        """What the records of one study alone have."""
        if self.name == "edit":
            return {
                **{state: {name: draw.random() for name in RATES} for state in ("before", "after")},
                "perplexity": draw.random(),
                "edit": {"method": "rome", "norm": draw.random()},
                "seconds": {"edit": 0.1},
            }
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
        rivals = {"activation": sites}
        return {"located": located.as_dict(), "proof": proof, "rivals": rivals, "seconds": {"locate": 0.1}}
