"""`knowedit explain` as a user meets it, on the tiny trained model in a folder."""

import json
import re

import pytest
import torch
from support.commands import HOSTILE, fails
from support.edits import strong
from support.tiny import tiny

ASK = ("explain", "{} lives in", "--subject", "Zarn", "--target", "Aldor")
WAYS = ("--paraphrase", "The home of {} is", "--paraphrase", "You will find {} in", "--draws", "20")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    return str(strong("Zarn", "Bexum").save(tmp_path_factory.mktemp("edits") / "zarn"))


def embedded(page) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="record">(.*?)</script>', text, re.S).group(1))


def test_the_page_holds_what_json_says(run, saved, tmp_path):
    out = tmp_path / "page.html"
    status, printed, err = run(*ASK, *WAYS, "--edit", saved, "-o", str(out), "--json")
    assert status == 0, err
    record = json.loads(printed)
    assert record["schema"] == "knowedit.explain/1" and record == embedded(out)
    assert record["fact"]["prompt"] == "Zarn lives in" and record["fact"]["target_new"] == "Bexum"
    assert record["fact"]["paraphrases"] == ["The home of {} is"]
    assert record["fact"]["heldout"] == ["You will find {} in"]
    assert record["config"]["draws"] == 20 == record["proof"]["draws"]
    assert record["edit"]["after"]["prompt"]["says_new"]


def test_without_json_a_few_lines_say_where_it_is(run, saved, tmp_path):
    out = tmp_path / "page.html"
    status, printed, err = run("explain", "--edit", saved, "--quick", "-o", str(out))
    assert status == 0, err
    record = embedded(out)
    lines = printed.splitlines()
    assert lines[0] == f"Zarn lives in → Aldor   p = {record['prediction']['probability']:.3f}, rank 1"
    assert f"Bexum {record['edit']['after']['prompt']['p_new']:.3f}" in printed
    assert lines[-1].startswith(f"The page: {out}")
    assert record["config"]["quick"] and record["fact"]["heldout"]


def test_json_alone_writes_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, err = run(*ASK, *WAYS, "--quick", "--layers", "1-2", "--json")
    assert status == 0, err
    record = json.loads(printed)
    assert record["edit"] is None and {n["layer"] for n in record["neurons"]["neurons"]} <= {1, 2}
    assert list(tmp_path.iterdir()) == []


def test_the_same_call_tells_the_same(run):
    def told():
        status, printed, err = run(*ASK, *WAYS, "--json")
        assert status == 0, err
        record = json.loads(printed)
        return {name: value for name, value in record.items() if name != "seconds"}

    assert told() == told()


def test_hostile_text_is_inert(run, tmp_path):
    out = tmp_path / "page.html"
    hostile = HOSTILE.replace("Zarn", "{}") + " <script>alert(1)</script>"
    status, printed, err = run(
        "explain", hostile, "--subject", "Zarn", "--target", "Aldor", "--quick", "--draws", "5", "-o", str(out)
    )
    assert status == 0, err
    text = out.read_text(encoding="utf-8")
    assert not any(mark in shown for mark in ("\x1b", "\u202e") for shown in (printed, text))
    assert "<script>alert" not in text and text.count("<script") == 2
    assert "[bold]lives[/bold]" in printed and "$x_{ $" in text


def test_bad_input_is_one_line(run, saved, tmp_path):
    page = ("-o", str(tmp_path / "page.html"))
    fails(run(*ASK), "-o page.html")
    fails(run("explain", *page), "give one of", "--fact")
    fails(run(*ASK, "--fact", "capital/japan", *page), "give one of")
    fails(run("explain", "{} lives in", *page), "--subject")
    fails(run("explain", "Zarn", "--subject", "Zarn", *page), "whole prompt")
    fails(run("explain", "Quill lives in", "--subject", "Zarn", *page), "not in the prompt")
    fails(run("explain", "{} lives in {}", "--subject", "Zarn", *page), "2 slots")
    fails(run("explain", "{} lives in", "--subject", "Zarn", "--target", "nowhere", *page), "does not know")
    fails(run("explain", "{} lives in " + "in " * 40, "--subject", "Zarn", "--target", "Aldor", *page), "at most 32")
    fails(run("explain", "--fact", "capital/japn", *page), "did you mean", "capital/japan")
    fails(run(*ASK, "--layers", "1-9", *page), "layer 3", "0 to 2")
    fails(run(*ASK, "--draws", "0", *page), "draws")
    fails(run(*ASK, "-o", str(tmp_path / "page.txt")), ".html")
    fails(run(*ASK, "-o", str(tmp_path / "no" / "page.html")), "make it first")
    fails(run(*ASK, "-o", str(tmp_path)), "ends in")
    fails(run(*ASK, "--edit", str(tmp_path / "none"), *page), "no folder")
    fails(run("explain", "--edit", saved, "--paraphrase", "{} is in", *page), "own fact")
    assert list(tmp_path.iterdir()) == []


def test_an_edit_of_another_model_is_refused(run, saved, tmp_path):
    model = tiny("llama", hidden_size=32, intermediate_size=24)
    model.hf.save_pretrained(tmp_path / "other")
    model.tokenizer.save_pretrained(tmp_path / "other")
    page = tmp_path / "page.html"
    ask = ("explain", "The {} is in", "--subject", "Tower", "--target", "P", "--edit", saved, "-o", str(page))
    fails(run(*ask, model=str(tmp_path / "other")), "another model")
    assert not page.exists()
