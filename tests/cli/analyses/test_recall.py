"""`knowedit recall`: the numbers of the functions, as JSON, tables and a figure; one line for what cannot be asked."""

import json

import pytest
from support.commands import HOSTILE, fails
from support.tiny import hf, tokenizer
from support.trained import facts, trained

from knowedit.answers import ask
from knowedit.recall.flow.pipeline import RecallConfig, recall_fact

ZARN = ("recall", "Zarn lives in", "--subject", "Zarn", "--target", "Aldor")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The facts of two relations as a user's file."""
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    records = [
        {"id": f.id, "template": f.template, "subject": f.subject, "target": f.target, "relation": f.relation}
        for f in facts()
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_it_prints_one_json_object_with_the_functions_numbers(run):
    status, out, err = run(*ZARN, "--window", "1", "--json")
    assert status == 0, err
    found = json.loads(out)
    wanted = recall_fact(trained(), facts()[0], config=RecallConfig(window=1)).as_dict()
    assert found["schema"] == "knowedit.recall/1"
    assert found["propagation"]["sets"]["subject"]["change"] == pytest.approx(
        wanted["propagation"]["sets"]["subject"]["change"], abs=1e-4
    )
    assert found["extraction"] == wanted["extraction"]
    assert found["enrichment"]["rate"] == pytest.approx(wanted["enrichment"]["rate"])
    assert [stage["name"] for stage in found["stages"]] == ["enrichment", "propagation", "extraction"]


def test_it_tells_the_stages_to_people(run):
    status, out, _ = run(*ZARN)
    assert status == 0
    assert "Zarn lives in → Aldor" in out
    for word in ("Enrichment:", "Propagation:", "Extraction:", "hide subject", "no mlp"):
        assert word in out


def test_a_text_and_a_figure(run, tmp_path):
    text, picture = tmp_path / "zarn.txt", tmp_path / "zarn.svg"
    text.write_text("Zarn is a baker of Aldor.")
    status, out, err = run(*ZARN, "--text", str(text), "--figure", str(picture), "--json")
    assert status == 0, err
    assert json.loads(out)["enrichment"]["attributes"] == 3  # zarn, baker, aldor
    assert picture.read_bytes().startswith(b"<?xml")


def test_many_facts(run, file, tmp_path):
    picture = tmp_path / "many.png"
    status, out, err = run("recall", "--facts", file, "--limit", "6", "--figure", str(picture), "--json")
    assert status == 0, err
    found = json.loads(out)
    assert len(found["facts"]) == 6 and found["propagation"]["subject"]["worst"]["n"] == 6
    assert picture.exists()
    status, out, err = run("recall", "--facts", file, "--relation", "home")
    assert status == 0, err
    assert "12 facts" in out and "subject hidden from the last token" in out and "extraction event of mlp" in out


def test_a_fact_in_which_nothing_follows_the_subject_is_left_out(run, tmp_path):
    path = tmp_path / "facts.jsonl"
    model = trained()
    (found,) = ask(model, [model.query("Zarn", "Aldor", "Zarn")])  # what it says, so that the fact is known
    rows = [
        {"template": "{} lives in", "subject": "Zarn", "target": "Aldor"},
        {"template": "{}", "subject": "Zarn", "target": found.top[0][0]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, err = run("recall", "--facts", str(path), "--json")
    assert status == 0, err
    assert "left out: nothing follows the subject" in err
    assert json.loads(out)["facts"] == ["line-1"]
    path.write_text(json.dumps(rows[1]))
    fails(run("recall", "--facts", str(path), "--json"), "none of the facts can be measured")


def test_hostile_text_is_inert(run):
    status, out, err = run("recall", HOSTILE, "--subject", "Zarn", "--target", "Aldor")
    assert status == 0, err
    assert "\x1b" not in out and "\u202e" not in out and "[/red]" in out


def test_bad_input(run, file, tmp_path):
    fails(run("recall"), "give one of")
    fails(run("recall", "Zarn lives in", "--target", "Aldor"), "--subject")
    fails(run("recall", "Zarn", "--subject", "Zarn", "--target", "Aldor"), "whole prompt")
    fails(run("recall", "home of Zarn", "--subject", "Zarn", "--target", "Aldor"), "nothing follows the subject")
    fails(run("recall", "Zarn lives in", "--subject", "Quill"), "not in the prompt")
    fails(run(*ZARN, "--window", "0"), "--window is 0")
    fails(run(*ZARN, "--window", "9"), "window of 9", "1 to 3")
    fails(run("recall", "--facts", file, "--window", "9"), "window of 9")
    fails(run("recall", "Zarn lives in " * 20, "--subject", "Zarn", "--target", "Aldor"), "32")
    fails(run(*ZARN, "--figure", str(tmp_path / "x.gif")), ".png")
    fails(run(*ZARN, "--figure", str(tmp_path / "none" / "x.png")), "no folder")
    fails(run("recall", "--fact", "landmark-city/eiffel-towr"), "did you mean")


def test_a_text_that_cannot_be_used(run, file, tmp_path):
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00\x80")
    fails(run(*ZARN, "--text", str(empty)), "no words")
    fails(run(*ZARN, "--text", str(binary)), "not UTF-8")
    fails(run(*ZARN, "--text", str(tmp_path / "none.txt")), "cannot read")
    fails(run(*ZARN, "--text", str(tmp_path)), "cannot read")
    fails(run("recall", "--facts", file, "--text", str(empty)), "--text is about one subject")


def test_a_masked_model_is_refused_with_a_sentence(run, tmp_path):
    hf("bert").save_pretrained(tmp_path)
    tokenizer("wordpiece").save_pretrained(tmp_path)
    fails(run("recall", "Paris is in", "--subject", "Paris", "--target", "France", model=str(tmp_path)), "masked")
