"""Trackers are fed what a run logs, say nothing on stdout, and never end a run."""

import json
import os
import sqlite3
import subprocess
import sys
import types
from contextlib import closing

import pytest
from support.fake import Fake

from knowedit.errors import InputError
from knowedit.evaluate.runs.engine import run_study
from knowedit.evaluate.runs.tracker import start_tracker


class Recorder(types.ModuleType):
    """A module that takes every call down; those named in `fail` raise."""

    def __init__(self, name, fail=()):
        super().__init__(name)
        self.calls, self.fail = [], fail

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*values, **named):
            print("chatter")
            if name in self.fail:
                raise RuntimeError("\x1b[31mno route")
            self.calls.append((name, values, named))

        return call


@pytest.fixture
def module(monkeypatch):
    def put(name, **options):
        made = Recorder(name, **options)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return put


def follow(tmp_path, name, config=None):
    tracker = start_tracker(name, "a run", config or {"t": (1, 2), "long": "x" * 900})
    run_study(Fake(n=5, size=2), tmp_path / "run", progress=False, log=tracker.log)
    tracker.finish()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_what_has_its_interface(tmp_path, module, capsys, name):
    calls = module(name)
    follow(tmp_path, name)
    first, *logged, last = calls.calls
    assert first == ("init", (), {"project": "knowedit", "name": "a run", "config": {"t": (1, 2), "long": "x" * 900}})
    assert [(kind, named) for kind, _, named in logged] == [("log", {"step": n}) for n in (2, 4, 5, 5)]
    assert logged[1][1] == ({"records": 4, "failed": 0},)
    assert list(logged[3][1][0]) == ["ES"]
    assert last == ("finish", (), {})
    assert capsys.readouterr().out == ""


def test_mlflow(tmp_path, module, capsys):
    calls = module("mlflow")
    follow(tmp_path, "mlflow")
    names = [kind for kind, *_ in calls.calls]
    assert names == ["set_experiment", "start_run", "log_params", *["log_metrics"] * 4, "end_run"]
    assert calls.calls[2][1] == ({"t": "(1, 2)", "long": "x" * 500},)
    assert calls.calls[3] == ("log_metrics", ({"records": 2, "failed": 0},), {"step": 2})
    assert capsys.readouterr().out == ""


def test_names_that_mlflow_refuses_are_written_otherwise(module):
    calls = module("mlflow")
    start_tracker("mlflow", "run", {}).log({"suppress:ig": -0.5}, 3)
    assert calls.calls[-1][1] == ({"suppress/ig": -0.5},)


def test_a_tracker_that_fails_in_the_middle_is_told_once_and_the_run_goes_on(tmp_path, module, capsys):
    calls = module("wandb", fail=("log",))
    follow(tmp_path, "wandb")
    done = capsys.readouterr()
    assert done.err.count("wandb no longer follows the run: \\x1b[31mno route") == 1 and "\x1b" not in done.err
    assert [kind for kind, *_ in calls.calls] == ["init"]
    assert (tmp_path / "run" / "summary.json").exists()


def test_trackers_that_cannot_be(module, monkeypatch):
    with pytest.raises(InputError, match="did you mean 'wandb'"):
        start_tracker("wanddb", "run", {})
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match="pip install mlflow, or leave out --tracker"):
        start_tracker("mlflow", "run", {})
    module("wandb", fail=("init",))
    with pytest.raises(InputError, match="the tracker wandb does not start .* set it up"):
        start_tracker("wandb", "run", {})


def test_trackio_itself_keeps_the_figures_on_this_machine(tmp_path):
    """In a process of its own: it starts threads, and reads its folder when it is imported."""
    pytest.importorskip("trackio")
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from support.fake import Fake\n"
        "from knowedit.evaluate.runs.engine import run_study\n"
        "from knowedit.evaluate.runs.tracker import start_tracker\n"
        "tracker = start_tracker('trackio', 'a run', {'t': (1, 2), 'deep': {'er': None}})\n"
        "run_study(Fake(n=5, size=2), sys.argv[1], progress=False, log=tracker.log)\n"
        "tracker.finish()\n"
    )
    place = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], env=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "no longer follows" not in done.stderr
    with closing(sqlite3.connect(tmp_path / "trackio" / "knowedit.db")) as base:
        rows = base.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, _ in rows] == [2, 4, 5, 5]
    assert json.loads(rows[1][1]) == {"records": 4, "failed": 0} and list(json.loads(rows[3][1])) == ["ES"]
