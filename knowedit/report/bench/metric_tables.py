"""The tables of one or more runs of a benchmark, from their summaries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...evaluate.edits.metrics import METRICS
from ...evaluate.metrics import find_metric
from ...evaluate.neurons.summary import WHATS
from .comparison import Comparison
from .runs import ReportedRun
from .tables import Cell, Table, Value

WORDS = {"within": "of one relation", "between": "of different relations",
         "same_relation": "same relation", "other_relations": "other relations"}  # fmt: skip


def tables(runs: Sequence[ReportedRun], comparison: Comparison | None = None) -> list[Table]:
    """What was run, its figures, and how the runs differ. All figures are in %, unless their column says otherwise."""
    parts = [_runs(runs), _settings(runs)]
    if runs[0].study == "neurons":
        parts += [_effects(runs), _counts(runs), _neuron_relations(runs), _layers(runs), _overlap(runs)]
        parts += [_specificity(runs), _faithfulness(runs), _stability(runs), _erasure(runs)]
    else:
        parts += [_methods(runs), _metrics(runs), _edit_relations(runs), _checkpoints(runs), _perplexity(runs)]
    if comparison is not None:
        parts.append(_comparison(comparison))
    return [table for table in parts if table.rows]


def shown_of(summaries: Iterable[Mapping[str, dict]], of_model: bool = True) -> list[str]:
    """The metrics of wide tables that a summary has: headlines, and if `of_model` those of the whole model."""
    measured = {name for summary in summaries for name in summary}
    shown = (metric.name for metric in METRICS.values() if metric.headline or (of_model and metric.of_model))
    return [name for name in shown if name in measured]


def value(name: str, figure: dict | None, signed: bool = False) -> Value | None:
    """A figure of a summary as a cell, in the unit of its metric."""
    if figure is None:
        return None
    metric = find_metric(name)
    return Value(
        figure["value"], figure["low"], figure["high"], metric.scale, metric.digits, signed=signed or metric.signed
    )


# ---------------------------------------------------------------- every study


def _runs(runs: Sequence[ReportedRun]) -> Table:
    rows = [
        (
            run.name, run.study, run.model, run.method, str(run.config.get("source", "")), run.summary.get("records"),
            run.summary.get("failed"), run.summary.get("skipped"), run.summary.get("seconds"),
        )
        for run in runs
    ]  # fmt: skip
    columns = ("run", "study", "model", "method", "source", "records", "failed", "skipped", "seconds")
    return Table("runs", "What was run", columns, rows)


def _settings(runs: Sequence[ReportedRun]) -> Table:
    """Settings that are not the same in all runs."""
    flat = [dict(_leaves(run.config)) for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    rows = [
        (name, *(_setting(settings.get(name)) for settings in flat))
        for name in names
        if any(settings.get(name) != flat[0].get(name) for settings in flat)
    ]
    return Table("settings", "Settings that differ", ("setting", *(run.name for run in runs)), rows)


def _setting(setting: object) -> str:
    return "" if setting is None else str(setting)


def _leaves(config: dict, path: str = "") -> Iterator[tuple[str, object]]:
    for name, setting in config.items():
        if isinstance(setting, dict):
            yield from _leaves(setting, f"{path}{name}.")
        else:
            yield f"{path}{name}", setting


def _beside(runs: Sequence[ReportedRun], columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of each run, with its name where there are several."""
    if len(runs) == 1:
        return tuple(columns)
    return tuple(f"{run.name}: {column}" for run in runs for column in columns)


def _named_rows(runs: Sequence[ReportedRun], name: str, title: str, columns: Sequence[str], rows, note="") -> Table:
    """A table whose `rows(run)` begin with the run's name where there are several."""
    several = len(runs) > 1
    all_rows = [((run.name, *row) if several else row) for run in runs for row in rows(run)]
    return Table(name, title, (("run", *columns) if several else tuple(columns)), all_rows, note)


def _comparison(comparison: Comparison) -> Table:
    several = len(comparison.records) > 1
    rows = []
    for d in comparison.differences:
        difference = {"value": d.difference, "low": d.low, "high": d.high}
        row: list[Cell] = [
            find_metric(d.metric).label,
            *(value(d.metric, {"value": v, "low": None, "high": None}) for v in (d.one, d.other)),
            value(d.metric, difference, signed=True), d.n, d.higher, d.lower, d.test or "", d.p, d.q,
        ]  # fmt: skip
        rows.append([d.runs[1], *row] if several else row)
    other = "run" if several else next(iter(comparison.records))
    columns = ("metric", comparison.first, other, "difference", "n", "higher", "lower", "test", "p", "q")
    note = (
        "Over common records: their difference with a 95 % bootstrap interval, on how many the metric is higher and "
        "lower, p of the paired test, q after Benjamini and Hochberg over all rows."
    )
    title = f"Record by record, against {comparison.first}"
    return Table("comparison", title, ("run", *columns) if several else columns, rows, note)


