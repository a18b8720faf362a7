"""What is made of the records of neurons, by hand, and with a memory that many records do not fill."""

import json
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from support.made_runs import located, proof

from knowedit.evaluate.neurons import summary as neuron_summary
from knowedit.evaluate.neurons.summary import _pairs, summary


def row(i, relation, before, suppressed, amplified, sites, *, specificity=None, **more):
    return {
        "id": i, "relation": relation, "located": located("ig", sites, relation, i), "rivals": {}, "faithfulness": None,
        "proof": proof(before, suppressed, amplified, specificity=specificity), **more,
    }  # fmt: skip


ROWS = [
    row("a", "capital", [0.5, 0.7], [0.1, 0.3], [0.8, 0.8], [[2, 1], [3, 4]]),
    row("b", "capital", [0.2], [0.1], [0.4], [[2, 1]]),
    row("c", "author", [0.4], [0.4], [0.6], [[0, 5], [3, 4], [3, 5]]),
    {"id": "d", "relation": "author", "located": located("ig", []), "rivals": {}, "faithfulness": None, "proof": None},
]


def test_figures_by_hand():
    found = summary(ROWS, layers=5)
    metrics = found["metrics"]
    # means over prompts first: before .6 .2 .4, suppressed .2 .1 .4, amplified .8 .4 .6
    assert metrics["suppress:ig"]["value"] == pytest.approx((0.7 - 1.2) / 1.2) and metrics["suppress:ig"]["n"] == 3
    assert metrics["suppress_ratios:ig"]["value"] == pytest.approx((-0.4 / 0.6 - 0.1 / 0.2 + 0) / 3)
    assert metrics["amplify:ig"]["value"] == pytest.approx((1.8 - 1.2) / 1.2)
    assert metrics["amplify_ratios:ig"]["value"] == pytest.approx((0.2 / 0.6 + 1 + 0.5) / 3)
    assert metrics["neurons"]["value"] == 6 / 4 and metrics["neurons"]["n"] == 4
    assert metrics["probability"]["value"] == pytest.approx((0.6 + 0.2 + 0.4) / 3)
    assert metrics["suppress:random"]["value"] == metrics["suppress:random_by_layer"]["value"] == pytest.approx(0)
    assert found["by_relation"]["capital"]["suppress:ig"]["value"] == pytest.approx((0.3 - 0.8) / 0.8)
    assert found["by_relation"]["author"]["suppress:ig"] == {"value": 0.0, "low": None, "high": None, "n": 1}
    assert (found["empty"], found["unproved"]) == (1, 0) and found["layers"] == {"ig": [1, 0, 2, 3, 0]}
    assert found["overlap"]["within"] == {"pairs": 1, "shared": 1.0, "jaccard": 0.5}
    assert found["overlap"]["between"]["pairs"] == 2
    assert found["overlap"]["between"]["jaccard"] == pytest.approx((1 / 4 + 0) / 2)
    assert found["located"]["author"] == {"c": [(0, 5), (3, 4), (3, 5)]}
    assert json.dumps({k: v for k, v in found.items() if k != "located"}, allow_nan=False)


def test_the_order_of_records_does_not_matter():
    assert summary(ROWS[::-1]) == summary(ROWS)


def test_specificity_and_stability_by_hand():
    others = {"before": np.array([0.4, 0.6]), "suppressed": np.array([0.45]), "amplified": np.array([0.7, 0.5])}
    varied = {"t=0.1 p=0.5": [4, 0.5]}
    rows = [
        row(i, "capital", [0.5], [0.1], [0.8], [[2, 1]], specificity={"same_relation": others}, stability=varied)
        for i in "ab"
    ]
    found = summary(rows)
    assert found["specificity"]["same_relation"]["suppress"]["value"] == pytest.approx(-0.1)
    assert found["specificity"]["same_relation"]["amplify"]["value"] == pytest.approx(0.2)
    assert "other_relations" not in found["specificity"]
    assert found["stability"]["t=0.1 p=0.5"]["neurons"] == 4.0
    assert found["stability"]["t=0.1 p=0.5"]["jaccard"]["value"] == 0.5


def test_chosen_metrics_and_nothing():
    assert list(summary(ROWS, ("suppress:ig",))["metrics"]) == ["suppress:ig"]
    empty = summary([])
    assert empty["metrics"]["neurons"] == {"value": None, "low": None, "high": None, "n": 0}
    assert empty["layers"] == {} and empty["overlap"] == {} and empty["proof"] is None


def test_a_fact_without_a_prompt_to_prove_counts_as_unproved():
    found = summary([*ROWS, {**ROWS[0], "id": "e", "proof": None}])
    assert found["unproved"] == 1 and found["metrics"]["neurons"]["n"] == 5
    assert found["metrics"]["suppress:ig"] == summary(ROWS)["metrics"]["suppress:ig"]


def test_the_proof_is_over_all_facts_that_have_one():
    found = summary(ROWS)
    assert found["proof"]["facts"] == 3 and found["proof"]["unit"] == "facts"
    assert found["proof"]["suppress"]["value"] == found["metrics"]["suppress:ig"]["value"]
    assert found["proof"]["p_suppress"] == 1 / 5  # no draw of four falls as far


def test_pairs_are_all_or_drawn_without_doubles(monkeypatch):
    assert list(_pairs(5, 0)) == list(combinations(range(5), 2))
    monkeypatch.setattr(neuron_summary, "PAIRS", 5)
    drawn = list(_pairs(40, 0))
    assert len(drawn) == len(set(drawn)) == 20 and set(drawn) < set(combinations(range(40), 2))
    assert drawn == list(_pairs(40, 0)) != list(_pairs(40, 1))
    monkeypatch.setattr(neuron_summary, "PAIRS", 194)  # all but four
    assert set(_pairs(40, 0)) < set(combinations(range(40), 2)) and len(set(_pairs(40, 0))) == 776


def test_pairs_of_many_facts_take_little_memory():
    tracemalloc.start()
    assert sum(1 for _ in _pairs(20_000, 0)) == 80_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # all 200 million pairs would take gigabytes


def test_facts_whose_scores_do_not_add_up_are_counted_and_said():
    rows = [row(i, "capital", [0.5], [0.1], [0.8], [[2, 1]]) for i in "abc"]
    assert summary(rows)["completeness"] == {"facts": 0, "incomplete": 0, "missing": None, "warning": None}
    for each, missing in zip(rows, (0.01, 0.4, 0.05), strict=True):
        each["located"] |= {"missing": missing}
    found = summary(rows)["completeness"]
    assert (found["facts"], found["incomplete"], found["missing"]) == (3, 1, 0.4)
    assert found["warning"].startswith("in 1 of 3 facts the scores of a layer miss more than 5% of F (40% at most)")
