"""`knowedit report` and `knowedit merge`: what they print, what they write, and what they refuse."""

import csv
import io
import json

import numpy as np
import pytest
from support.commands import HOSTILE, fails
from support.fake import Fake, records
from support.made_runs import edit_run, located, neuron_row, neuron_run, trained_source, write_run
from support.trained import facts, trained

from knowedit.evaluate.edits.config import EditStudyConfig
from knowedit.evaluate.edits.study import EditStudy
from knowedit.evaluate.neurons.study import NeuronStudy, NeuronStudyConfig
from knowedit.evaluate.runs.engine import run_study
from knowedit.evaluate.runs.folder import RunFolder, writing
from knowedit.locate.attribution import AttributionConfig
from knowedit.locate.config import LocateConfig
from knowedit.sources import Source

LOCATE = LocateConfig(attribution=AttributionConfig(nodes=4))


@pytest.fixture
def call(run):
    """A command that takes no model."""
    return lambda *arguments: run(*map(str, arguments), model=None)


@pytest.fixture
def two(tmp_path):
    return edit_run(tmp_path / "rome").folder, edit_run(tmp_path / "ft", 0.4, seed=3, method="fine_tune").folder


def test_tables_are_printed(call, two):
    status, out, _ = call("report", two[0])
    assert status == 0
    assert "Metrics before and after the edit" in out and "90.0 [74.4, 96.5]" in out
    assert "Record by record" not in out
    status, out, _ = call("report", *two)
    assert status == 0
    assert "Record by record, against rome" in out and "mcnemar" in out and "Benjamini and Hochberg" in out


def test_tables_in_other_formats(call, two):
    status, out, _ = call("report", *two, "--format", "markdown")
    assert status == 0 and "| metric | rome | ft | difference |" in out
    status, out, _ = call("report", *two, "--format", "latex")
    assert status == 0 and out.count(r"\end{table}") == 7
    status, out, _ = call("report", two[0], "--format", "csv")
    blocks = [list(csv.DictReader(io.StringIO(block))) for block in out.split("\n\n")]
    assert float(blocks[1][0]["after"]) == 0.9


def test_json_is_one_object_with_everything(call, two):
    status, out, _ = call("report", *two, "--json")
    found = json.loads(out)
    assert status == 0 and found["schema"] == "knowedit.report/1" and found["out"] is None
    assert [run["name"] for run in found["runs"]] == ["rome", "ft"]
    assert found["runs"][0]["metrics"] == RunFolder(two[0]).summary["metrics"]
    by_metric = {row["metric"]: row for row in found["comparison"]["differences"]}
    assert by_metric["ES"]["test"] == "mcnemar" and 0 <= by_metric["ES"]["p"] <= by_metric["ES"]["q"] <= 1
    status, out, _ = call("report", two[0], "--json")
    assert json.loads(out)["comparison"] is None


