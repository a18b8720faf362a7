"""Figures of benchmarks draw the figures that they are given, whatever is missing, and take text literally."""

import matplotlib.image
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from support.commands import HOSTILE
from support.made_runs import edit_run, neuron_run, sequential_run

from knowedit.report.bench import figures as bench
from knowedit.report.bench.figures import (
    LONGEST,
    MOST,
    differences,
    edit_metrics,
    effects_by_relation,
    neurons_by_layer,
    run_legend,
    sequential_curves,
)
from knowedit.report.bench.report import bench_report


def one(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "n": 9}


@pytest.fixture
def drawn(monkeypatch):
    """Figures as they are, instead of files."""
    kept: list[Figure] = []
    monkeypatch.setattr(bench, "save", lambda fig, path: kept.append(fig))
    return kept


def widths(axes):
    """Lengths of the bars across, by the label of their series."""
    return {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers if hasattr(bars, "patches")}


def heights(axes):
    return [[bar.get_height() for bar in bars] for bars in axes.containers if hasattr(bars, "patches")]


def test_effects_stand_beside_their_baselines_in_every_relation(drawn):
    by_relation = {
        name: {f"{what}:{m}": one(v, v - 0.1, v + 0.1) for what in ("suppress", "amplify") for m, v in found.items()}
        for name, found in {"capital": {"ig": -0.8, "random": 0.01}, "author": {"ig": -0.5, "random": 0.0}}.items()
    }
    overall = {"suppress:ig": one(-0.7), "suppress:random": one(0.0), "amplify:ig": one(0.5), "amplify:random": one(0)}
    effects_by_relation(by_relation, overall, ["ig", "random"], ["x.png"])
    suppressed, amplified = drawn[0].axes
    assert widths(suppressed) == {"located by ig": pytest.approx([-80, -50, -70]), "random": pytest.approx([1, 0, 0])}
    assert widths(amplified)["located by ig"] == pytest.approx([-80, -50, 50])
    assert [label.get_text() for label in suppressed.get_yticklabels()] == [
        "capital (n = 9)",
        "author (n = 9)",
        "all (n = 9)",
    ]


def test_what_was_not_measured_is_no_bar(drawn):
    effects_by_relation({"a": {"suppress:ig": one(None)}, "b": {}}, {"suppress:ig": one(-0.5)}, ["ig"], ["x.png"])
    assert widths(drawn[0].axes[0])["located by ig"] == [-50]


def test_of_many_relations_the_first_are_drawn_and_the_rest_is_said(drawn):
    by_relation = {f"r{i}": {"suppress:ig": one(-0.5)} for i in range(MOST + 7)}
    effects_by_relation(by_relation, {}, ["ig"], ["x.png"])
    assert len(widths(drawn[0].axes[0])["located by ig"]) == MOST
    assert "7 more relations not shown" in drawn[0].get_suptitle()


def test_layers_are_shares_of_each_methods_neurons(drawn):
    neurons_by_layer({"ig": [1, 3, 0], "activation": [0, 0, 0]}, ["x.png"])
    assert heights(drawn[0].axes[0]) == [[25, 75, 0], [0, 0, 0]]


def test_metrics_of_several_runs_before_and_after(drawn):
    runs = {
        "a": ({"ES": one(0.1), "PS": one(0.2)}, {"ES": one(0.9, 0.8, 1.0), "PS": one(0.7), "GE": one(5.0)}),
        "b": ({"ES": one(0.1)}, {"ES": one(0.6), "PS": one(None)}),
    }
    edit_metrics(runs, ["x.png"])
    assert heights(drawn[0].axes[0])[:4] == [pytest.approx(v) for v in ([10, 20], [90, 70], [10], [60])]
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["ES", "PS"]


def test_what_runs_have_in_common_before_the_edit_is_drawn_once_beside_them(drawn):
    same, other = {"ES": one(0.1)}, {"ES": {**one(0.1), "n": 3}}
    runs = {"a": (same, {"ES": one(0.9)}), "b": (other, {"ES": one(0.6)}), "c": (same, {"ES": one(0.7)})}
    edit_metrics(runs, ["x.png"])
    (axes,) = drawn[0].axes
    bars = sorted((patch for patch in axes.patches if patch.get_height()), key=lambda bar: bar.get_x())
    assert [round(bar.get_height()) for bar in bars] == [10, 90, 70, 10, 60]
    assert [bar.get_alpha() == 0.35 for bar in bars] == [True, False, False, True, False]
    assert len({bar.get_facecolor() for bar in bars}) == 4  # one grey, and one colour a run
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()].count("before the edit") == 1


def test_zsres_metrics_are_drawn_where_they_are_what_there_is(drawn):
    edit_metrics({"a": ({}, {"Efficacy": one(0.9), "Specificity": one(0.3)})}, ["x.png"])
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["Efficacy", "Specificity"]


