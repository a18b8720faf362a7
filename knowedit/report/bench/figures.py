"""Figures of benchmarks: suppression and amplification by relation, neurons by layer, metrics of edits, many edits.

Each takes what a run's summary holds and writes to all of `paths`. A figure of a summary is {value, low, high}, a
fraction; it is drawn in %. With `all_runs`, those of a report, a run has the colour of its place there, and the legend
is a picture of its own, `run_legend`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from ...display.colours import RANDOM
from ...display.drawing import BLUE, COLOURS, GREY, ORANGE, PURPLE, figure, save
from ...evaluate.edits.metrics import METRICS
from ...writing.counts import number_of
from ...writing.inert import inert

Figures = Mapping[str, Mapping]  # metric → {value, low, high}
MOST = 40  # relations in one figure
LONGEST = 32  # letters of a name
PANELS = (("suppress", "neurons × 0"), ("amplify", "neurons × 2"))
_BEFORE, _UNEDITED = "before the edit", "all records, unedited"
_METHOD_COLOURS = {"activation": ORANGE, "random": RANDOM}
_APART = 4  # times: numbers that are nearer on an axis of decades would run into one another


def effects_by_relation(
    by_relation: Mapping[str, Figures], overall: Figures, methods: Sequence[str], paths: Sequence[str | Path]
) -> None:
    """The bar charts of Dai et al. 2022 (figures 4 and 5): the change of the target's probability in each relation.

    `methods`: the sets of neurons, the located ones first, the baselines after them. Of many relations the first 40 are
    drawn. `overall` is drawn below all.
    """
    relations = list(by_relation)
    rows = [*relations[:MOST], "all"]
    figures = [*(by_relation[name] for name in relations[:MOST]), overall]
    with figure(7.5, 1.2 + 0.13 * len(rows) * (len(methods) + 1), columns=2, sharey=True) as (fig, panels):
        for axes, (change, title) in zip(panels, PANELS, strict=True):
            for i, method in enumerate(methods):
                label = method if method in _METHOD_COLOURS and i else f"located by {method}"
                changes = [row.get(f"{change}:{method}") for row in figures]
                _bars(axes, changes, i, len(methods), colour=_colour(method, i), label=_name(label), across=True)
            axes.axvline(0, color="black", linewidth=0.6)
            axes.axhline(len(rows) - 1.5, color="#dddddd", linewidth=0.8)
            axes.set_title(title)
            axes.set_xlabel("change of the target's probability, %")
        panels[0].set_yticks(
            range(len(rows)), [_with_n(name, f.values()) for name, f in zip(rows, figures, strict=True)]
        )
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        more = f"; {len(relations) - MOST} more relations not shown" if len(relations) > MOST else ""
        fig.suptitle(f"Held-out prompts, by relation{more}", x=0.01, ha="left", fontsize="large")
        _legend(fig, panels[0], len(methods))
        _save(fig, paths)


def neurons_by_layer(layers: Mapping[str, Sequence[int]], paths: Sequence[str | Path]) -> None:
    """The histogram of Dai et al. 2022 (figure 3): in which layers the neurons lie, in % of each method's neurons."""
    with figure(7, 2.8) as (fig, axes):
        for i, (method, counts) in enumerate(layers.items()):
            shares = 100 * np.asarray(counts, dtype=float) / max(1, sum(counts))
            width = 0.8 / len(layers)
            places = np.arange(len(counts)) + (i - (len(layers) - 1) / 2) * width
            axes.bar(places, shares, width, color=_colour(method, i), label=f"{_name(method)} (n = {sum(counts)})")
        axes.set_xlabel("layer")
        axes.set_ylabel("% of neurons")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title("Neurons by layer")
        _legend(fig, axes, 3)
        _save(fig, paths)


def faithfulness_curve(curve: Mapping, paths: Sequence[str | Path]) -> None:
    """What is left of the answer's probability with only the strongest neurons, and without them (MIB 2025)."""
    least = 0.5 * min(share for share in curve["share"] if share)
    shares = [100 * max(share, least) for share in curve["share"]]
    lines = (("kept", "only these, by score", BLUE), ("kept_by_size", "only these, by |score|", ORANGE))
    with figure(7, 3) as (fig, axes):
        for name, label, colour in (*lines, ("removed", "without these, by score", GREY)):
            axes.plot(shares, [100 * value for value in curve[name]], marker="o", color=colour, label=label)
        axes.axhline(100, color="black", linewidth=0.6)
        axes.set_xscale("log")
        axes.set_xlabel("strongest neurons, % of all (leftmost: none)")
        axes.set_ylabel("probability, % of the model's")
        areas = ", ".join(f"{name.upper()} {curve[name]['value']:.2f}" for name in ("cpr", "cmd") if curve[name]["n"])
        axes.set_title(f"Faithfulness over {number_of(curve['cpr']['n'], 'fact')}" + (f": {areas}" if areas else ""))
        _legend(fig, axes, 3)
        _save(fig, paths)