def test_a_folder_is_written(call, tmp_path):
    run = neuron_run(tmp_path / "run").folder
    status, out, _ = call("report", run, "--out", tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert status == 0 and f"{len(files)} files in {tmp_path / 'out'}" in out
    assert {
        "report.md",
        "report.json",
        "effects.png",
        "effects.svg",
        "layers.png",
        "relations.csv",
        "effects.tex",
    } <= files
    fails(call("report", run, "--out", tmp_path / "out"), "exists already; choose a new folder")
    status, out, _ = call("report", run, "--out", tmp_path / "other", "--json")
    assert json.loads(out)["out"] == str(tmp_path / "other")
    said = json.loads((tmp_path / "other" / "report.json").read_text())
    assert said["runs"] == json.loads(out)["runs"]


def test_what_cannot_be_reported(call, tmp_path, two):
    fails(call("report", tmp_path / "nothing"), "is no run", "give the folder of a run")
    with writing(tmp_path / "half", {"study": "edit", "config": {}}) as writer:
        writer.append([{"id": "r/0"}])
    fails(call("report", tmp_path / "half"), "is not finished; go on with --resume")
    fails(call("report", two[0], two[0]), "given twice")
    other = edit_run(tmp_path / "other", data="e").folder
    fails(call("report", two[0], other), "are about other data", "compare runs over one source")
    fails(call("report", two[0], neuron_run(tmp_path / "n").folder), "compare runs of one study")
    fails(call("report", two[0], "--format", "markdwn"), "did you mean 'markdown'")
    fails(call("report", two[0], "--format", "csv", "--out", tmp_path / "out"), "leave it out beside --out")
    fails(call("report", two[0], "--format", "csv", "--json"), "and --json")
    fails(call("report", two[0], "--out", tmp_path / "no" / "out"), "is no folder; make it first")
    (tmp_path / "rome" / "summary.json").write_text("{")
    fails(call("report", two[0]), "is damaged")
    fails(call("report"), "Missing argument")
    assert not (tmp_path / "out").exists()


def test_hostile_text_is_inert_on_the_terminal(call, tmp_path):
    run = edit_run(tmp_path / "run", method=HOSTILE).folder
    for options in ((), ("--format", "markdown"), ("--format", "latex"), ("--format", "csv"), ("--json",)):
        status, out, err = call("report", run, *options)
        assert status == 0 and "\x1b" not in out + err and "\u202e" not in out
    assert "[/red] \\x1b[31mZarn" in call("report", run)[1]


# ---------------------------------------------------------------- merge


def shards(study, tmp_path, n=2):
    return [run_study(study(), tmp_path / f"{i}", progress=False, shard=(i, n)).folder for i in range(1, n + 1)]


def test_merged_edits_are_the_run_in_one_piece(call, tmp_path):
    def study():
        return EditStudy(EditStudyConfig(method="none", batch=2, metrics=("ES", "NS")), trained(), trained_source())

    whole = run_study(study(), tmp_path / "whole", progress=False)
    parts = shards(study, tmp_path)
    status, out, _ = call("merge", *parts, "--out", tmp_path / "merged", "--json")
    merged = RunFolder(tmp_path / "merged")
    assert status == 0 and json.loads(out)["records"] == 6
    assert records(merged) == records(whole)
    for name in ("metrics", "before", "by_relation", "skipped"):
        assert merged.summary[name] == whole.summary[name]
    assert merged.manifest["merged"] == [str(part) for part in parts]
    assert call("report", tmp_path / "merged")[0] == 0


def test_merged_neurons_are_the_run_in_one_piece(call, tmp_path):
    def study():
        config = NeuronStudyConfig(locate=LOCATE, draws=3, batch=2, erase=True)
        return NeuronStudy(config, trained(), Source("made", "facts", facts()[:6], (), "0" * 64))

    whole = run_study(study(), tmp_path / "whole", progress=False)
    status, out, err = call("merge", *shards(study, tmp_path), "--out", tmp_path / "merged")
    merged = RunFolder(tmp_path / "merged").summary
    assert status == 0 and "erased relations are not merged" in err and "6 records" in out
    assert merged["layers"] == whole.summary["layers"] and "located" not in merged
    assert set(whole.summary) - set(merged) == {"erasure"}


def test_layers_above_all_located_neurons_are_kept(call, tmp_path):
    rows = [neuron_row(i, np.random.default_rng(i), "ig") for i in range(4)]
    for row in rows:
        row["located"] = located("ig", [(0, 1)])
        row["rivals"]["activation"] = [[1, 1]]
    parts = []
    for i in (1, 2):
        run = write_run(tmp_path / f"{i}", rows[2 * i - 2 : 2 * i], "neurons")
        path = run.folder / "manifest.json"
        path.write_text(json.dumps({**run.manifest, "shard": [i, 2]}))
        parts.append(run.folder)
    assert call("merge", *parts, "--out", tmp_path / "merged")[0] == 0
    assert RunFolder(tmp_path / "merged").summary["layers"]["ig"] == [4, 0, 0, 0, 0, 0]


def test_shards_that_cannot_be_merged(call, tmp_path):
    parts = shards(lambda: Fake(), tmp_path, 3)
    fails(call("merge", *parts[:2], "--out", tmp_path / "out"), "expected each of 1/3 to 3/3 once")
    fails(call("merge", parts[0], "--out", tmp_path / "out"), "expected the folders of all shards")
    fails(call("merge", *parts, "--out", parts[0]), "holds a run already")
    fails(call("merge", tmp_path / "none", parts[0], "--out", tmp_path / "out"), "is no run")
    fails(call("bench", "merge", *parts, "--out", tmp_path / "out"), "merge")
    assert not (tmp_path / "out").exists()
