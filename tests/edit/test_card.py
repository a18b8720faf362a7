"""A card says what the record says, to people and to the Hub, and nothing in it acts."""

import dataclasses
import re

import yaml
from support.commands import HOSTILE
from support.edits import random_edit, strong
from support.tiny import tiny
from support.trained import trained

from knowedit.edit.card import CARD, card
from knowedit.edit.export import to_checkpoint, to_peft
from knowedit.edit.guard import checked
from knowedit.edit.preflight import outcome, preflight
from knowedit.facts import Neighbour


def front(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_figures_verdict_hashes_and_the_warning_are_on_the_card():
    model, edit = trained(), strong("Zarn", "Bexum")
    (fact,) = edit.facts
    near = Neighbour("Quill lives in", "Bexum")  # its answer is the new one itself, so it stays
    edit = dataclasses.replace(edit, facts=(dataclasses.replace(fact, neighbours=(near,)),))
    edit = checked(edit, preflight(model, edit, facts=[]), outcome(model, edit), command="knowedit edit x")
    text = card([edit])
    after = edit.measured["facts"][0]["after"]["prompt"]["p_new"]
    for said in ("Zarn lives in", "Aldor", "Bexum", f"→ {after:.3f}", "knowedit edit x", edit.content_hash):
        assert said in text, said
    assert edit.factors_hash in text and "disclose" in text and "the guard" in text
    assert re.search(r"Zarn lives in \|.*→.*\| 1 of 1 \|\n", text)
    assert front(text)["tags"][-1] == "rome" and "base_model" not in front(text)


def test_figures_that_are_somebodys_own_are_no_verdict():
    edit = dataclasses.replace(random_edit(tiny("llama"), 1), measured={"accuracy": 0.9})
    assert "the guard" not in card([edit])


def test_the_hub_reads_the_base_where_it_is_an_id_and_paths_stay_here():
    edit = random_edit(tiny("llama"), 1)
    assert front(card([edit], "peft", "owner/model")) | {"tags": None} == {
        "library_name": "peft", "base_model": "owner/model", "base_model_relation": "adapter", "tags": None,
    }  # fmt: skip
    assert "/home/me" not in card([edit], "peft", "/home/me")
    known = dataclasses.replace(edit, made={"model_id": "owner/base", "revision": "abc", "threads": 1})
    assert front(card([known]))["base_model"] == "owner/base" and "owner/base, abc" in card([known])


def test_text_from_outside_is_inert():
    edit = random_edit(tiny("llama"), 1)
    (fact,) = edit.facts
    for hostile in (HOSTILE, "](javascript:x) <script>|", "---\n# a"):
        bad = dataclasses.replace(
            edit,
            facts=(dataclasses.replace(fact, target=hostile, target_new="b" + hostile),),
            model=hostile,
            method=hostile,
            made={"model_id": None, "command": hostile, "threads": 1},
        )
        text = card([bad])
        assert "\x1b" not in text and "<script>" not in text and "\n# a" not in text
        assert not re.search(r"(?<!\\)\]\(java", text)
        assert front(text)["tags"][-1] == "knowledge-editing"


def test_every_export_has_a_card(tmp_path):
    model = tiny("llama")
    edits = [random_edit(model, 1, seed=seed) for seed in (1, 2)]
    peft, whole = to_peft(edits, model, tmp_path / "a", base="owner/model"), to_checkpoint(edits, model, tmp_path / "b")
    assert "PeftModel" in (peft / CARD).read_text() and front((peft / CARD).read_text())["base_model"] == "owner/model"
    for edit in edits:
        assert edit.content_hash in (whole / CARD).read_text()
