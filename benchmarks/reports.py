"""Studies of `knowedit bench`, run one after the other, and `knowedit report` of them all.

The runs lie in a folder and go on where they were stopped. What the numbers mean is in docs/benchmarks.md, how each run
was configured `knowedit bench configs` tells.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from knowedit.writing.counts import number_of

from .registry import benchmark

METHODS = ("rome-mixed", "ft", "ft-l", "kn-unsigned", "kn")
RUNS = Path("runs")


@benchmark("reports.builtin", "What do the editing methods do to built-in facts?")
def builtin(source: str, runs: Path = RUNS) -> Path:
    """`source`: the file that `python -m benchmarks facts` writes."""
    configs = {"rome": "rome_smollm2_builtin", **{method: f"{method}_smollm2" for method in METHODS}}
    return _reported("edit", "builtin", configs, source, runs)


@benchmark("reports.counterfact_lite", "What do the editing methods do to CounterFact-lite records?")
def counterfact_lite(source: str, runs: Path = RUNS) -> Path:
    """`source`: a CounterFact-lite file."""
    configs = {"rome": "rome_smollm2_counterfact-lite", **{method: f"{method}_smollm2" for method in METHODS[1:]}}
    return _reported("edit", "lite", configs, source, runs)


@benchmark("reports.counterfact", "What does ROME do to records of full CounterFact?")
def counterfact(source: str, runs: Path = RUNS) -> Path:
    """`source`: a CounterFact file, of which the first 1,000 records are edited, one at a time."""
    return _reported("edit", "counterfact", {"rome": "rome_smollm2_counterfact"}, source, runs)


@benchmark("reports.zsre", "What does ROME do to records of zsRE?")
def zsre(source: str, runs: Path = RUNS) -> Path:
    """`source`: a zsRE file in MEND's form."""
    return _reported("edit", "zsre", {"rome": "rome_smollm2_zsre"}, source, runs)


@benchmark("reports.free_writing", "Does the edited model write the new answer of its own accord?")
def free_writing(source: str, runs: Path = RUNS) -> Path:
    """`source`: as for `counterfact`; the first 100 records."""
    return _reported("edit", "writing", {"rome": "rome-writing_smollm2_counterfact"}, source, runs)


@benchmark("reports.fact_sets", "What does one change that holds hundreds of CounterFact records do?")
def fact_sets(source: str, runs: Path = RUNS) -> Path:
    """`source`: a CounterFact file. Beside the set stand its first records in the prompt."""
    configs = {method: f"{method}_smollm2_counterfact" for method in ("memit", "retrieval")}
    return _reported("edit", "counterfact", configs, source, runs)


@benchmark("reports.edits_stacked", "What do edits do that stay on, one on top of the other?")
def edits_stacked(source: str, runs: Path = RUNS) -> Path:
    """`source`: as for `fact_sets`, whose first records are edited."""
    return _reported("edit", "stacked", {"rome": "rome-stacked_smollm2_counterfact"}, source, runs)


@benchmark("reports.fact_sets_held_out", "Does a change that holds hundreds of records do the same on other records?")
def fact_sets_held_out(source: str, runs: Path = RUNS) -> Path:
    """`source`: as for `fact_sets`, whose records are left out."""
    return _reported("edit", "held-out", {"memit": "memit_smollm2_counterfact-held-out"}, source, runs)


@benchmark("reports.relations", "What does ROME do to known facts of the relations data set?")
def relations(source: str, runs: Path = RUNS) -> Path:
    """`source`: the folder of the relations data set."""
    return _reported("edit", "relations", {"rome": "rome_smollm2_relations"}, source, runs, "--sample", "200")


@benchmark("reports.neurons_builtin", "What do the neurons of known built-in facts do on held-out prompts?")
def neurons_builtin(runs: Path = RUNS) -> Path:
    return _reported("neurons", "builtin", {"neurons": "neurons_smollm2_builtin"}, "builtin", runs)


