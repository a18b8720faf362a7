"""Reports of runs: the summary's own figures in every table, one folder with everything, and runs that are none."""

import csv
import json
import random

import numpy as np
import pytest
from support.commands import HOSTILE
from support.fake import Fake
from support.made_runs import edit_row, edit_run, neuron_row, neuron_run, sequential_run, trained_source, write_run
from support.trained import facts, trained

from knowedit.errors import DataError, InputError
from knowedit.evaluate.edits.config import EditStudyConfig
from knowedit.evaluate.edits.study import EditStudy
from knowedit.evaluate.neurons.study import NeuronStudy, NeuronStudyConfig
from knowedit.evaluate.runs.engine import run_study
from knowedit.evaluate.runs.folder import writing
from knowedit.locate.attribution import AttributionConfig
from knowedit.locate.config import LocateConfig
from knowedit.report.bench.report import bench_report
from knowedit.report.bench.tables import WRITERS, Value
from knowedit.sources import Source
from knowedit.writing.inert import inert

LOCATE = LocateConfig(attribution=AttributionConfig(nodes=4))


def tables(*folders):
    return {table.name: table for table in bench_report(folders).tables()}


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


def same(value: Value, figure: dict):
    return (value.value, value.low, value.high) == (figure["value"], figure["low"], figure["high"])


# ---------------------------------------------------------------- one run


def test_the_tables_of_edits_hold_the_figures_of_the_summary(tmp_path):
    run = sequential_run(tmp_path / "a")
    found = tables(run.folder)
    assert list(found) == ["runs", "metrics", "relations", "sequential", "perplexity"]
    summary = run.summary
    for name, before, after, n in found["metrics"].rows:
        assert same(after, summary["metrics"][name]) and n == 30
        assert before is None if name == "perplexity" else same(before, summary["before"][name])
    assert column(found["sequential"], "edits") == [1, 3, 10, 30]
    assert same(column(found["sequential"], "NS")[2], summary["checkpoints"]["10"]["metrics"]["NS"])
    assert same(column(found["relations"], "PS")[0], summary["by_relation"]["author"]["PS"])
    assert found["runs"].rows[0] == ("a", "edit", "tiny", "rome", "builtin", 30, 0, 1, 2.5)


def test_the_tables_of_neurons_hold_the_figures_of_the_summary(tmp_path):
    run = neuron_run(tmp_path / "a")
    found = tables(run.folder)
    assert list(found) == ["runs", "effects", "counts", "relations", "layers", "overlap", "specificity", "faithfulness"]
    summary = run.summary
    assert column(found["effects"], "neurons by") == ["ig", "activation", "random", "random_by_layer"]
    for method, suppress in zip(*(column(found["effects"], name) for name in ("neurons by", "suppress")), strict=True):
        assert same(suppress, summary["metrics"][f"suppress:{method}"])
    assert same(column(found["relations"], "amplify, located")[1], summary["by_relation"]["capital"]["amplify:ig"])
    assert column(found["layers"], "ig") == summary["layers"]["ig"] and len(found["layers"].rows) == 6
    assert column(found["counts"], "facts without neurons") == [0]


def test_stability_and_erasure_where_they_were_measured(tmp_path):
    rows = [neuron_row(i, np.random.default_rng(i), "ig") for i in range(6)]
    rows = [{**row, "stability": {"t=0.1 p=0.5": [4, 0.75]}} for row in rows]
    run = write_run(tmp_path / "a", rows, "neurons")
    path = tmp_path / "a" / "summary.json"
    asked = {"n": 5, "probability_before": 0.5, "probability_after": 0.1, "first_choice_before": 1.0,
             "first_choice_after": 0.2}  # fmt: skip
    path.write_text(json.dumps({**run.summary, "erasure": {"capital": {"neurons": 20, "own": asked, "others": asked}}}))
    found = tables(run.folder)
    assert str(column(found["stability"], "Jaccard index")[0]).startswith("75.0")
    assert column(found["erasure"], "asked") == ["own", "others"]
    assert [str(cell) for cell in column(found["erasure"], "probability after")] == ["10.0", "10.0"]


