"""The report of one or more runs of a benchmark: tables, figures, and how the runs differ record by record.

    report = bench_report(["runs/rome", "runs/fine-tune"])
    report.comparison.differences
    report.write("report")  # report.md, report.json, each table as .tex and .csv, each figure as .png, .svg, .pdf

Summaries were written when the runs ended; a comparison streams their records and keeps a few numbers of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...display.drawing import FORMATS
from ...evaluate.metrics import find_metric
from ...files import new_folder, write_text
from .comparison import Comparison, compare
from .metric_tables import methods_of, tables
from .runs import ReportedRun, read_runs
from .tables import SUFFIXES, WRITERS, Table, markdown

Draw = Callable[[Sequence[Path]], None]


@dataclass(frozen=True)
class BenchReport:
    """Runs, and where there are several their `comparison`."""

    runs: tuple[ReportedRun, ...]
    comparison: Comparison | None

    def tables(self) -> list[Table]:
        return tables(self.runs, self.comparison)

    def figures(self) -> dict[str, Draw]:
        """By name, what draws it to some paths."""
        study = self.runs[0].study
        drawings = self._neuron_figures() if study == "neurons" else self._edit_figures()
        if self.comparison is not None:
            drawings |= self._differences()
        return drawings

    def as_dict(self) -> dict:
        """For JSON."""
        compared = None if self.comparison is None else self.comparison.as_dict()
        return {"runs": [run.as_dict() for run in self.runs], "comparison": compared}

    def write(self, folder: str | Path) -> list[str]:
        """Write everything into a new folder, and return the names of its files.

        Raises `InputError` where the folder is there already or cannot be written; nothing is left behind then.
        """
        with new_folder(folder) as new:
            report_tables = self.tables()
            for table in report_tables:
                for kind in ("latex", "csv"):
                    write_text(new / f"{table.name}.{SUFFIXES[kind]}", WRITERS[kind](table))
            drawings = self.figures()
            for name, draw in drawings.items():
                draw([new / f"{name}.{kind}" for kind in FORMATS])
            pictures = [f"![{name}]({name}.svg)\n" for name in drawings]
            write_text(new / "report.md", "\n".join([*map(markdown, report_tables), *pictures]))
            write_text(new / "report.json", json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n")
            return sorted(path.name for path in new.iterdir())

    # ---------------------------------------------------------------- figures

    def _neuron_figures(self) -> dict[str, Draw]:
        from .figures import effects_by_relation, faithfulness_curve, neurons_by_layer

        drawings: dict[str, Draw] = {}
        for i, run in enumerate(self.runs, 1):
            end = f"-{i}" if len(self.runs) > 1 else ""
            summary, methods = run.summary, methods_of(run)
            if methods:
                by_relation = summary.get("by_relation", {})
                drawings[f"effects{end}"] = partial(effects_by_relation, by_relation, summary["metrics"], methods)
            if layers := summary.get("layers"):
                drawings[f"layers{end}"] = partial(neurons_by_layer, layers)
            if curve := summary.get("faithfulness"):
                drawings[f"faithfulness{end}"] = partial(faithfulness_curve, curve)
        return drawings

    def _edit_figures(self) -> dict[str, Draw]:
        from .figures import drawn_of, edit_metrics, run_legend, sequential_curves

        names = self._names()
        drawings: dict[str, Draw] = {} if names is None else {"legend": partial(run_legend, names)}
        figures = {run.name: (run.summary.get("before", {}), run.summary["metrics"]) for run in self.runs}
        if drawn_of(after for _, after in figures.values()):
            drawings["metrics"] = partial(edit_metrics, figures, all_runs=names)
        curves = {
            run.name: {edits: point["metrics"] for edits, point in run.summary["checkpoints"].items()}
            for run in self.runs
            if run.summary.get("checkpoints")
        }
        if curves:
            before = {name: figures[name][0] for name in curves}
            drawings["sequential"] = partial(sequential_curves, curves, before, all_runs=names)
        return drawings

    def _names(self) -> list[str] | None:
        """Of several runs, whose figures share one legend."""
        return [run.name for run in self.runs] if len(self.runs) > 1 else None

    def _differences(self) -> dict[str, Draw]:
        from .figures import differences

        rows = [
            {"run": d.runs[1], **d.as_dict()}
            for d in self.comparison.differences
            if d.difference is not None and find_metric(d.metric).unit == "%"
        ]
        names = None if self.runs[0].study == "neurons" else self._names()
        draw = partial(differences, rows, self.comparison.first, all_runs=names)
        return {"differences": draw} if rows else {}


def bench_report(folders: Sequence[str | Path]) -> BenchReport:
    """The report of the finished runs in `folders`; several are compared, each with the first.

    Raises `InputError` for a folder that is no run or not finished, and for runs that cannot be compared, and
    `DataError` for a damaged run.
    """
    runs = read_runs(folders)
    comparison = compare([run.run for run in runs], [run.name for run in runs]) if len(runs) > 1 else None
    return BenchReport(tuple(runs), comparison)