@benchmark("reports.neurons_relations", "What do the neurons of known facts of the relations data set do?")
def neurons_relations(source: str, runs: Path = RUNS) -> Path:
    """`source`: the folder of the relations data set."""
    return _reported("neurons", "relations", {"neurons": "neurons_smollm2_relations"}, source, runs)


@fact_sets.row
@edits_stacked.row
@fact_sets_held_out.row
def fact_sets_row(record: dict) -> list[str]:
    shown = {"ES": "ES", "ES_argmax": "argmax", "PS": "PS", "NS": "NS"}
    first = record["runs"][0]
    lines = [f"unedited, {number_of(first['records'], 'fact')}: {_percent(first['before'], shown)}"]
    for run in record["runs"]:
        points = {int(n): point["metrics"] for n, point in run["checkpoints"].items()}
        lines += [
            f"{run['name'].partition('_')[0]}, {number_of(n, 'fact')}: {_percent(metrics, shown)}; "
            f"perplexity {100 * metrics['perplexity']['value']:+.1f} %"
            for n, metrics in sorted(points.items())
        ]
    return lines


def _percent(metrics: dict, names: dict[str, str]) -> str:
    return ", ".join(f"{word} {100 * metrics[name]['value']:.1f}" for name, word in names.items() if name in metrics)


@zsre.row
def zsre_row(record: dict) -> list[str]:
    shown = {name: name for name in ("Efficacy", "Paraphrase", "Specificity")}
    (run,) = record["runs"]
    n = number_of(run["metrics"]["Efficacy"]["n"], "record")
    return [f"unedited, {n}: {_percent(run['before'], shown)}", f"rome: {_percent(run['metrics'], shown)}"]


@free_writing.row
def free_writing_row(record: dict) -> list[str]:
    (run,) = record["runs"]
    taught = _percent(run["metrics"], {"ES_argmax": "argmax", "PS_argmax": "paraphrases"})
    free = _percent(run["metrics"], {"free_ES": "begins with the new answer", "free_PS": "paraphrases"})
    return [f"rome, {number_of(run['metrics']['ES']['n'], 'record')}: {taught}; written freely: {free}"]


@builtin.row
@counterfact_lite.row
@counterfact.row
@relations.row
def edits_row(record: dict) -> list[str]:
    lines = []
    for run in record["runs"]:
        parts = ", ".join(
            f"{name} {100 * run['metrics'][name]['value']:.1f} (unedited {100 * run['before'][name]['value']:.1f})"
            for name in ("ES", "PS", "NS", "Score")
        )
        lines.append(f"{run['name'].partition('_')[0]}, {run['metrics']['ES']['n']:,} facts: {parts}")
    return lines


@neurons_builtin.row
@neurons_relations.row
def neurons_row(record: dict) -> list[str]:
    (run,) = record["runs"]
    metrics = run["metrics"]

    def both(by: str) -> str:
        return ", ".join(f"{100 * metrics[f'{way}:{by}']['value']:+.1f}%" for way in ("suppress", "amplify"))

    return [
        f"{metrics['neurons']['n']} facts of {len(run['by_relation'])} relations, "
        f"{metrics['neurons']['value']:.1f} neurons a fact, set to zero and doubled",
        f"located {both('gradient')}; as many by activation {both('activation')}; random {both('random')}",
    ]


def _reported(study: str, data: str, configs: dict[str, str], source: str, runs: Path, *options: str) -> Path:
    """Run the study once for each config, and make the report of all runs; its folder."""
    folders = [runs / f"{method}_{data}" for method in configs]
    for folder, config in zip(folders, configs.values(), strict=True):
        goes_on = ["--resume"] if (folder / "manifest.json").exists() else []
        named = ["--config", config, "--source", source]
        _knowedit("bench", study, *named, "--out", str(folder), *options, *goes_on)
    report = runs / f"report_{study}_{data}"
    shutil.rmtree(report, ignore_errors=True)
    _knowedit("report", *map(str, folders), "--out", str(report))
    return report


def _knowedit(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "knowedit", *words], check=True)
