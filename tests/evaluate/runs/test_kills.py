"""Real runs of edits that are killed by SIGKILL go on to the records of runs that nobody disturbed."""

import json

import pytest
from support.studies import study

from benchmarks.registry import RESULTS
from benchmarks.robustness.kills import KINDS, killed


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", KINDS)
def test_killed_runs_lose_double_and_change_nothing(tmp_path, monkeypatch, cache, name):
    monkeypatch.setenv("KNOWEDIT_CACHE", cache)
    found = killed(lambda: study(**KINDS[name]), tmp_path, kills=4, seed=1)
    assert (found["kills"], found["records"]) == (4, 6) and found["resumed"] >= 1
    assert found["lost"] == found["doubled"] == found["changed"] == 0
    assert found["same_summary"]


def test_so_did_fifty_kills():
    found = json.loads((RESULTS / "robustness/kills.json").read_text(encoding="utf-8"))
    assert found["kills"] >= 50 and found["runs"].keys() == KINDS.keys()
    for run in found["runs"].values():
        assert run["lost"] == run["doubled"] == run["changed"] == 0 and run["same_summary"]
        assert run["half_written_lines"] == 1
        assert 0 < sum(0 < n < run["records"] for n in run["records_at_kills"])  # in the middle of a run
