"""Runs compared record by record: the right pairs, the right test, and nothing where there is nothing to compare."""

import json
import random
import tracemalloc

import numpy as np
import pytest
from support.made_runs import edit_row, edit_run, neuron_run, write_run

from knowedit.errors import DataError, InputError
from knowedit.evaluate.runs.folder import RunFolder
from knowedit.report.bench.comparison import compare
from knowedit.statistics import false_discovery, mcnemar, ratio_of_means, wilcoxon


def rows_of(run, metric="ES"):
    return {row["id"]: row["after"][metric] for row in run.rows() if "error" not in row}


def by_metric(comparison):
    return {d.metric: d for d in comparison.differences}


def edited(values, prefix="r", **more):
    """Records with these values of ES."""
    rows = [edit_row(i, np.random.default_rng(0), 0.5) for i in range(len(values))]
    return [{**row, "id": f"{prefix}/{i}", "before": {"ES": 0.0}, "after": {"ES": value}, **more}
            for i, (row, value) in enumerate(zip(rows, values, strict=True))]  # fmt: skip


def test_records_are_paired_by_id_whatever_their_order(tmp_path):
    rows = edited([0, 0, 0, 0, 0, 0, 0, 1, 1.0, 0])
    better = edited([1, 1, 1, 1, 1, 1, 0, 0, 1.0, 0])
    random.Random(0).shuffle(better)
    found = by_metric(compare([write_run(tmp_path / "a", rows), write_run(tmp_path / "b", better)]))["ES"]
    assert (found.runs, found.n, found.higher, found.lower) == (("a", "b"), 10, 6, 1)
    assert (found.one, found.other) == (pytest.approx(0.2), pytest.approx(0.7))
    assert found.difference == pytest.approx(0.5) and found.low < 0.5 < found.high
    assert found.test == "mcnemar" and found.p == pytest.approx(2 * (1 + 7) / 2**7)


def test_binary_metrics_are_tested_exactly_and_others_by_ranks(tmp_path):
    one, other = edit_run(tmp_path / "a", 0.9), edit_run(tmp_path / "b", 0.5, seed=4)
    found = by_metric(compare([one, other]))
    assert list(found) == ["ES", "PS", "NS", "EM", "perplexity", "Score"]
    for metric, test in (("ES", mcnemar), ("PS", wilcoxon), ("EM", wilcoxon)):
        first, second = rows_of(one, metric), rows_of(other, metric)
        assert found[metric].test == test.__name__
        assert found[metric].p == pytest.approx(test(list(first.values()), [second[i] for i in first]))
    tested = [d for d in found.values() if d.test]
    assert [d.q for d in tested] == pytest.approx(false_discovery([d.p for d in tested]))
    score = found["Score"]
    assert score.test is None and score.p is None and score.q is None
    for run, value in ((one, score.one), (other, score.other)):
        assert value == pytest.approx(run.summary["metrics"]["Score"]["value"])
    assert score.low < score.difference < score.high


def test_an_interval_of_a_difference_is_narrower_than_what_the_runs_own_intervals_say(tmp_path):
    values = np.random.default_rng(0).random(60)
    one = write_run(tmp_path / "a", edited(values.tolist()))
    other = write_run(tmp_path / "b", edited((0.8 * values + 0.2).tolist()))
    found = by_metric(compare([one, other]))["ES"]
    own = one.summary["metrics"]["ES"]
    assert found.high - found.low < 0.5 * (own["high"] - own["low"])
    assert found.low > 0 and found.test == "wilcoxon" and found.p < 1e-6


def test_runs_that_agree_differ_by_nothing_with_doubt_where_a_metric_is_bounded(tmp_path):
    found = by_metric(compare([edit_run(tmp_path / "a"), edit_run(tmp_path / "b")]))
    for difference in found.values():
        assert difference.difference == 0.0 and difference.p in (1.0, None)
    assert found["ES"].low < 0 < found["ES"].high
    assert found["perplexity"].low is None  # all differences are the same: nothing to resample


def test_intervals_of_differences_cover(tmp_path):
    """Two runs of unlike skill: the interval holds the true difference about as often as it says."""
    hits, rng = [], np.random.default_rng(0)
    for i in range(40):
        values = [(rng.random(40) < p).astype(float).tolist() for p in (0.7, 0.9)]
        runs = [write_run(tmp_path / f"{i}{name}", edited(v)) for name, v in zip("ab", values, strict=True)]
        found = by_metric(compare(runs))["ES"]
        hits.append(found.low <= 0.2 <= found.high)
    assert 0.85 <= np.mean(hits) <= 1.0


