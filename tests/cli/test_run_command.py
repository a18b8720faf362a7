"""An analysis is a file with its result, and a command: both from temporary modules, run by the command line itself."""

import importlib
import json
import sys

import pytest
from support.commands import fails
from support.trained import trained

from knowedit import cli
from knowedit.cli.shared.command import command

# docs/adding.md shows these two
ANALYSIS = '''"""How many tokens the prompts of facts have."""

from dataclasses import dataclass

from knowedit.display.result import Record, Table


@dataclass(frozen=True)
class PromptLengths(Record):
    model: str
    tokens: dict[str, int]

    def table(self):
        yield f"{self.model}: tokens of each prompt"
        yield Table(("prompt", "tokens"), list(self.tokens.items()))

    def figure(self, path):
        from knowedit.display.drawing import figure, save

        with figure(7, 3) as (fig, axes):
            axes.barh(list(self.tokens), list(self.tokens.values()))
            return save(fig, path)


def prompt_lengths(model, facts):
    return PromptLengths(model.name, {fact.prompt: len(model.encode(fact.prompt).ids) for fact in facts})
'''
COMMAND = '''"""`knowedit lengths`: how many tokens the prompts of facts have."""

from knowedit.cli.shared.command import run_command
from knowedit.cli.shared.facts import ManyFacts
from knowedit.cli.shared.options import DrawnOutput, ModelOptions


def lengths(facts: ManyFacts, model: ModelOptions, output: DrawnOutput) -> None:
    """How many tokens has the prompt of each fact that the model knows?"""
    from prompt_lengths import prompt_lengths

    run_command("knowedit.lengths/1", lambda loaded: prompt_lengths(loaded, facts.known(loaded)), model, output)
'''


@pytest.fixture
def lengths(run, tmp_path, monkeypatch):
    """`knowedit lengths`, as if its function stood in `COMMANDS`."""
    (tmp_path / "prompt_lengths.py").write_text(ANALYSIS)
    (tmp_path / "lengths_command.py").write_text(COMMAND)
    monkeypatch.syspath_prepend(tmp_path)
    function = importlib.import_module("lengths_command").lengths
    registered = list(cli.app.registered_commands)
    cli.app.command("lengths")(command(function))
    yield lambda *arguments, **more: run("lengths", *arguments, **more)
    cli.app.registered_commands[:] = registered
    for name in ("prompt_lengths", "lengths_command"):
        sys.modules.pop(name, None)


@pytest.fixture
def facts_file(tmp_path):
    path = tmp_path / "facts.jsonl"
    records = [{"template": "{} lives in", "subject": "Zarn", "target": t, "id": t} for t in ("Aldor", "baker")]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_new_analysis_prints_its_record_as_json(lengths, facts_file):
    status, out, _ = lengths("--facts", facts_file, "--json")
    tokens = len(trained().encode("Zarn lives in").ids)
    assert status == 0
    record = json.loads(out)
    assert record.pop("model") and record == {"schema": "knowedit.lengths/1", "tokens": {"Zarn lives in": tokens}}


def test_a_new_analysis_prints_its_table_for_people(lengths, facts_file):
    status, out, _ = lengths("--facts", facts_file)
    assert status == 0 and "tokens of each prompt" in out
    assert out.splitlines()[-1].split() == ["Zarn", "lives", "in", str(len(trained().encode("Zarn lives in").ids))]


def test_a_new_analysis_draws_its_figure(lengths, facts_file, tmp_path):
    status, out, err = lengths("--facts", facts_file, "--figure", str(tmp_path / "x.svg"))
    assert status == 0 and f"drawn into {tmp_path / 'x.svg'}" in err
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")


def test_a_figure_that_cannot_be_written_is_told_before_the_model_is_loaded(lengths, facts_file):
    fails(lengths("--facts", facts_file, "--figure", "x.gif", model="no-such-model"), ".png", "x.gif")
    fails(lengths("--facts", facts_file, "--figure", "no/x.png", model="no-such-model"), "no folder")


def test_a_new_command_has_the_options_of_its_groups(lengths):
    status, out, _ = lengths("--help", model=None)
    assert status == 0 and "How many tokens has the prompt of each fact" in out
    for option in ("--facts", "--relation", "--limit", "--model", "--dtype", "--device", "--figure", "--json"):
        assert option in out


def test_every_command_is_registered_once():
    names = [registered.name for registered in cli.app.registered_commands]
    assert sorted(names) == sorted(cli.COMMANDS)