# ---------------------------------------------------------------- edits


def _metrics(runs: Sequence[ReportedRun]) -> Table:
    names = list(dict.fromkeys(name for run in runs for name in run.summary["metrics"]))
    rows = []
    for name in names:
        row: list[Cell] = [find_metric(name).label]
        for run in runs:
            after = run.summary["metrics"].get(name)
            before = run.summary.get("before", {}).get(name)
            row += [value(name, before), value(name, after), None if after is None else after.get("n")]
        rows.append(row)
    columns = ("metric", *_beside(runs, ("before", "after", "n")))
    return Table("metrics", "Metrics before and after the edit, with 95 % intervals over records", columns, rows)


def _methods(runs: Sequence[ReportedRun]) -> Table:
    """The table of a paper: a row a run, the headline metrics after the edit, the best of each in bold; of several."""
    names = shown_of((run.summary["metrics"] for run in runs), of_model=False)
    names.sort(key=lambda name: name != "Score")  # it says most, the others are its parts
    rows = []
    for run in runs if len(runs) > 1 else ():
        figures = [run.summary["metrics"].get(name) for name in names]
        n = max((figure.get("n") or 0 for figure in figures if figure), default=0)
        rows.append((run.name, run.method, *map(value, names, figures), n))
    best = set()
    for column in range(2, len(names) + 2):
        texts = {i: str(row[column]).partition(" ")[0] for i, row in enumerate(rows) if row[column] is not None}
        shown = {i: float(text) for i, text in texts.items() if text}  # as it is shown: equal ones are all best
        best |= {(i, column) for i, number in shown.items() if number == max(shown.values())}
    labels = (find_metric(name).label for name in names)
    note = "In %, with 95 % intervals over records; higher is better, and the best of each column is bold."
    return Table("methods", "After the edit", ("run", "method", *labels, "n"), rows, note, frozenset(best))


def _edit_relations(runs: Sequence[ReportedRun]) -> Table:
    names = shown_of((means for run in runs for means in _relations(run).values()), of_model=False)

    def rows(run):
        for relation, figures in _relations(run).items():
            n = max((figure.get("n") or 0 for figure in figures.values()), default=0)
            yield (relation, n, *(value(name, figures.get(name)) for name in names))

    return _named_rows(runs, "relations", "By relation, after the edit", ("relation", "records", *names), rows)


def _relations(run: ReportedRun) -> dict[str, dict]:
    return run.summary.get("by_relation", {})


def _checkpoints(runs: Sequence[ReportedRun]) -> Table:
    names = shown_of(point["metrics"] for run in runs for point in run.summary.get("checkpoints", {}).values())

    def rows(run):
        for edits, point in sorted(run.summary.get("checkpoints", {}).items(), key=lambda item: int(item[0])):
            yield (int(edits), *(value(name, point["metrics"].get(name)) for name in names))

    title = "All records so far, under so many edits at once"
    return _named_rows(runs, "sequential", title, ("edits", *(find_metric(name).label for name in names)), rows)


def _perplexity(runs: Sequence[ReportedRun]) -> Table:
    def rows(run):
        if perplexity := run.summary.get("perplexity"):
            within = (Value(perplexity[f"within_{p}_percent"]) for p in (1, 2))
            rises = (Value(perplexity[rise], signed=True) for rise in ("median", "worst"))
            yield (*within, *rises, perplexity["n"])

    columns = ("records within 1 %", "records within 2 %", "median rise", "worst rise", "n")
    return _named_rows(runs, "perplexity", "Perplexity of a plain text", columns, rows)


# ---------------------------------------------------------------- neurons


def methods_of(run: ReportedRun) -> list[str]:
    """The sets of neurons that were suppressed and amplified: the run's own, then its baselines."""
    names = dict.fromkeys(name.partition(":")[2] for name in run.summary["metrics"] if name.startswith("suppress:"))
    return sorted(names, key=lambda name: name != run.method)


def _effects(runs: Sequence[ReportedRun]) -> Table:
    def rows(run):
        metrics = run.summary["metrics"]
        for method in methods_of(run):
            effects = {
                kind: metrics.get(f"{kind}:{method}") for change, _ in WHATS for kind in (change, f"{change}_ratios")
            }
            n = max((figure.get("n") or 0 for figure in effects.values() if figure), default=0)
            yield (method, n, *(value(kind, figure, signed=True) for kind, figure in effects.items()))

    columns = ("neurons by", "facts", "suppress", "suppress, mean of ratios", "amplify", "amplify, mean of ratios")
    title = "Change of the target's probability on held-out prompts"
    return _named_rows(runs, "effects", title, columns, rows)