def test_runs_of_real_studies_are_reported(tmp_path):
    """Edits by two methods on the trained model, and neurons of its facts, from the study to the files."""
    config = {"batch": 3, "checkpoints": (1, 3)}
    for name, settings in {
        "none": {"method": "none"},
        "ft": {"method": "fine_tune", "settings": {"steps": 15, "lr": 0.05}},
    }.items():
        study = EditStudy(EditStudyConfig(**config, **settings), trained(), trained_source())
        run_study(study, tmp_path / name, progress=False)
    made = Source("made", "facts", facts()[:6], (), "0" * 64)
    study = NeuronStudy(NeuronStudyConfig(locate=LOCATE, draws=5, erase=True, stability=True), trained(), made)
    run_study(study, tmp_path / "neurons", progress=False)
    files = bench_report([tmp_path / "none", tmp_path / "ft"]).write(tmp_path / "edits")
    assert {"report.md", "report.json", "metrics.tex", "comparison.csv", "metrics.svg", "differences.png"} <= set(files)
    with (tmp_path / "edits" / "comparison.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["ES"]["none"]) == 0.0 and float(rows["ES"]["ft"]) == 1.0
    assert rows["ES"]["test"] == "mcnemar" and float(rows["ES"]["p"]) == pytest.approx(2 / 2**6)
    files = bench_report([tmp_path / "neurons"]).write(tmp_path / "shown")
    assert {"effects.png", "layers.svg", "erasure.csv", "stability.tex", "specificity.csv"} <= set(files)


def test_a_study_of_another_kind_has_its_metrics_shown(tmp_path):
    run = run_study(Fake(), tmp_path / "a", progress=False)
    found = tables(run.folder)
    assert [row[0] for row in found["metrics"].rows] == ["ES"]


# ---------------------------------------------------------------- several


def test_runs_stand_side_by_side_and_what_differs_is_named(tmp_path):
    one, other = (
        edit_run(tmp_path / "a", layer=1, search={"lr": 0.5}),
        edit_run(tmp_path / "b", 0.6, layer=2, search={"lr": 1}),
    )
    found = tables(one.folder, other.folder)
    assert found["settings"].columns == ("setting", "a", "b")
    assert found["settings"].rows == [("layer", "1", "2"), ("search.lr", "0.5", "1")]
    assert found["metrics"].columns[:4] == ("metric", "a: before", "a: after", "a: n")
    assert found["comparison"].columns[1:3] == ("a", "b")
    three = tables(one.folder, other.folder, edit_run(tmp_path / "c").folder)
    assert three["comparison"].columns[0] == "run" and set(column(three["comparison"], "run")) == {"b", "c"}


def test_folders_of_one_name_are_told_apart(tmp_path):
    runs = [edit_run(tmp_path / name / "run").folder for name in ("rome", "ft")]
    assert [run.name for run in bench_report(runs).runs] == ["rome/run", "ft/run"]


def test_the_folder_holds_what_json_says(tmp_path):
    report = bench_report([edit_run(tmp_path / "a").folder, edit_run(tmp_path / "b", 0.5).folder])
    files = report.write(tmp_path / "out")
    names = {table.name for table in report.tables()}
    drawn = {f"{n}.{end}" for n in ("legend", "metrics", "differences") for end in ("png", "svg", "pdf")}
    written = {f"{n}.{end}" for n in names for end in ("tex", "csv")}
    assert set(files) == {"report.md", "report.json", *written, *drawn}
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == json.loads(json.dumps(report.as_dict()))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "**Record by record, against a**" in text and "![metrics](metrics.svg)" in text


def test_the_table_of_a_paper_has_the_best_of_each_metric_in_bold(tmp_path):
    report = bench_report([edit_run(tmp_path / "a").folder, edit_run(tmp_path / "b", 0.5).folder])
    table = next(table for table in report.tables() if table.name == "methods")
    assert table.columns[:3] == ("run", "method", "Score") and table.columns[-1] == "n"
    for column in range(2, len(table.columns) - 1):
        values = [round(100 * row[column].value, 1) for row in table.rows]
        assert {i for i, j in table.best if j == column} == {i for i, v in enumerate(values) if v == max(values)}
    source = WRITERS["latex"](table)
    assert r"\label{tab:methods}" in source and r"\textbf{" in source and r"\toprule" in source
    assert "methods" not in {table.name for table in bench_report([tmp_path / "a"]).tables()}


def test_nothing_is_left_of_a_report_that_could_not_be_written(tmp_path, monkeypatch):
    report = bench_report([edit_run(tmp_path / "a").folder])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("knowedit.report.bench.report.write_text", full)
    with pytest.raises(InputError, match="No space left on device"):
        report.write(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# ---------------------------------------------------------------- hostile and damaged


def test_text_from_outside_is_inert_in_every_file(tmp_path):
    rows = [{**edit_row(i, np.random.default_rng(i), 0.8, relation=HOSTILE + "<b>=1"), "id": f"{i}"} for i in range(4)]
    for row in rows:
        row["after"]["probe:=1+1 $x_{<i>\x1b[1m"] = 1.0
    runs = [write_run(tmp_path / name / "x", rows, method=HOSTILE).folder for name in ("=a <i> $b_{", "=b|%")]
    bench_report(runs).write(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        data = path.read_bytes()
        if path.suffix not in (".png", ".pdf"):  # compressed
            assert b"\x1b" not in data and "\u202e".encode() not in data, path.name
    assert "<i>" not in (tmp_path / "out" / "report.md").read_text()
    with (tmp_path / "out" / "relations.csv").open() as file:
        assert {row["relation"] for row in csv.DictReader(file)} == {inert(HOSTILE) + "<b>=1"}
    with (tmp_path / "out" / "runs.csv").open() as file:
        assert [row["run"][:2] for row in csv.DictReader(file)] == ["'=", "'="]


def test_runs_that_are_none_or_not_finished(tmp_path):
    with pytest.raises(InputError, match="is no run: there is no manifest.json"):
        bench_report([tmp_path])
    with writing(tmp_path / "half", {"study": "edit", "config": {}}) as writer:
        writer.append([{"id": "r/0"}])
    with pytest.raises(InputError, match="is not finished; go on with --resume"):
        bench_report([tmp_path / "half"])
    run = edit_run(tmp_path / "a")
    with pytest.raises(InputError, match="is given twice"):
        bench_report([run.folder, tmp_path / "a" / ".." / "a"])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("summary.json", {"metrics": None}, r"summary.json .* not that of a benchmark \(metrics\)"),
        ("summary.json", {"metrics": {"ES": 1}}, "metrics"),
        ("summary.json", {"metrics": {"ES": {"value": float("nan"), "low": None, "high": None}}}, "metrics"),
        ("summary.json", {"by_relation": {"capital": [1]}}, "by_relation"),
        ("summary.json", {"checkpoints": {"ten": {"metrics": {}}}}, "checkpoints"),
        ("summary.json", {"layers": {"ig": ["x"]}}, "layers"),
        ("summary.json", {"seconds": "long"}, "seconds"),
        ("manifest.json", {"config": 3}, "names no study and config"),
        ("manifest.json", {"study": None}, "names no study and config"),
    ],
)
def test_damaged_runs_are_told(tmp_path, name, change, said):
    run = edit_run(tmp_path / "a")
    path = run.folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=said):
        bench_report([run.folder])


def test_any_part_of_a_summary_may_be_of_any_shape(tmp_path):
    """Whatever a summary holds, it is reported or refused; never is there another error."""
    runs = [sequential_run(tmp_path / "a"), neuron_run(tmp_path / "b")]
    rng = random.Random(0)
    refused = 0
    for trial in range(200):
        run = runs[trial % 2]
        summary = run.summary
        place = summary
        while True:
            key = rng.choice(list(place))
            if not isinstance(place[key], dict) or not place[key] or rng.random() < 0.3:
                break
            place = place[key]
        place[key] = rng.choice([None, 3, -1.5, "text", [], [1, "x"], {}, {"value": 1}, True])
        other = tmp_path / "changed"
        other.mkdir(exist_ok=True)
        (other / "manifest.json").write_text(json.dumps(run.manifest))
        (other / "summary.json").write_text(json.dumps(summary))
        try:
            report = bench_report([other])
            json.dumps(report.as_dict(), allow_nan=False)
            report.tables()
        except DataError:
            refused += 1
    assert 20 < refused < 180