def test_records_that_only_one_run_has_or_that_failed_are_counted_and_left_out(tmp_path):
    rows = edited([1.0] * 6)
    one = write_run(tmp_path / "a", [*rows[:5], {"id": "r/5", "error": "it cannot be edited"}])
    other = write_run(tmp_path / "b", rows[2:])
    comparison = compare([one, other])
    assert comparison.records == {"b": {"common": 3, "only_first": 2, "only_other": 1}}
    assert by_metric(comparison)["ES"].n == 3


def test_a_metric_that_a_record_lacks_and_one_that_only_one_run_has(tmp_path):
    rows = edited([1.0] * 4)
    with_more = edited([0.0] * 4)
    rows[0]["after"] = {"ES": None}
    with_more[1]["after"]["PS"] = 1.0
    found = by_metric(compare([write_run(tmp_path / "a", rows), write_run(tmp_path / "b", with_more)]))
    assert found["ES"].n == 3 and "PS" not in found
    rows[1]["after"] = {"ES": 1.0, "NS": 0.5}
    with_more[2]["after"]["NS"] = 0.5
    found = by_metric(compare([write_run(tmp_path / "c", rows), write_run(tmp_path / "d", with_more)]))
    assert (found["NS"].n, found["NS"].difference, found["NS"].p, found["NS"].test) == (0, None, None, None)


def test_a_single_common_record_has_no_interval(tmp_path):
    runs = [write_run(tmp_path / name, edited([v])) for name, v in (("a", 0.0), ("b", 1.0))]
    found = by_metric(compare(runs))["ES"]
    assert (found.difference, found.low, found.high, found.p) == (1.0, None, None, 1.0)


def test_neurons_of_runs_by_different_methods_are_compared(tmp_path):
    one, other = neuron_run(tmp_path / "ig"), neuron_run(tmp_path / "gradient", "gradient", strength=1.3)
    found = by_metric(compare([one, other]))
    assert {"suppress:located", "amplify:located", "suppress:random", "neurons", "probability"} <= set(found)
    change = found["suppress:located"]
    before = [np.mean(row["proof"]["before"]) for row in one.rows()]
    for run, value in ((one, change.one), (other, change.other)):
        after = [np.mean(row["proof"]["suppressed"]) for row in run.rows()]
        assert value == pytest.approx(ratio_of_means(before, after).value)
    assert change.low < change.difference < change.high < 0
    assert change.test == "wilcoxon" and change.p < 1e-4 and change.lower == 24
    assert found["suppress:random"].p > 0.01


def test_several_runs_are_compared_with_the_first_in_one_family_of_tests(tmp_path):
    runs = [
        edit_run(tmp_path / name, skill, seed=i) for i, (name, skill) in enumerate((("a", 0.9), ("b", 0.2), ("c", 0.8)))
    ]
    comparison = compare(runs, ["A", "B", "C"])
    assert comparison.first == "A" and list(comparison.records) == ["B", "C"]
    assert {d.runs for d in comparison.differences} == {("A", "B"), ("A", "C")}
    p = [d.p for d in comparison.differences]
    assert [d.q for d in comparison.differences] == false_discovery(p)
    assert json.loads(json.dumps(comparison.as_dict(), allow_nan=False))["differences"][0]["runs"] == ["A", "B"]


# ---------------------------------------------------------------- refused


def test_runs_that_cannot_be_compared(tmp_path):
    one = edit_run(tmp_path / "a")
    with pytest.raises(InputError, match="1 run is given, expected at least two"):
        compare([one])
    with pytest.raises(InputError, match="'a' and 'b' are about other data .*SHA-256 d and e.* compare runs over one"):
        compare([one, edit_run(tmp_path / "b", data="e")])
    with pytest.raises(InputError, match="'a' is a study of edit, 'n' one of neurons"):
        compare([one, neuron_run(tmp_path / "n")])
    with pytest.raises(InputError, match="'a' and 'c' have no record in common"):
        compare([one, write_run(tmp_path / "c", edited([1.0, 0.0], prefix="s"))])


def test_a_record_of_another_shape_is_told(tmp_path):
    one, other = edit_run(tmp_path / "a"), edit_run(tmp_path / "b")
    path = tmp_path / "b" / "records.jsonl"
    path.write_text(path.read_text().replace('"after"', '"then"', 1))
    with pytest.raises(DataError, match="the record 'r/0' of .* is not one of its study"):
        compare([one, RunFolder(other.folder)])


def test_memory_is_a_few_numbers_a_record(tmp_path):
    """Records with kilobytes of factors, as sequential runs have them, are never held together."""
    rng = np.random.default_rng(0)
    rows = [{**edit_row(i, rng, 0.5), "edit": {"method": "rome", "factors": "x" * 20000}} for i in range(1500)]
    runs = [write_run(tmp_path / name, rows) for name in "ab"]
    del rows
    tracemalloc.start()
    compare(runs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 45e6  # of 60 MB in the files
