"""A benchmark that is a study goes on where it was stopped, and says so where a record failed."""

import pytest

from benchmarks.studies import RecordStudy, summary_of


class Model:
    name = "none"

    def weights_hash(self):
        return "0"


def study(measure, ids=("a", "b", "c")):
    return RecordStudy("letters", Model(), {"draws": 1}, ids, measure, lambda records: {"n": len(records), **records})


def test_it_goes_on_where_it_was_stopped(tmp_path):
    measured, stops = [], iter(["b"])

    def measure(name):
        if name == "b" and next(stops, None):
            raise KeyboardInterrupt
        measured.append(name)
        return {"letter": name.upper()}

    with pytest.raises(KeyboardInterrupt):
        summary_of(study(measure), tmp_path / "run")
    summary = summary_of(study(measure), tmp_path / "run")
    assert measured == ["a", "b", "c"]
    assert summary == {"n": 3, "a": {"letter": "A"}, "b": {"letter": "B"}, "c": {"letter": "C"}}


def test_a_record_that_fails_is_named(tmp_path):
    def measure(name):
        if name == "b":
            raise ValueError("no such letter")
        return {}

    with pytest.raises(RuntimeError, match="1 records failed, the first is b: ValueError: no such letter"):
        summary_of(study(measure), tmp_path / "run")
