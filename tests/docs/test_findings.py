"""docs/findings.md says what the committed findings say, and these are of enough facts."""

import re

from benchmarks.quality.findings.page import END, PAGE, START, load, table
from benchmarks.quality.findings.study import SECTIONS
from benchmarks.quality.findings.words import number, percent


def test_the_page_shows_the_committed_findings():
    shown = re.search(f"{re.escape(START)}(.*?){re.escape(END)}", PAGE.read_text(encoding="utf-8"), re.S).group(1)
    assert shown == table(load())


def test_every_section_is_there_and_of_a_hundred_known_facts():
    sections = load()
    assert set(sections) == {"facts", *SECTIONS}
    facts = sections["facts"]
    assert len(set(facts["ids"])) == facts["n"] == sum(facts["by_relation"].values()) >= 100
    for name in ("exact", "neurons", "edges", "sublayers", "attributes", "extraction", "extraction_normed"):
        assert sections[name]["n"] == facts["n"]


def test_every_estimate_has_n_and_an_interval_around_it():
    def estimates(value):
        if isinstance(value, dict):
            if {"value", "low", "high", "n"} <= set(value):
                yield value
            for part in value.values():
                yield from estimates(part)
        elif isinstance(value, list):
            for part in value:
                yield from estimates(part)

    every = list(estimates(load()))
    assert len(every) > 100
    for estimate in every:
        assert (estimate["n"] > 0) == (estimate["value"] is not None)
        if estimate["low"] is not None and estimate["high"] is not None:
            assert estimate["low"] <= estimate["value"] <= estimate["high"]


def test_figures_are_written_with_their_intervals():
    assert percent({"value": 0.5, "low": 0.25, "high": 0.75, "n": 9}) == "**50.0 %** (25.0 to 75.0)"
    assert percent({"value": -0.5, "low": -0.6, "high": -0.4, "n": 9}, True) == "**-50 %** (-60 to -40)"
    assert percent({"value": 1.0, "low": None, "high": None, "n": 1}) == "**100.0 %**"
    assert number({"value": 1.25, "low": 1.0, "high": 2.0, "n": 3}, 2) == "**1.25** (1.00 to 2.00)"
