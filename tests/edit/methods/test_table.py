"""A new method is its file and its row: everything that uses methods finds it then, by its name alone."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from support.commands import fails
from support.rounding import LOGITS, assert_near, near
from support.studies import ROME, records, source, study
from support.trained import trained

from knowedit.cli import main
from knowedit.edit.apply import applied, edits_on
from knowedit.edit.edit import load_edit
from knowedit.edit.methods.table import METHODS, Row, find_method, method_config, prepare
from knowedit.edit.rewrite_quality import rates, rewrite_quality
from knowedit.errors import InputError
from knowedit.evaluate.runs.engine import run_study
from knowedit.sources import Source

# the whole of a method, as a user writes it; docs/adding.md shows this file
TOY = '''
"""A toy: the layer answers the subject's key with the word embedding of the new answer."""

from dataclasses import asdict, dataclass

from knowedit.edit.delta import LowRank
from knowedit.edit.edit import check_request, make_edit
from knowedit.edit.methods.method import Editor, Method
from knowedit.edit.preserved_keys import lookup_keys


@dataclass(frozen=True)
class ToyConfig:
    layer: int = 0
    strength: float = 1.0


def prepare(model, config, facts, bars):
    def edit(fact):
        target = model.query(fact.prompt, check_request(fact), fact.subject).target_ids[0]
        (key,) = lookup_keys(model, config.layer, [model.encode(fact.prompt, fact.subject)])
        value = config.strength * model.unembedding.weight[target].detach()
        change = LowRank(value[:, None], (key / key.dot(key))[:, None])
        return make_edit(model, {config.layer: change}, method="toy", config=asdict(config), facts=[fact])

    return Editor(lambda facts: [edit(fact) for fact in facts])


