"""Checks tell what holds and what stays, and each breaks where it should."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from support.commands import HOSTILE
from support.edits import same, strong, weights
from support.trained import facts, trained

from knowedit import InputError
from knowedit.serving.checks import Check, Checks, run_checks


@pytest.fixture(scope="module")
def edit():
    return strong("Zarn", "Bexum")


def of(subject: str, **fields):
    return replace(next(fact for fact in facts() if fact.subject == subject), **fields)


def test_the_edited_fact_holds_and_its_old_answer_does_not_stay(edit):
    model, others = trained(), [fact for fact in facts() if fact.subject in ("Brem", "Tavo")]
    before = weights(model)
    checks = run_checks(
        model, [edit], hold=[of("Zarn", target_new="Bexum"), of("Zarn")], keep=[of("Zarn"), *others], max_perplexity=1e9
    )
    assert [check.passed for check in checks.checks] == [True, False, False, True, True, True, True, True]
    assert [check.kind for check in checks.failed] == ["hold", "keep"]
    assert checks.failed[0].expected == "Aldor" and checks.failed[0].found == "Bexum"
    assert same(weights(model), before)


def test_without_edits_a_new_answer_does_not_hold_and_everything_stays():
    checks = run_checks(trained(), [], hold=[of("Zarn", target_new="Bexum")], keep=facts(), max_perplexity=0)
    assert [check.kind for check in checks.failed] == ["hold"]


def test_an_answer_that_was_not_known_stays_by_its_first_token(edit):
    unknown = [of("Zarn", target="Cirra"), of("Brem", target="Cirra")]
    changed, stayed = run_checks(trained(), [edit], keep=unknown).checks
    assert (changed.passed, changed.expected, changed.found) == (False, "Aldor", "Bexum")
    assert stayed.passed and stayed.expected == stayed.found != "Cirra"


def test_perplexity_has_a_bound(edit, monkeypatch):
    told = iter([2.02, 2.0, 2.02, 2.0])  # with the edit, then without
    monkeypatch.setattr("knowedit.serving.checks.perplexity", lambda model: next(told))
    passed, failed = (run_checks(trained(), [edit], max_perplexity=most).checks[0] for most in (0.02, 0.009))
    assert passed.passed and not failed.passed and "(+1.00%)" in failed.found


def test_junit_is_xml_whatever_stands_in_it():
    made = Check("keep", HOSTILE, "\x00<]]>" + HOSTILE, "a", "\ufffe", False)
    checks = Checks("m", (), (made, Check("hold", "b", "c", "d", "d", True)))
    root = ElementTree.fromstring(checks.junit())
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    suites = {suite.get("name"): suite for suite in root}
    assert suites["keep"][0][0].tag == "failure" and "\\x00<]]>" in suites["keep"][0][0].get("message")
    assert len(suites["hold"][0]) == 0


def test_nothing_to_check_is_said():
    with pytest.raises(InputError, match="nothing to check"):
        run_checks(trained(), [])
