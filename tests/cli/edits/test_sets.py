"""`knowedit set` as a user meets it, on a tiny trained model in a folder."""

import csv
import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from support.commands import HOSTILE, fails
from support.fact_sets import requests
from support.trained import trained

import knowedit
from knowedit.cli.edits import set_effects
from knowedit.edit.delta import LowRank

pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = ("--set", "layers=[0]", "--set", "rows.covariance.tokens=400", "--set", "rows.contexts=1",
         "--set", "rows.preserve=0", "--set", "rows.search.steps=20", "--set", "rows.search.lr=0.2",
         "--set", "rows.search.clamp=80", "--set", "rows.search.decay=0", "--solver", "emmet")  # fmt: skip
FACTS = requests()[:6:2]


def written(path, facts):
    path.write_text("".join(json.dumps(fact.as_dict()) + "\n" for fact in facts), encoding="utf-8")
    return str(path)


def of(result):
    """The record that a command printed."""
    status, out, err = result
    assert status == 0, err
    return json.loads(out)


@pytest.fixture
def stored(run, tmp_path):
    place = str(tmp_path / "set")
    added = of(run("set", "add", place, "--facts", written(tmp_path / "facts.jsonl", FACTS), *QUICK, "--json"))
    assert added["added"] == [fact.id for fact in FACTS] and added["kept_out"] == {}
    return place


def test_facts_come_and_go_by_commands(run, stored, tmp_path):
    listed = of(run("set", "list", stored, "--json", model=None))
    assert {fact["id"] for fact in listed["facts"]} == {fact.id for fact in FACTS}
    assert listed["config"]["layers"] == [0] and listed["config"]["method"] == "emmet"
    removed = of(run("set", "remove", stored, FACTS[0].id, "--json", model=None))
    assert removed["facts"] == 2
    again = of(run("set", "add", stored, "--facts", str(tmp_path / "facts.jsonl"), "--json"))
    assert again["added"] == [FACTS[0].id] and again["there"] == [FACTS[1].id, FACTS[2].id]
    other = written(tmp_path / "other.jsonl", [requests()[8]])
    fails(run("set", "replace", stored, "--facts", other), "no fact of the set has the id")


def test_replace_gives_a_fact_another_answer(run, stored, tmp_path):
    new = replace(FACTS[0], target_new="Dovath")
    of(run("set", "replace", stored, "--facts", written(tmp_path / "new.jsonl", [new]), "--json"))
    listed = of(run("set", "list", stored, "--json", model=None))
    assert {f["id"]: f["target_new"] for f in listed["facts"]}[new.id] == "Dovath" and len(listed["facts"]) == 3


def test_a_csv_is_read(run, tmp_path):
    table = tmp_path / "facts.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, ("template", "subject", "target", "target_new"))
        rows.writeheader()
        rows.writerows({name: getattr(fact, name) for name in rows.fieldnames} for fact in FACTS)
    added = of(run("set", "add", str(tmp_path / "set"), "--facts", str(table), *QUICK, "--limit", "2", "--json"))
    assert added["facts"] == 2


def test_lines_that_are_no_facts_are_named_and_the_others_go_on(run, stored, tmp_path):
    table = tmp_path / "facts.csv"
    bad = "{} lives in,Fenn,a,b,c", "no slot,Fenn,Aldor,Cirra"
    table.write_text("\n".join(["template,subject,target,target_new", "{} lives in,Osk,Aldor,Cirra", *bad, ""]))
    done = run("set", "add", stored, "--facts", str(table), "--json")
    assert of(done)["facts"] == 4
    for words in ("left out: line 3: 5 cells, the header names 4", "left out: line 4: "):
        assert words in done[2]
    table.write_text("\n".join(["template,subject,target,target_new", *bad, ""]))
    fails(run("set", "add", stored, "--facts", str(table)), "line 2", "5 cells")


def test_a_file_without_new_answers_makes_no_set_and_others_are_left_out(run, stored, tmp_path):
    old = replace(FACTS[0], id="old", target_new=None)
    path = tmp_path / "old.jsonl"
    written(path, [old])
    fails(run("set", "add", str(tmp_path / "new"), "--facts", str(path), model=None), "no fact with a new answer")
    assert not (tmp_path / "new").exists()
    written(path, [old, requests()[8]])
    done = run("set", "add", stored, "--facts", str(path), "--json")
    assert "left out: the fact 'old' has no target_new" in done[2] and of(done)["facts"] == len(FACTS) + 1


def test_diff_tells_what_only_one_set_holds(run, stored, tmp_path):
    other = str(tmp_path / "other")
    facts = written(tmp_path / "others.jsonl", [*FACTS[1:], requests()[8]])
    of(run("set", "add", other, "--facts", facts, *QUICK, "--json"))
    record = of(run("set", "diff", stored, other, "--json", model=None))
    assert [f["id"] for f in record["only_a"]] == [FACTS[0].id]
    assert [f["id"] for f in record["only_b"]] == [requests()[8].id]
    assert record["both"] == 2 and record["same_base"] and record["same_config"]


