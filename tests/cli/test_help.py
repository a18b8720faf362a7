"""`--help` on a terminal of 80 columns: whole summaries, the choices of an option, options in panels."""

import re

import pytest
import typer

from knowedit.cli import app
from knowedit.edit.fact_set.config import SOLVERS
from knowedit.edit.methods.table import METHODS
from knowedit.evaluate.runs.engine import ENGINES
from knowedit.evaluate.runs.tracker import TRACKERS
from knowedit.locate.config import POSITIONS
from knowedit.locate.integration_path import BASELINES
from knowedit.locate.neurons import KINDS
from knowedit.locate.quadrature import RULES
from knowedit.locate.rankings import RANKINGS
from knowedit.memory.sparsity import WHERE
from knowedit.models.passes.objective import KINDS as OBJECTIVES
from knowedit.report.bench.tables import WRITERS

EDITING = tuple(name for name, row in METHODS.items() if row.edits)
CHOICES = {  # command, option → what the library takes
    ("locate", "--method"): RANKINGS,
    ("locate", "--of"): OBJECTIVES,
    ("locate", "--quadrature"): RULES,
    ("locate", "--baseline"): BASELINES,
    ("locate", "--ablation"): BASELINES,
    ("locate", "--position"): POSITIONS,
    ("locate", "--drop"): KINDS,
    ("locate", "--engine"): ENGINES,
    ("patch", "--metric"): OBJECTIVES,
    ("memory", "--at"): WHERE,
    ("edit", "--method"): EDITING,
    ("report", "--format"): ("terminal", *WRITERS),
    ("bench edit", "--method"): tuple(METHODS),
    ("bench edit", "--engine"): ENGINES,
    ("bench edit", "--tracker"): TRACKERS,
    ("bench neurons", "--method"): RANKINGS,
    ("set add", "--solver"): tuple(SOLVERS),
}


def commands() -> dict[str, object]:
    """All commands by name, those of `bench` with its name before theirs."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {one}": c for one, c in inner.items()}
    return found


@pytest.fixture
def shown(run, monkeypatch):
    """The help of a command at 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*command):
        status, out, err = run(*command, "--help", model=None)
        assert status == 0 and err == ""
        return out

    return call


@pytest.mark.parametrize("group", [(), ("bench",), ("set",)])
def test_summaries_are_whole(shown, group):
    text = " ".join(shown(*group).split())
    for name, command in commands().items():
        if name.split()[:-1] == list(group):
            sentence = " ".join(command.help.split("\n\n")[0].split()).rstrip(".")
            first = re.split(r"(?<=\.) ", sentence)[0]
            assert f"{name.split()[-1]} {first}" in text, name


@pytest.mark.parametrize("name", commands())
def test_help_fits_a_terminal(shown, name):
    text = shown(*name.split())
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name, option", CHOICES)
def test_an_option_shows_what_the_library_takes(shown, name, option):
    choices, text = CHOICES[name, option], " ".join(shown(*name.split()).split())
    beside = f"{option} {'|'.join(choices)}"
    assert beside in text or re.search(rf"{option} NAME [^:]*: {', '.join(choices)}\.", text)


def test_a_wrong_choice_is_one_line_with_the_nearest(run):
    status, out, err = run("patch", "a", "b", "--target", "c", "--site", "resid", model=None)
    assert (status, out) == (2, "")
    assert err == "error: --site is 'resid' (did you mean 'residual'?), expected residual, mlp, attention, head\n"


def test_options_stand_in_panels(shown):
    text = shown("locate")
    titles = re.findall(r"^(\w+):$", text, re.M)
    assert titles == ["Arguments", "Facts", "Scores", "Selection", "Options", "Run", "Model", "Output"]
    model = text[text.index("\nModel:\n") : text.index("\nOutput:\n")]
    assert re.findall(r"^  (--[\w-]+)", model, re.M) == ["--model", "--dtype", "--device", "--trust-remote-code"]


def test_a_shell_can_be_taught_to_complete(shown):
    assert "--install-completion" in shown()
