"""Metrics against tables that were worked out by hand, a plain implementation, and simulated data sets."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binomtest
from support.edits import random_edit
from support.tiny import tiny

from benchmarks.robustness.coverage import NAMES, TRUTHS, coverage
from knowedit.answers import Answer
from knowedit.edit.rewrite_quality import questions_of, rates, rewrite_quality
from knowedit.errors import InputError
from knowedit.evaluate.edits.metrics import METRICS, Observation, check_metric, measure, metrics_of, pairs_of
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.evaluate.edits.summary import Columns, summarise
from knowedit.facts import Fact, Neighbour, Probe
from knowedit.statistics import Estimate

FACT = Fact(
    "{} is located in the city of",
    "Eiffel Tower",
    "Paris",
    target_new="Rome",
    paraphrases=("{}'s city is", "Find {} in"),
    rephrasings=("Near the Champ de Mars, the tower of",),
    heldout=("{} stands in",),
    neighbours=(Neighbour("The Louvre is in", "Paris"), Neighbour("The British Museum is in", "London")),
    probes=(
        Probe("locality", "The capital of Japan is", ("Tokyo", "Tōkyō")),
        Probe("two-hop", "The Eiffel Tower's country is", ("Italy",)),
    ),
    id="eiffel",
)


ALL = metrics_of("facts")
ZSRE = metrics_of("zsre")


def answer(*p, ranks=None):
    return Answer(tuple(math.log(x) for x in p), tuple(ranks or [1 if x > 0.5 else 2 for x in p]))


def observed(fact, new, true):
    """A fact whose questions have these answers, for the new and the true target in the order of the questions."""
    questions = questions_of(fact)
    answers = {(q.prompt, q.target_new): n for q, n in zip(questions, new, strict=True)}
    answers |= {(q.prompt, q.target_true): t for q, t in zip(questions, true, strict=True)}
    return Observation(fact, answers)


def test_what_is_asked_in_its_order():
    questions = questions_of(FACT)
    assert [(question.kind, question.prompt) for question in questions] == [
        ("rewrite", "Eiffel Tower is located in the city of"),
        ("paraphrase", "Eiffel Tower's city is"),
        ("paraphrase", "Find Eiffel Tower in"),
        ("paraphrase", "Near the Champ de Mars, the tower of"),
        ("neighbour", "The Louvre is in"),
        ("neighbour", "The British Museum is in"),
    ]
    assert {question.target_new for question in questions} == {"Rome"}
    assert [question.target_true for question in questions] == ["Paris"] * 5 + ["London"]
    assert len(questions_of(FACT, heldout=True)) == len(questions) + len(FACT.heldout)


def test_both_targets_are_asked_once_a_prompt_and_zsres_probes_beside():
    pairs = pairs_of(FACT, ALL)
    assert len(pairs) == 2 * 6 == len(set(pairs))
    assert pairs_of(FACT, ZSRE) == [*pairs, ("The capital of Japan is", "Tokyo")]


def test_a_record_by_hand():
    new = [answer(0.9), answer(0.4, 0.1), answer(0.6, 0.6), answer(0.1), answer(0.2), answer(0.3)]
    true = [answer(0.05), answer(0.3), answer(0.5), answer(0.1), answer(0.8), answer(0.3)]
    record = measure(observed(FACT, new, true), ALL)
    # geometric means of the new one: .9, .2 (= √.04), .6, .1 against .05, .3, .5, .1: the last is a tie
    assert record == pytest.approx(
        {
            "ES": 1,
            "PS": 1 / 3,
            "NS": 1 / 2,
            "EM": 0.85,
            "PM": (-0.1 + 0.1 + 0.0) / 3,
            "NM": (0.6 + 0.0) / 2,
            "ES_argmax": 1,
            "PS_argmax": 1 / 3,
            "NS_argmax": 1 / 2,
        }
    )


def test_what_a_record_has_no_prompt_for_is_none():
    alone = replace(FACT, paraphrases=(), rephrasings=(), neighbours=())
    record = measure(observed(alone, [answer(0.1)], [answer(0.2)]), ALL)
    assert record["ES"] == 0 and record["EM"] == pytest.approx(-0.1)
    assert all(record[name] is None for name in ("PS", "PM", "PS_argmax", "NS", "NM", "NS_argmax"))


def test_swapped_targets_turn_efficacy_over():
    rng = np.random.default_rng(0)
    for _ in range(50):
        new, true = ([answer(*rng.uniform(0.01, 0.99, rng.integers(1, 4))) for _ in range(6)] for _ in range(2))
        record, swapped = measure(observed(FACT, new, true), ALL), measure(observed(FACT, true, new), ALL)
        for name in ("ES", "PS", "NS"):
            assert record[name] == pytest.approx(1 - swapped[name])
        for name in ("EM", "PM", "NM"):
            assert record[name] == pytest.approx(-swapped[name])


def plain(fact, new, true):
    """ROME's `summarize.py`, written plainly: mean NLLs in, as its `test_batch_prediction` gives them."""
    record = {}
    for letter, kind in (("E", "rewrite"), ("P", "paraphrase"), ("N", "neighbour")):
        nll = [
            (-np.mean(n.log_p), -np.mean(t.log_p))
            for question, n, t in zip(questions_of(fact), new, true, strict=True)
            if question.kind == kind
        ]
        if kind == "neighbour":
            record["NS"] = np.mean([t < n for n, t in nll])
            record["NM"] = np.mean([np.exp(-t) - np.exp(-n) for n, t in nll])
        else:
            record[letter + "S"] = np.mean([t > n for n, t in nll])
            record[letter + "M"] = np.mean([np.exp(-n) - np.exp(-t) for n, t in nll])
    return record


