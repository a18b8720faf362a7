"""A new metric is a row: it is asked, measured, summarised, compared and shown without a change anywhere else."""

import pytest
from support.studies import study

from knowedit.evaluate.edits.metrics import METRICS, Observation
from knowedit.evaluate.runs.engine import run_study
from knowedit.evaluate.runs.metric import Metric
from knowedit.report.bench import figures
from knowedit.report.bench.report import bench_report


def doubted(fact):
    """What is asked for it: both targets behind a prompt that no other metric asks."""
    return [(f"Perhaps {fact.prompt}", target) for target in (fact.target_new, fact.target)]


def efficacy_in_doubt(seen: Observation) -> float:
    new, true = (seen.answers[pair] for pair in doubted(seen.fact))
    return float(new.per_token > true.per_token)


DOUBT = Metric("doubt", "ES behind 'Perhaps'", efficacy_in_doubt, asks=doubted, headline=True)


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Finished runs on the trained model with the new row: without an edit, and with two steps of fine-tuning."""
    monkeypatch.setitem(METRICS, "doubt", DOUBT)
    tuned = {"method": "fine_tune", "settings": {"steps": 2, "lr": 0.01}}
    for name, options in {"none": {"method": "none", "layer": None, "settings": {}}, "tuned": tuned}.items():
        run_study(study(**options), tmp_path / name, progress=False)
    return [tmp_path / "none", tmp_path / "tuned"]


def test_a_new_row_is_in_the_summary_the_tables_and_the_figure(folders, monkeypatch):
    report = bench_report(folders)
    summary = report.runs[1].summary
    for means in (summary["metrics"], summary["before"], summary["by_relation"]["home"]):
        assert means["doubt"]["n"] == 6 and 0 <= means["doubt"]["low"] < means["doubt"]["high"] <= 1
    tables = {table.name: table for table in report.tables()}
    for name in ("metrics", "comparison"):
        assert "doubt" in [row[0] for row in tables[name].rows], name
    assert tables["relations"].columns[-1] == "doubt"
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    report.figures()["metrics"](["metrics.png"])
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()][-1] == "doubt"


def test_a_new_row_can_be_asked_for_by_name(monkeypatch, tmp_path):
    monkeypatch.setitem(METRICS, "doubt", DOUBT)
    options = {"method": "none", "layer": None, "settings": {}, "metrics": ("doubt",)}
    run = run_study(study(**options), tmp_path / "run", progress=False)
    assert list(run.summary["metrics"]) == ["doubt"]


def test_a_new_row_may_combine_means_of_others(monkeypatch, tmp_path):
    monkeypatch.setitem(
        METRICS, "pair", Metric("pair", "harmonic mean of NS and NS_argmax", combines=("NS", "NS_argmax"))
    )
    run = run_study(study(method="none", layer=None, settings={}), tmp_path / "run", progress=False)
    first, other, both = (run.summary["metrics"][name]["value"] for name in ("NS", "NS_argmax", "pair"))
    assert both == pytest.approx(2 / (1 / first + 1 / other)) and first != other