METHOD = Method(ToyConfig, prepare)
'''

# one edit for all facts that it is given: the sum of their edits by ROME
TOGETHER = """
import torch

from knowedit.edit.delta import LowRank
from knowedit.edit.edit import make_edit
from knowedit.edit.methods import rome
from knowedit.edit.methods.method import Editor, Method


def prepare(model, config, facts, bars):
    alone = rome.METHOD.prepare(model, config, facts, bars)

    def edit(facts):
        deltas = [delta for edit in alone(facts) for delta in edit.deltas.values()]
        change = LowRank(torch.cat([d.u for d in deltas], 1), torch.cat([d.v for d in deltas], 1))
        change = make_edit(model, {config.layer: change}, method="sum", config=config.as_dict(), facts=facts)
        return [change] * len(facts)

    return Editor(edit)


METHOD = Method(rome.RomeConfig, prepare, together=True)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install a method: its file in a folder of the user's, and its row."""

    def install(name: str, text: str) -> None:
        (tmp_path / f"{name}_method.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, f"{name}_method", raising=False)
        monkeypatch.setitem(METHODS, name, Row("a method of a test", f"{name}_method"))

    return install


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run a command on the trained model in a folder, with its facts: (status, stdout, stderr)."""
    for part in (trained().hf, trained().tokenizer):
        part.save_pretrained(tmp_path / "model")
    lines = [json.dumps(fact.as_dict()) for fact in source().facts]
    (tmp_path / "homes.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))

    def call(*arguments):
        arguments = [*arguments, "--model", str(tmp_path / "model")]
        monkeypatch.setattr("sys.argv", ["knowedit", *arguments])
        with pytest.raises(SystemExit) as end:
            main(arguments)
        output = capsys.readouterr()
        return end.value.code, output.out, output.err

    return call


# ---------------------------------------------------------------- a method in a file of its own


def test_knowedit_edit_takes_a_new_method_and_its_settings(plugin, run, tmp_path):
    plugin("toy", TOY)
    command = ("edit", "Zarn lives in", "--subject", "Zarn", "--target-new", "Bexum", "--method", "toy")
    status, out, err = run(*command, "--set", "strength=30", "--layer", "2", "--out", str(tmp_path / "edit"), "--json")
    assert status == 0, err
    report = json.loads(out)
    assert (report["method"], report["layers"]) == ("toy", [2])
    assert report["after"]["prompt"]["p_new"] > report["before"]["prompt"]["p_new"]
    assert dict(load_edit(tmp_path / "edit").config) == {"layer": 2, "strength": 30.0}
    fails(run(*command, "--set", "strenght=30"), "no setting is called 'strenght'", "did you mean 'strength'")
    fails(run(*command, "--layer", "7"), "layer 7 is out of range")
    fails(run(*command, "--seed", "7"), "no setting is called 'seed'")
    fails(run(*command[:-1], "toi"), "did you mean 'toy'")


def test_bench_edit_takes_a_new_method_and_plans_and_resumes_it(plugin, run, tmp_path):
    plugin("toy", TOY)
    command = ("bench", "edit", "--source", str(tmp_path / "homes.jsonl"), "--method", "toy")
    command = (*command, "--set", "strength=30", "--layer", "2", "--batch", "2")
    status, out, err = run(*command, "--dry-run", "--json")
    assert status == 0, err
    plan = json.loads(out)
    assert plan["records"] == 6 and plan["method"] == {"name": "toy", "layer": 2, "strength": 30.0}
    status, out, err = run(*command, "--out", str(tmp_path / "run"), "--json")
    assert status == 0, err
    summary = json.loads(out)
    assert (summary["records"], summary["failed"]) == (6, 0)
    assert summary["metrics"]["EM"]["value"] > summary["before"]["EM"]["value"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert {row["edit"]["method"] for row in rows} == {"toy"}
    assert len({row["edit"]["content_hash"] for row in rows}) == 6, "each fact has an edit of its own"
    status, _, err = run(*command, "--out", str(tmp_path / "run"), "--resume")
    assert status == 0, err


def test_a_row_is_enough_for_help_and_the_method_is_loaded_when_used():
    """`--help` stays fast: the table names files, and imports none of them."""
    code = (
        "import sys\nfrom knowedit.edit.methods.table import METHODS\nprint(len(METHODS))\n"
        "print(sorted(set(sys.modules) & {'torch', 'transformers', 'numpy'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, heavy = done.stdout.splitlines()
    assert int(number) >= 4 and heavy == "[]"


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].edits])
def test_every_method_edits_with_its_defaults(name, monkeypatch, tmp_path):
    """What the table promises: a config with defaults, and an editor that gives each fact the edit that changes it."""
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    model = trained()
    some = source(2).facts
    layer = 1 if hasattr(find_method(name).config(), "layer") else None
    method = find_method(name)
    rows = {"covariance": {"tokens": 400}, "contexts": 1}
    settings = rows if method.tries_layers else {}
    if hasattr(method.config(), "rows"):
        settings = {"layers": [1], "rows": rows, "least": 1e-9}
    config = method_config(name, settings, layer, model)
    edits = prepare(model, name, config, ())(some)
    wanted = [{fact.id for fact in some}] * len(some) if method.together else [{fact.id} for fact in some]
    assert [{fact.id for fact in edit.facts} for edit in edits] == wanted
    assert {edit.method for edit in edits} == {name}
    assert not edits_on(model)


# ---------------------------------------------------------------- one edit for many facts


@pytest.fixture
def together(plugin, monkeypatch, tmp_path):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))
    plugin("together", TOGETHER)
    return {"method": "together", "settings": {**ROME, "covariance": {"tokens": 400}}, "layer": 1, "batch": 3}


def test_facts_of_a_batch_share_one_edit_and_their_records_say_which(together, tmp_path):
    model = trained()
    rows = list(run_study(study(**together, perplexity=True), tmp_path / "run", progress=False).rows())
    hashes = [row["edit"]["content_hash"] for row in rows]
    assert len(set(hashes)) == 2 and hashes[0] == hashes[1] == hashes[2] != hashes[3] == hashes[4] == hashes[5]
    assert {row["edit"]["facts"] for row in rows} == {3}
    assert len({row["after"]["perplexity"] for row in rows}) == 2, "the plain text is read once for each edit"
    batch = source().facts[:3]
    this = study(**together)
    (edit, *same) = prepare(model, "together", this.method_settings, source().facts)(batch)
    assert same == [edit, edit] and edit.facts == batch and edit.content_hash == hashes[0]
    with applied(model, edit):
        expected = rates(rewrite_quality(model, batch, heldout=False))
    for i, row in enumerate(rows[:3]):
        for name, values in expected.items():
            assert row["after"][name] == near(values[i], size=LOGITS)


def test_a_fact_that_cannot_be_asked_is_left_out_of_the_edit(together, tmp_path):
    some = list(source().facts[:3])
    some[1] = replace(some[1], target_new="Timbuktu")  # which the model has no token for
    this = study(**together)
    this.facts = {fact.id: fact for fact in some}
    this.source = Source("made", "facts", tuple(some), (), "1" * 64)
    rows = {row["id"]: row for row in this.run([fact.id for fact in some])}
    assert "Timbuktu" in rows[some[1].id]["error"]
    kept = [rows[some[i].id]["edit"] for i in (0, 2)]
    assert kept[0] == kept[1] and kept[0]["facts"] == 2


def test_facts_of_an_edit_that_fails_are_not_edited_one_by_one(together, tmp_path):
    this = study(**{**together, "settings": {**together["settings"], "covariance": {"tokens": 20}}})
    with pytest.raises(InputError, match="all 6 records failed, .* 20 tokens are too few"):
        run_study(this, tmp_path / "run", progress=False)


def test_a_resumed_batch_of_one_edit_is_the_same_to_the_bit(together, tmp_path):
    whole = run_study(study(**together), tmp_path / "whole", progress=False)
    cut = tmp_path / "cut"
    run_study(study(**together), cut, progress=False)
    path = cut / "records.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    again = run_study(study(**together), cut, resume=True, progress=False)
    assert sorted(records(again), key=lambda row: row["id"]) == sorted(records(whole), key=lambda row: row["id"])


def test_one_edit_of_many_facts_is_of_their_common_rank(together):
    model = trained()
    batch = source().facts[:3]
    (edit, *_) = prepare(model, "together", study(**together).method_settings, source().facts)(batch)
    alone = prepare(model, "rome", study(**together).method_settings, source().facts)(batch)
    (delta,) = edit.deltas.values()
    total = sum(other.deltas[model.down_path(1)].matrix() for other in alone)
    assert delta.rank == 3
    assert_near(delta.matrix(), total, operations=3)