def test_they_are_those_of_a_plain_implementation():
    rng = np.random.default_rng(1)
    for _ in range(200):
        new, true = ([answer(*rng.uniform(0, 1, rng.integers(1, 4))) for _ in range(6)] for _ in range(2))
        record = measure(observed(FACT, new, true), ALL)
        for name, value in plain(FACT, new, true).items():
            assert record[name] == pytest.approx(value), name


def test_they_are_those_of_the_model_with_the_edit_applied():
    model = tiny("llama")
    edit = random_edit(model, 1)
    pairs = pairs_of(FACT, ALL)
    (answers,) = score_edits(model, [edit], [pairs])
    record = measure(Observation(FACT, dict(zip(pairs, answers, strict=True))), ALL)
    with edit.applied(model):
        applied = rates(rewrite_quality(model, [FACT], heldout=False))
    assert record == pytest.approx({name: value for name, (value,) in applied.items()}, abs=1e-4)


def test_zsre_by_hand():
    ranks = {
        ("Eiffel Tower is located in the city of", "Rome"): (1, 2),
        ("Eiffel Tower's city is", "Rome"): (1,),
        ("Find Eiffel Tower in", "Rome"): (3,),
        ("Near the Champ de Mars, the tower of", "Rome"): (1, 1),
        ("The capital of Japan is", "Tokyo"): (1, 1, 5),
    }
    answers = {pair: Answer((-1.0,) * len(of_pair), of_pair) for pair, of_pair in ranks.items()}
    rows = [METRICS[name] for name in ("Efficacy", "Paraphrase", "Specificity")]
    assert pairs_of(FACT, rows) == list(ranks)
    record = measure(Observation(FACT, answers), rows)
    assert record == pytest.approx({"Efficacy": 1 / 2, "Paraphrase": 3 / 4, "Specificity": 2 / 3})
    assert measure(Observation(replace(FACT, probes=()), answers), rows)["Specificity"] is None


def test_zsres_metrics_are_measured_of_its_format_alone():
    assert {metric.name for metric in ZSRE} - {metric.name for metric in ALL} == {
        "Efficacy", "Paraphrase", "Specificity",
    }  # fmt: skip


def test_facts_without_a_new_target_are_refused():
    with pytest.raises(InputError, match="'eiffel' has no target_new"):
        questions_of(replace(FACT, target_new=None))


def test_names_are_checked():
    for name in (*(name for name in METRICS if not name.endswith(":")), "probe:two-hop"):
        assert check_metric(name) == name
    with pytest.raises(InputError, match="did you mean 'PS_argmax'"):
        check_metric("PS_argmx")
    for name in ("probe:", "", 3, None):
        with pytest.raises(InputError, match="no metric"):
            check_metric(name)


# ---------------------------------------------------------------- over records


def records(n=40, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "ES": float(rng.random() < 0.9),
            "PS": rng.binomial(6, 0.8) / 6,
            "NS": rng.binomial(6, 0.6) / 6,
            "EM": rng.random(),
        }
        for _ in range(n)
    ]