def _counts(runs: Sequence[ReportedRun]) -> Table:
    def rows(run):
        metrics = run.summary["metrics"]
        figures = [value(name, metrics.get(name)) for name in ("neurons", "probability")]
        if any(figures):
            summary = run.summary
            yield (*figures, metrics.get("neurons", {}).get("n"), summary.get("empty"), summary.get("unproved"))

    columns = ("neurons a fact", "probability before", "facts", "facts without neurons", "without a prompt to prove")
    return _named_rows(runs, "counts", "Located neurons", columns, rows)


def _neuron_relations(runs: Sequence[ReportedRun]) -> Table:
    baselines = list(dict.fromkeys(method for run in runs for method in methods_of(run)[1:]))

    def rows(run):
        methods = [*methods_of(run)[:1], *baselines]
        for relation, figures in _relations(run).items():
            yield (
                relation, figures.get("neurons", {}).get("n"), value("neurons", figures.get("neurons")),
                value("probability", figures.get("probability")),
                *(value("", figures.get(f"{change}:{m}"), signed=True) for change, _ in WHATS for m in methods),
            )  # fmt: skip

    sets = ["located", *baselines] if any(map(methods_of, runs)) else []
    columns = ("relation", "facts", "neurons a fact", "probability before",
               *(f"{change}, {kind}" for change, _ in WHATS for kind in sets))  # fmt: skip
    return _named_rows(runs, "relations", "By relation", columns, rows)


def _layers(runs: Sequence[ReportedRun]) -> Table:
    columns, counts = [], []
    for run in runs:
        for method, neurons in run.summary.get("layers", {}).items():
            columns.append(method if len(runs) == 1 else f"{run.name}: {method}")
            counts.append(neurons)
    rows = [
        (layer, *(neurons[layer] if layer < len(neurons) else None for neurons in counts))
        for layer in range(max(map(len, counts), default=0))
    ]
    return Table("layers", "Neurons in each layer, over all facts", ("layer", *columns), rows)


def _overlap(runs: Sequence[ReportedRun]) -> Table:
    def rows(run):
        for name, overlap in run.summary.get("overlap", {}).items():
            yield (WORDS.get(name, name), overlap["pairs"], Value(overlap["shared"], scale=1, digits=2),
                   Value(overlap["jaccard"]))  # fmt: skip

    columns = ("pairs of facts", "pairs", "shared neurons", "Jaccard index")
    return _named_rows(runs, "overlap", "Neurons that two facts share", columns, rows)


def _specificity(runs: Sequence[ReportedRun]) -> Table:
    def rows(run):
        for name, changes in run.summary.get("specificity", {}).items():
            n = max((figure.get("n") or 0 for figure in changes.values()), default=0)
            yield (WORDS.get(name, name), n, *(value("", changes.get(change), signed=True) for change, _ in WHATS))

    columns = ("other facts", "n", "suppress", "amplify")
    return _named_rows(runs, "specificity", "Change of other facts' targets", columns, rows)


def _faithfulness(runs: Sequence[ReportedRun]) -> Table:
    def rows(run):
        curve = run.summary.get("faithfulness")
        if curve:
            for share, *values in zip(
                *(curve[name] for name in ("share", "kept", "kept_by_size", "removed")), strict=True
            ):
                yield (Value(share, digits=2), *map(Value, values))
            yield ("area: CPR, CMD", value("", curve["cpr"]), value("", curve["cmd"]), None)

    columns = ("strongest neurons", "only these, by score", "only these, by size of score", "without these")
    return _named_rows(runs, "faithfulness", "What is left of the answer's probability", columns, rows)


def _stability(runs: Sequence[ReportedRun]) -> Table:
    def rows(run):
        for setting, stability in run.summary.get("stability", {}).items():
            yield (setting, Value(stability["neurons"], scale=1, digits=2), value("", stability["jaccard"]),
                   stability["jaccard"].get("n"))  # fmt: skip

    columns = ("setting", "neurons", "Jaccard index", "facts")
    return _named_rows(runs, "stability", "Neurons under other settings", columns, rows)


def _erasure(runs: Sequence[ReportedRun]) -> Table:
    def rows(run):
        for relation, erasure in run.summary.get("erasure", {}).items():
            for whose in ("own", "others"):
                answers = erasure.get(whose)
                if isinstance(answers, dict):
                    changes = [answers.get(f"{name}_{when}") for name in ("probability", "first_choice")
                               for when in ("before", "after")]  # fmt: skip
                    yield (relation, erasure.get("neurons"), WORDS.get(whose, whose), answers.get("n"),
                           *(None if change is None else Value(change) for change in changes))  # fmt: skip

    columns = ("relation", "neurons", "asked", "n", "probability before", "probability after",
               "first choice before", "first choice after")  # fmt: skip
    return _named_rows(runs, "erasure", "Relations erased: their own facts, and others", columns, rows)