def drawn_of(summaries: Iterable[Figures]) -> list[str]:
    """The headline metrics that one of the summaries has."""
    measured = {name for figures in summaries for name in figures}
    drawn = (metric.name for metric in METRICS.values() if metric.headline and metric.unit == "%")
    return [name for name in drawn if name in measured]


def run_legend(runs: Sequence[str], paths: Sequence[str | Path]) -> None:
    """What the colours of `runs` and the other marks are in all figures of a report of several runs, in one picture."""
    with figure(7, 0.4 + 0.2 * -(-(len(runs) + 3) // 3)) as (fig, axes):
        for run, colour in _colours(runs).items():
            axes.bar(0, 0, color=colour, label=_name(run))
        axes.bar(0, 0, color=GREY, alpha=0.35, label=_BEFORE)
        axes.plot([], [], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label=_UNEDITED)
        axes.plot([], [], "o", color=GREY, markersize=4, label="filled: q < 0.05")
        axes.set_axis_off()
        axes.legend(*axes.get_legend_handles_labels(), loc="center", ncols=3, fontsize="small")
        _save(fig, paths)


def edit_metrics(
    runs: Mapping[str, tuple[Figures, Figures]],
    paths: Sequence[str | Path],
    *,
    all_runs: Sequence[str] | None = None,
) -> None:
    """Headline metrics (ES, PS, NS, Score, zsRE's) with intervals: by name of the run, before and after the edit.

    What runs have in common before the edit is drawn once, to the left of them.
    """
    names = drawn_of(after for _, after in runs.values())
    colours = _colours(runs, all_runs)
    groups: dict[tuple, list[str]] = {}  # runs with the same figures before the edit
    for run, (before, _) in runs.items():
        known = tuple((name, before[name]["value"], before[name]["n"]) for name in names if name in before)
        groups.setdefault(known, []).append(run)
    bars: list[tuple[Figures, dict]] = []
    for known, members in groups.items():
        if known:
            bars.append((runs[members[0]][0], {"colour": GREY, "faint": True}))
        bars += [(runs[run][1], {"colour": colours[run], "label": _name(run)}) for run in members]
    with figure(max(5.0, 1.5 + 0.35 * len(names) * (len(runs) + 1)), 3) as (fig, axes):
        for i, (figures, look) in enumerate(bars):
            _bars(axes, [figures.get(name) for name in names], i, len(bars), **look)
        axes.bar(0, 0, color=GREY, alpha=0.35, label=_BEFORE)
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(0, 105)
        axes.set_ylabel("%")
        counts = _counts(figure for _, after in runs.values() for figure in after.values())
        axes.set_title(f"Before and after the edit, 95 % intervals over records{counts}")
        if all_runs is None:
            _legend(fig, axes, 3)
        _save(fig, paths)


def sequential_curves(
    runs: Mapping[str, Mapping[str, Figures]],
    before: Mapping[str, Figures],
    paths: Sequence[str | Path],
    *,
    all_runs: Sequence[str] | None = None,
) -> None:
    """Metrics of all records edited so far against the number of edits that are on, one panel a metric, one line a run.

    `runs`: by name, number of edits → metrics; `before`: by name, the metrics of the unedited model (dashed).
    """
    colours = _colours(runs, all_runs)
    names = drawn_of(figures for points in runs.values() for figures in points.values())
    with figure(max(3.5, 2.1 * len(names)), 2.9, columns=len(names), sharey=True, squeeze=False) as (fig, panels):
        for axes, metric in zip(panels[0], names, strict=True):
            for run, points in runs.items():
                _curve(axes, points, metric, colours[run], _name(run))
            levels = {run: before.get(run, {}).get(metric, {}).get("value") for run in runs}
            one_model = len(set(levels.values())) == 1  # all ask one model about one set of records
            for run, level in levels.items():
                if level is not None:
                    colour = GREY if one_model else colours[run]
                    axes.axhline(100 * level, color=colour, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.set_xscale("log")
            axes.set_xticks(*_decades(runs))
            axes.minorticks_off()
            axes.set_title(metric)
            axes.set_xlabel("n: edits, all asked")
        panels[0][0].set_ylim(0, 105)
        panels[0][0].set_ylabel("%")
        panels[0][0].plot([], [], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label=_UNEDITED)
        if all_runs is None:
            _legend(fig, panels[0][0], 3)
        _save(fig, paths)


def differences(
    rows: Sequence[Mapping],
    first: str,
    paths: Sequence[str | Path],
    *,
    all_runs: Sequence[str] | None = None,
) -> None:
    """Differences between runs in percentage points with their intervals: {metric, run, difference, low, high, q, n}.

    Filled points are those with q below 0.05.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    runs = list(dict.fromkeys(row["run"] for row in rows))
    colours = _colours(runs, all_runs)
    with figure(6, 1.2 + 0.16 * len(metrics) * (len(runs) + 0.5)) as (fig, axes):
        for row in rows:
            i = runs.index(row["run"])
            y = metrics.index(row["metric"]) + (i - (len(runs) - 1) / 2) * 0.7 / len(runs)
            colour = colours[row["run"]]
            if row["low"] is not None:
                axes.plot([100 * row["low"], 100 * row["high"]], [y, y], color=colour, linewidth=1.2)
            clear = row["q"] is not None and row["q"] < 0.05
            axes.plot(100 * row["difference"], y, "o", color=colour, markersize=4, mfc=colour if clear else "white")
        for run in runs:
            axes.plot([], [], "o-", color=colours[run], markersize=4, label=_name(run))
        axes.axvline(0, color="black", linewidth=0.6)
        asked = {name: [row for row in rows if row["metric"] == name] for name in metrics}
        axes.set_yticks(range(len(metrics)), [_with_n(name, asked[name]) for name in metrics])
        axes.set_ylim(len(metrics) - 0.4, -0.6)
        axes.set_xlabel("difference in percentage points, 95 % interval; filled: q < 0.05")
        axes.set_title(f"Against {_name(first)}, record by record")
        if all_runs is None:
            _legend(fig, axes, 3)
        _save(fig, paths)


# ---------------------------------------------------------------- parts


def _bars(
    axes: Axes,
    figures: Sequence[Mapping | None],
    i: int,
    of: int,
    *,
    colour: str,
    label: str | None = None,
    across: bool = False,
    faint: bool = False,
) -> None:
    """The `i`-th of `of` bars of each group, with intervals; nothing where nothing was measured."""
    width = 0.8 / of
    measured = [
        (place, figure) for place, figure in enumerate(figures) if figure is not None and figure["value"] is not None
    ]
    places = [place + (i - (of - 1) / 2) * width for place, _ in measured]
    values = [100 * figure["value"] for _, figure in measured]
    ends = [[_reach(figure, end) for _, figure in measured] for end in ("low", "high")]
    options = {
        "color": colour, "alpha": 0.35 if faint else 1, "label": label,
        "error_kw": {"elinewidth": 0.7, "capsize": 1.2, "capthick": 0.7, "ecolor": "#333333"},
    }  # fmt: skip
    if across:
        axes.barh(places, values, width, xerr=ends, **options)
    else:
        axes.bar(places, values, width, yerr=ends, **options)


def _reach(figure: Mapping, end: str) -> float:
    """How far the interval reaches from the value, in %; 0 where there is none."""
    return 0.0 if figure[end] is None else 100 * max(0.0, abs(figure[end] - figure["value"]))


def _curve(axes: Axes, points: Mapping[str, Figures], metric: str, colour: str, label: str) -> None:
    measured = [(int(edits), figures[metric]) for edits, figures in points.items()
             if figures.get(metric, {}).get("value") is not None]  # fmt: skip
    measured.sort(key=lambda point: point[0])
    edits = [n for n, _ in measured]
    axes.plot(edits, [100 * figure["value"] for _, figure in measured], "o-", color=colour, markersize=3.5, label=label)
    intervals = [(n, 100 * figure["low"], 100 * figure["high"]) for n, figure in measured if figure["low"] is not None]
    if intervals:
        axes.fill_between(*zip(*intervals, strict=True), color=colour, alpha=0.15, linewidth=0)


def _decades(runs: Mapping[str, Mapping]) -> tuple[list[int], list[str]]:
    """The numbers of edits that are named below an axis: the last one, and of those before it such as leave room."""
    kept: list[int] = []
    for n in sorted({int(n) for points in runs.values() for n in points}, reverse=True):
        if not kept or _APART * n <= kept[-1]:
            kept.append(n)
    return kept[::-1], [f"{n:,}" for n in kept[::-1]]


def _colour(method: str, i: int) -> str:
    return _METHOD_COLOURS.get(method, (BLUE, PURPLE)[i % 2]) if i else BLUE


def _name(text: str) -> str:
    """Text from outside, inert and short enough to leave room for what is drawn."""
    shown = inert(text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


def _counts(figures: Iterable[Mapping | None]) -> str:
    """How many records figures are over, as `, n = 40` or `, n = 30 to 40`; nothing where none says so."""
    counts = sorted({figure["n"] for figure in figures if figure and figure.get("n")})
    return f", n = {' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))}" if counts else ""


def _with_n(name: str, figures: Iterable[Mapping | None]) -> str:
    counts = _counts(figures)
    return _name(name) + (f" ({counts.removeprefix(', ')})" if counts else "")


def _colours(runs: Collection[str], all_runs: Sequence[str] | None = None) -> dict[str, Any]:
    """The colour of each run, by its place among all."""
    order = list(runs) if all_runs is None else list(all_runs)
    colours = COLOURS if len(order) <= len(COLOURS) else colormaps["tab20"].colors
    return {run: colours[order.index(run) % len(colours)] for run in runs}


def _legend(fig, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize="small")


def _save(fig, paths: Sequence[str | Path]) -> None:
    for path in paths:
        save(fig, path)