def test_ask_shows_both_and_check_fails_where_a_fact_does_not_hold(run, stored, tmp_path):
    record = of(run("set", "ask", stored, FACTS[0].prompt, "--json"))
    assert record["before"][0][0] == FACTS[0].target and record["before"] != record["after"]
    status, out, err = run("set", "check", stored, "--least", "0", "--json")
    assert status == 0, err
    held = json.loads(out)
    assert held["facts"] == 3 and held["holding"] + len(held["lost"]) == 3
    status, out, _ = run("set", "check", stored)
    assert status == (1 if held["lost"] else 0)
    assert f"facts that hold: {held['holding']} of 3" in out
    assert run("set", "check", stored, "--least", repr(held["holding"] / 3))[0] == 0
    one = str(tmp_path / "one")
    tavo = written(tmp_path / "tavo.jsonl", [fact for fact in requests() if fact.id == "home/tavo"])
    of(run("set", "add", one, "--facts", tavo, *QUICK, "--json"))
    assert run("set", "check", one)[0] == 0
    assert "facts that hold: 1 of 1" in run("set", "check", one)[1]


@pytest.mark.parametrize("to, file", [("edit", "edit.json"), ("peft", "adapter_config.json")])
def test_export_writes_the_change(run, stored, tmp_path, to, file):
    record = of(run("set", "export", stored, str(tmp_path / "out"), "--to", to, "--json"))
    assert (tmp_path / "out" / file).exists() and record["ranks"] == [3] and record["lost"] == 0


def test_a_smaller_rank_is_exported_with_its_loss(run, stored, tmp_path):
    status, text, err = run("set", "export", stored, str(tmp_path / "out"), "--to", "edit", "--rank", "2")
    assert status == 0, err
    assert "rank 2" in text and "the rank loses" in text
    edit = knowedit.load_edit(tmp_path / "out")
    ((_, kept),) = edit.deltas.items()
    of(run("set", "export", stored, str(tmp_path / "whole"), "--to", "peft", "--json"))
    tensors = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    A, B = (next(t for name, t in tensors.items() if part in name) for part in ("lora_A", "lora_B"))
    whole = LowRank(B, A.T)
    lost = (whole.matrix().double() - kept.matrix().double()).norm().item() / whole.norm()
    assert edit.notes["lost"] == pytest.approx(lost, rel=1e-3)  # a difference of two squares of float32


def test_an_adapter_that_is_not_served_is_refused(run, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(set_effects, "SERVED", 2)
    result = run("set", "export", stored, str(tmp_path / "out"), "--to", "peft")
    fails(result, "rank 3", "vLLM serves adapters of rank 2 or less", "--rank 2")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("add", "{}", "--facts", "nowhere.jsonl"), ("there is no source 'nowhere.jsonl'",)),
        (("add", "{}", "--facts", "builtin", "--solver", "mimet"), ("'mimet'", "expected memit, emmet, alphaedit")),
        (
            ("add", "{}", "--facts", "builtin", "--set", "solver.ridge_shar=1"),
            ("'ridge_shar'", "did you mean 'ridge_share'"),
        ),
        (("remove", "{}", "a"), ("is no fact set",)),
        (("list", HOSTILE), ("is no fact set",)),
        (("check", "{}"), ("is no fact set",)),
        (("export", "{}", "{}", "--to", "peft"), ("exists already",)),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, arguments, words):
    loads = arguments[0] in ("add", "check", "export")
    fails(
        run("set", *(a.replace("{}", str(tmp_path)) for a in arguments), **({} if loads else {"model": None})), *words
    )


def test_the_same_command_goes_on_and_other_settings_are_refused(run, stored, tmp_path):
    command = ("set", "add", stored, "--facts", str(tmp_path / "facts.jsonl"))
    assert of(run(*command, *QUICK, "--json"))["there"] == [fact.id for fact in FACTS]
    fails(run(*command, *QUICK[:-1], "memit"), "has other settings")


def test_an_edit_of_a_fact_that_is_kept_out_is_refused_in_one_line(run, tmp_path):
    edit = ("edit", "Zarn lives in", "--subject", "Zarn", "--target-new", "Bexum", "--method", "memit")
    fails(run(*edit, *QUICK[:-2], "--set", "least=0.9999999"), "memit keeps this fact out", "ask in other words")


def test_a_set_of_another_model_is_refused(run, stored, tmp_path):
    other = tmp_path / "model"
    hf = trained().hf
    weight = hf.model.layers[0].mlp.up_proj.weight
    kept = weight.detach().clone()
    weight.data += 1
    hf.save_pretrained(other)
    trained().tokenizer.save_pretrained(other)
    weight.data.copy_(kept)
    fails(run("set", "check", stored, model=str(other)), "with other weights than")
