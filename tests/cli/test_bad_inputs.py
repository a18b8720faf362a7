"""What cannot be used ends in one line and status 2, writes nothing and leaves the model alone: options × bad values.

The rows come from the commands themselves: to each right command line one bad value of one of its options is added.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import typer.main
from support.commands import fails
from support.trained import facts, trained

import knowedit
from knowedit.cli import app, main
from knowedit.edit.delta import LowRank
from knowedit.edit.edit import make_edit
from knowedit.models import loading
from knowedit.serving import harness, hub
from knowedit.serving.edit_log import EditLog

ONE = ("Zarn lives in", "--subject", "Zarn", "--target", "Aldor")
FACTS = ("--facts", "facts.jsonl")
RUN = ("--source", "facts.jsonl", "--out", "run")
QUICK = ("--set", "layers=[0]", "--set", "rows.covariance.tokens=400", "--set", "rows.contexts=1",
         "--set", "rows.preserve=0", "--set", "rows.search.steps=20", "--set", "rows.search.lr=0.2",
         "--set", "rows.search.clamp=80", "--set", "rows.search.decay=0", "--solver", "emmet")  # fmt: skip
RIGHT = {
    "locate": ONE, "lens": ONE, "trace": ONE, "recall": ONE, "explain": (*ONE, "-o", "page.html"), "mlp": ONE,
    "patch": ("Zarn lives in", "Quill lives in", "--target", "Aldor"),
    "edit": ("Zarn lives in", "--subject", "Zarn", "--target-new", "Bexum", "--layer", "1"),
    "generate": ("Zarn lives in", "--tokens", "5"), "diff": ("--edit", "edit", *FACTS), "show": ("edit", "--probe"),
    "export": ("edit", "exported", "--to", "peft"), "covariance": ("--layers", "0"), "neuron": ("0", "1"),
    "memory": (*FACTS, "--what", "sparsity", "--tokens", "99"),
    "probe": FACTS, "facts": (), "models": (), "merge": ("shard1", "shard2", "--out", "whole"), "report": ("done",),
    "set add": ("facts-set", *FACTS, *QUICK), "set replace": ("a-set", *FACTS, "--limit", "1"), "set list": ("a-set",),
    "set diff": ("a-set", "a-set"), "set ask": ("a-set", "Zarn lives in"), "set check": ("a-set", "--least", "0"),
    "set export": ("a-set", "set-exported", "--to", "peft"), "set remove": ("a-set", "home/zarn"),
    "cache list": (), "cache clean": (),
    "eval": ("--edit", "edit", "--tasks", "towns"), "push": ("edit", "owner/name"),
    "log": ("logged", "--by", "ada"), "revoke": ("revoking", "first", "--to", "peft", "--out", "left", "--by", "ada"),
    "test": ("edit", "--keep", "kept.jsonl", "--max-perplexity", "1e9", "--junit", "junit.xml"),
    "bench edit": (*RUN, "--method", "fine_tune"), "bench neurons": RUN, "bench configs": (), "ui": (),
}  # fmt: skip
NO_FACTS, NO_TEXT = ("nowhere.jsonl", "empty", "broken.jsonl", "binary"), ("", " ")
NO_COUNT, NO_NUMBER = ("x", "1.5", "0", "-1", ""), ("x", "nan", "inf", "-1", "")
BAD = {  # by option; where it is not named here, by the type of its values
    "--model": ("no/such/folder/x", "empty", "facts.jsonl", "smollm", ""), "--dtype": ("float8", ""),
    "--device": ("tpu", "cuda:99", ""), "--figure": ("picture.txt", "picture", "no-folder/picture.png"),
    "--layers": ("99", "x", "3-1", "", "-1", "0-99", "²", "0-9999999999"), "--layer": ("99", "-1", "x", "1.5"),
    "--fact": ("no-such-fact", ""), "--facts": NO_FACTS, "--source": (*NO_FACTS, "counterfact", "owner/"),
    "--relation": ("no such relation", ""), "--subject": ("Nobody", *NO_TEXT), "--target": NO_TEXT,
    "--target-new": (*NO_TEXT, "Aldor"), "--target-true": NO_TEXT, "--separator": ("x", ", "), "--foil": NO_TEXT,
    "--paraphrase": ("names nobody", "{} and {}", ""), "--heldout": ("names nobody", "{} and {}"),
    "--negative": NO_TEXT, "--neighbour": ("no answer", "=x", "x="), "--set": ("lr", "nope=1", "lr=x", "=1"),
    "--edit": ("nowhere", "empty", "facts.jsonl"), "--out": ("edit", "facts.jsonl"),
    "-o": ("page.txt", "no-folder/page.html", "edit"), "--corpus": ("nowhere.txt", "empty", "binary.txt"),
    "--text": ("nowhere.txt", "binary.txt"), "--positions": ("x", "99", "", "lookup,x"), "--position": ("99", "x"),
    "--nodes": ("x", "0", "-3", "1.5"), "--kind": ("nothing", ""), "--severed": ("nothing",),
    "--quantize": ("x", "0", "40"), "--window": ("0", "-1", "x"), "--groups": ("99", "x"), "--heads": ("-1", "x"),
    "--neurons": ("-1", "x"), "--base": (), "--seed": ("-1", "x", "1.5", "4294967296"),
    "--shard": ("x", "0/2", "3/2", "1"), "--metrics": ("XS", "ES,XS"),
    "--skip": ("x", "1.5", "-1", ""),
    "--config": ("no-such-config", "nowhere.yaml", "broken.jsonl"), "--checkpoints": ("x", "2,1", "0"),
    "--address": (), "--relations": ("no such relation",), "--located": ("nowhere", "edit"),
    "--snippets": ("nowhere",), "--revision": (),
    "--by": NO_TEXT, "--to": ("nope", ""), "--why": (), "--tasks": ("", " ,"), "--shots": ("x", "-1"),
    "--include": ("nowhere", "facts.jsonl"),
    "--hold": NO_FACTS, "--keep": NO_FACTS, "--max-perplexity": ("x", "-1%", "nan", ""),
    "--junit": ("no-folder/x.xml", "edit"), "--type": ("q9", ""), "--older": ("x", "1.5", "-1", ""),
}  # fmt: skip
UNUSED = {("mlp", "--draws", "0")}  # no random dimensions are drawn


def commands():
    top = typer.main.get_command(app)
    for name, command in top.commands.items():
        for inner, sub in getattr(command, "commands", {"": command}).items():
            yield f"{name} {inner}".strip(), sub


def rows():
    """All bad values of an option with the first command that has it, the first of them with the others."""
    seen = set()
    for name, command in commands():
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.is_flag:
                option = parameter.opts[0]
                by_type = {int: NO_COUNT, float: NO_NUMBER}.get(parameter.type_descriptor.annotation, ("nope",))
                values = BAD.get(option, by_type)
                for value in values[: 1 if option in seen else None]:
                    yield name, option, value
                seen.add(option)


ROWS = [row for row in rows() if row not in UNUSED]


def listing():
    """Every file here but those of the cache, with the time it was written."""
    paths = [path for path in Path().rglob("*") if path.parts[0] != "cache"]
    return {path: path.lstat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def place(tmp_path_factory, folder):
    """A folder with facts, a saved edit, a model, and files that are none of these."""
    here = tmp_path_factory.mktemp("bad")
    model = trained()
    with (here / "facts.jsonl").open("w") as file:
        for fact in facts()[:4]:
            file.write(json.dumps(fact.as_dict() | {"target_new": "Dovath"}) + "\n")
    (here / "kept.jsonl").write_text(json.dumps(facts()[-1].as_dict()) + "\n")
    u, v = 1e-6 * torch.ones(model.d_model, 1), torch.ones(model.n_neurons, 1)
    made = make_edit(model, {0: LowRank(u, v)}, method="rome", config={}, facts=[facts()[0]])
    made.save(here / "edit")
    for name in ("logged/first", "revoking/first", "revoking/second"):
        (here / name).parent.mkdir(exist_ok=True)
        made.save(here / name)
    EditLog(here / "revoking").record("ada")
    (here / "model").symlink_to(folder)
    (here / "empty").mkdir()
    (here / "broken.jsonl").write_text('{"template": "The')
    for name in ("binary", "binary.txt"):
        (here / name).write_bytes(b"\xe9\xff\x00\x01" * 20)
    made = [
        [*"bench edit --method none --source facts.jsonl --batch 1 --out".split(), out, "--shard", shard]
        for out, shard in (("done", "1/1"), ("shard1", "1/2"), ("shard2", "2/2"))
    ]
    with pytest.MonkeyPatch.context() as patch:
        move_in(patch, here)
        for arguments in (*made, ["set", "add", "a-set", *FACTS, *QUICK]):
            with pytest.raises(SystemExit, match="0"):
                main([*arguments, "--model", "model"])
    return here


def move_in(patch, place):
    """Make `place` the current folder, with a cache of its own and the model there at once."""
    patch.chdir(place)
    patch.setenv("KNOWEDIT_CACHE", str(place / "cache"))
    real = knowedit.load

    def load(name, **how):
        return trained() if name == "model" and set(how.values()) <= {None, False} else real(name, **how)

    patch.setattr(knowedit, "load", load)
    patch.setattr(loading, "load", load)
    patch.setattr(hub, "push_to_hub", lambda *_, **__: "address")  # what is not installed or reached here
    patch.setattr(harness, "check_installed", lambda: None)
    patch.setattr("knowedit.ui.app.serve", lambda model, port, ready: None)  # it would go on until it is stopped
    patch.setattr(harness, "evaluate", lambda model, *_, **__: harness.HarnessResult(model.name, (), "", 0, 0, ()))


@pytest.fixture
def here(place, monkeypatch):
    move_in(monkeypatch, place)


def command_line(name, *changed):
    """The right command line of a command, with an option of another value."""
    arguments = [*name.split(), *RIGHT[name]]
    if any("--model" in parameter.opts for parameter in dict(commands())[name].params):
        arguments += ["--model", "model"]
    if changed and changed[0] in arguments:
        at = arguments.index(changed[0])
        del arguments[at : at + 2]
    return [*arguments, *changed]


@pytest.mark.parametrize("name", RIGHT)
def test_without_a_bad_value_each_command_line_is_right(name, here, capsys, monkeypatch):
    before = set(listing())
    with pytest.raises(SystemExit) as end:
        main(command_line(name))
    assert end.value.code == 0, capsys.readouterr().err
    for path in set(listing()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize(("name", "option", "value"), ROWS, ids=lambda part: repr(part))
def test_a_bad_value_is_refused_in_one_line_and_changes_nothing(name, option, value, here, capsys, monkeypatch):
    arguments = command_line(name, option, value)
    monkeypatch.setattr("sys.argv", ["knowedit", *arguments])
    files, weights = listing(), [weight.clone() for weight in trained().hf.parameters()]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    done = capsys.readouterr()
    fails((end.value.code, done.out, done.err))
    assert listing() == files
    assert all(map(torch.equal, trained().hf.parameters(), weights))


def test_there_are_three_hundred_rows():
    assert len(ROWS) >= 300