def test_curves_rise_with_the_number_of_edits(drawn):
    points = {"100": {"ES": one(0.4, 0.3, 0.5)}, "1": {"ES": one(1.0)}, "10": {"ES": one(0.8, 0.5, 0.9)}}
    sequential_curves({"a": points, "b": points}, {"a": {"ES": one(0.1)}, "b": {"ES": one(0.2)}}, ["x.png"])
    (axes,) = drawn[0].axes
    line = axes.lines[0]
    assert line.get_xdata().tolist() == [1, 10, 100] and line.get_ydata().tolist() == [100, 80, 40]
    assert axes.get_xscale() == "log" and [label.get_text() for label in axes.get_xticklabels()] == ["1", "10", "100"]
    levels = [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert levels == [10, 20]


def test_differences_are_filled_where_they_are_clear(drawn):
    rows = [
        {"metric": "ES", "run": "b", "difference": -0.2, "low": -0.3, "high": -0.1, "q": 0.01},
        {"metric": "PS", "run": "b", "difference": 0.1, "low": None, "high": None, "q": None},
    ]
    differences(rows, "a", ["x.png"])
    points = [line for line in drawn[0].axes[0].lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert [line.get_xdata()[0] for line in points] == [-20, 10]
    assert [line.get_markerfacecolor() == "white" for line in points] == [False, True]


def test_more_runs_than_colours_still_differ(drawn):
    edit_metrics({f"run {i}": ({}, {"ES": one(0.5)}) for i in range(9)}, ["x.png"])
    bars = [bars[0].get_facecolor() for bars in drawn[0].axes[0].containers if hasattr(bars, "patches") and len(bars)]
    assert len(set(bars[:9])) == 9


def test_a_run_has_one_colour_in_all_figures_and_one_legend(drawn):
    names = ["a", "b", "c"]
    edit_metrics({name: ({}, {"ES": one(0.5)}) for name in names}, ["x.png"], all_runs=names)
    row = {"metric": "ES", "run": "c", "difference": -0.2, "low": -0.3, "high": -0.1, "q": 0.01, "n": 7}
    differences([row], "a", ["x.png"], all_runs=names)
    sequential_curves({"c": {"1": {"ES": one(0.5)}}}, {}, ["x.png"], all_runs=names)
    run_legend(names, ["x.png"])
    bars, points, curves, legend = drawn
    colours = dict(zip(names, [patch.get_facecolor() for patch in legend.axes[0].patches], strict=False))
    assert colours["c"] in {patch.get_facecolor() for patch in bars.axes[0].patches}
    for fig in (points, curves):
        assert to_rgba(fig.axes[0].lines[0].get_color()) == colours["c"]
    assert not any(fig.legends for fig in (bars, points, curves)) and legend.axes[0].get_legend()


def test_n_stands_in_every_figure(drawn):
    counted = {**one(0.5), "n": 12}
    edit_metrics({"a": ({}, {"ES": counted}), "b": ({}, {"ES": {**counted, "n": 30}})}, ["x.png"])
    assert "n = 12 to 30" in drawn[0].axes[0].get_title(loc="left")
    effects_by_relation({"home": {"suppress:ig": counted}}, {"suppress:ig": counted}, ["ig"], ["x.png"])
    labels = [label.get_text() for label in drawn[1].axes[0].get_yticklabels()]
    assert labels == ["home (n = 12)", "all (n = 12)"]
    row = {"metric": "ES", "run": "b", "difference": -0.2, "low": None, "high": None, "q": None, "n": 7}
    differences([row], "a", ["x.png"])
    assert drawn[2].axes[0].get_yticklabels()[0].get_text() == "ES (n = 7)"


@pytest.mark.parametrize("kind", ["edits", "neurons"])
def test_every_figure_is_written_as_png_svg_and_pdf(tmp_path, kind):
    if kind == "edits":
        runs = [sequential_run(tmp_path / "a").folder, edit_run(tmp_path / "b").folder]
        names = {"legend", "metrics", "sequential", "differences"}
    else:
        runs, names = [neuron_run(tmp_path / "a").folder], {"effects", "layers", "faithfulness"}
    figures = bench_report(runs).figures()
    assert set(figures) == names
    for name, draw in figures.items():
        draw([tmp_path / f"{name}.{kind}" for kind in ("png", "svg", "pdf")])
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        image = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert image.std() > 0.02 and (tmp_path / f"{name}.svg").read_text().rstrip().endswith("</svg>")


def test_text_is_taken_literally(tmp_path):
    name = HOSTILE + r" $\frac{"
    places = [tmp_path / "x.png", tmp_path / "x.svg"]
    effects_by_relation({name: {f"suppress:{name}": one(-0.5)}}, {}, [name], places)
    edit_metrics({name: ({}, {"ES": one(0.5)})}, places)
    sequential_curves({name: {"1": {"ES": one(0.5)}}}, {}, places)
    neurons_by_layer({name: [1]}, places)
    differences([{"metric": name, "run": name, "difference": 0.1, "low": 0.0, "high": 0.2, "q": 1}], name, places)
    assert b"\x1b" not in places[1].read_bytes()


def test_long_names_leave_room(drawn):
    effects_by_relation({"The {} is located in the city of " * 5: {"suppress:ig": one(-0.5)}}, {}, ["ig"], ["x.png"])
    label = drawn[0].axes[0].get_yticklabels()[0].get_text()
    assert label.endswith("… (n = 9)") and len(label) == LONGEST + len(" (n = 9)")