def test_a_summary_by_hand():
    found = summarise([{"ES": 1.0, "PS": 0.5, "NS": 1.0}, {"ES": 1.0, "PS": 1.0, "NS": None}, {"ES": 0.0, "PS": None}])
    assert found["ES"].value == pytest.approx(2 / 3) and found["ES"].n == 3
    assert found["PS"].value == 0.75 and found["PS"].n == 2
    assert found["NS"] == Estimate(1.0, None, None, 1)
    assert found["Score"].value == pytest.approx(3 / (3 / 2 + 4 / 3 + 1)) and found["Score"].n == 3
    wilson = binomtest(2, 3).proportion_ci(method="wilson")
    assert (found["ES"].low, found["ES"].high) == pytest.approx((wilson.low, wilson.high))


def test_score_is_the_harmonic_mean_of_the_three_means():
    found = summarise(records())
    assert found["Score"].value == pytest.approx(3 / sum(1 / found[name].value for name in ("ES", "PS", "NS")))
    for name, figure in found.items():
        assert figure.low < figure.value < figure.high, name


def test_intervals_stay_within_bounds_and_say_that_unseen_failures_may_be():
    found = summarise([{"ES": 1.0, "PS": 1.0, "NS": 1.0, "EM": 0.999}] * 30)
    for name in ("ES", "PS", "NS", "Score"):
        assert found[name].value == found[name].high == 1.0 and 0.8 < found[name].low < 0.99
    assert 0.7 < found["EM"].low < 0.99 and found["EM"].high <= 1.0
    found = summarise([{"ES": 0.0, "PS": 0.0, "NS": 1.0}] * 30)
    assert found["Score"].value == found["Score"].low == 0.0 < found["Score"].high < 0.2


def test_summaries_are_seeded():
    some = records()
    assert summarise(some, seed=1) == summarise(some, seed=1) != summarise(some, seed=2)


def test_figures_without_an_upper_bound_have_students_interval():
    values = [0.1, 0.2, 1.5]
    found = summarise([{"GE": v, "perplexity": v, "essence": v, "RS": v / 2} for v in values])
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found["perplexity"].low, found["perplexity"].high) == pytest.approx((low, high)) and low < 0
    for name in ("GE", "essence"):
        assert found[name] == Estimate(pytest.approx(0.6), 0.0, pytest.approx(high), 3)
    assert 0 < found["RS"].low < 0.3 < found["RS"].high < 1


def test_the_order_of_records_does_not_matter():
    some = [{**record, "GE": record["EM"] * 7} for record in records()]
    some[3]["PS"] = some[5]["NS"] = None
    shuffled = [some[i] for i in np.random.default_rng(3).permutation(len(some))]
    assert summarise(shuffled) == summarise(some)


def test_columns_are_the_records():
    columns = Columns([{"ES": 1.0}, {"PS": None}, {"ES": 0.0, "PS": 0.5}])
    columns.add({"GE": 4.0})
    found = columns.arrays()
    nan = math.nan
    wanted = {"ES": [1, nan, 0, nan], "PS": [nan, nan, 0.5, nan], "GE": [nan, nan, nan, 4]}
    assert columns.n == 4 and found.keys() == wanted.keys()
    for name, column in wanted.items():
        np.testing.assert_array_equal(found[name], column)
    some = np.array([True, False, True, True])
    assert summarise(columns, rows=some) == summarise([{"ES": 1.0, "PS": None}, {"ES": 0.0, "PS": 0.5}, {"GE": 4.0}])


def test_nothing_measured_has_no_figures():
    assert summarise([]) == {}
    assert summarise([{"PS": None}])["PS"] == Estimate(None, None, None, 0)
    assert "Score" not in summarise([{"ES": 1.0, "PS": None, "NS": None}] * 3)


def test_memory_is_that_of_the_values():
    some = records(20_000)
    tracemalloc.start()
    summarise(some)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6  # the draws at once would be 2,000 × 20,000 × 8 bytes = 320 MB


@pytest.mark.parametrize("name", TRUTHS)
def test_intervals_hold_the_truth(name):
    # few records, where intervals go wrong first; 200 sets: 95 % are measured as 91 to 98.5 % in 99 of 100
    found = coverage(TRUTHS[name], n=25, sets=200, plain=False)["summarise"]
    for metric in NAMES:
        assert 0.895 <= found[metric] <= 0.995, metric
