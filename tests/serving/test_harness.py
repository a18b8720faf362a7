"""lm-eval's tasks around the loaded model, without and with edits, paired by document; offline."""

import json

import pytest
from support.edits import same, strong, weights
from support.tiny import tiny
from support.trained import trained

from knowedit import InputError
from knowedit.serving import harness


@pytest.fixture
def towns(tmp_path):
    """A folder with a task of three questions about where somebody lives."""
    rows = [("Zarn", ["Aldor", "Bexum"], 0), ("Brem", ["Aldor", "Dovath"], 1), ("Tavo", ["Aldor", "Cirra"], 1)]
    records = [{"prompt": f"{who} lives in", "choices": choices, "label": label} for who, choices, label in rows]
    (tmp_path / "towns.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {
        "task": "towns", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "towns.jsonl")}}, "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "label", "metadata": {"version": 3},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "towns.yaml").write_text(json.dumps(task))  # JSON is YAML
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # those of lm-eval's own imports
def test_a_task_is_paired_by_document(towns, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(towns / "cache"))
    model, before = trained(), weights(trained())
    result = harness.evaluate(model, [strong("Zarn", "Bexum")], ["towns"], include=towns)
    (metric,) = result.metrics
    assert (metric.task, metric.metric, metric.documents, metric.version) == ("towns", "acc", 3, "3")
    assert (metric.before, metric.after) == (1.0, pytest.approx(2 / 3))
    assert metric.difference.value == pytest.approx(-1 / 3) and metric.difference.n == 3
    assert same(weights(model), before)
    with pytest.raises(InputError, match="knows no task 'cities'"):
        harness.evaluate(model, [], ["cities"], include=towns)


def run_of(values: dict, score: float) -> dict:
    """What the harness returns for a task, as far as it is read."""
    samples = [{"doc_id": i, "filter": "none", "acc": value} for i, value in values.items()]
    results = {"t": {"alias": "t", "acc,none": score, "acc_stderr,none": "N/A", "ppl,none": 3.0}}
    return {"results": results, "samples": {"t": samples}, "n-samples": {"t": {"effective": 4}}, "versions": {"t": 1}}


def test_documents_of_both_runs_are_paired_whatever_their_order():
    before, after = run_of({0: 1.0, 1: 0.0, 2: 1.0}, 0.7), run_of({2: 0.0, 1: 0.0, 0: 1.0}, 0.3)
    acc, ppl = harness._metrics("t", before, after)
    assert acc.difference.value == pytest.approx(-1 / 3) and acc.documents == 4
    assert ppl.difference is None and (ppl.before, ppl.after) == (3.0, 3.0)  # a metric of the whole has no pairs


def test_what_cannot_be_run_is_one_line(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="lm-eval is not installed; `pip install"):
        harness.evaluate(trained(), [], ["towns"])
    monkeypatch.setattr(harness, "check_installed", lambda: None)
    with pytest.raises(InputError, match="masked model"):
        harness.evaluate(tiny("bert"), [], ["towns"])
