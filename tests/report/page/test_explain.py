"""The record of one fact: every chapter says what its analysis says, for every family, and nothing stays changed."""

import json
from dataclasses import replace

import pytest
import torch
from jinja2 import ChoiceLoader, FileSystemLoader, PackageLoader
from support.edits import random_edit, strong, weights
from support.tiny import DECODERS, FAMILIES, PROMPT, SUBJECT, TARGET, tiny
from support.trained import facts, trained

from knowedit.answers import ask
from knowedit.display.result import plain
from knowedit.errors import InputError, ModelError
from knowedit.facts import Fact, Neighbour, templated
from knowedit.hooks import hooked, on_output
from knowedit.report.page.explain import edited_fact, explain
from knowedit.report.page.html import page, templates
from knowedit.report.page.story import CHAPTERS, Chapter, ExplainConfig

QUICK = ExplainConfig(quick=True, draws=5)
FACT = facts()[0]
EDITED = ("gpt2", "gemma2", "mpt", "bert")
NAMES = [chapter.name for chapter in CHAPTERS]
NEVER_REFUSED = {"prediction", "edit", "lens", "trace", "neurons"}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """An own cache, in which no chapter is yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KNOWEDIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def edit():
    torch.manual_seed(0)
    others = tuple(Neighbour(f.prompt, f.target, f.subject) for f in facts()[2:6:2])
    return strong("Zarn", "Bexum", neighbours=others)


@pytest.fixture(scope="module")
def told(edit):
    torch.manual_seed(0)
    return explain(trained(), None, edit, ExplainConfig(draws=20))


def test_the_record_is_plain_json_with_every_chapter(told):
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["notes"] == {} and all(told[name] is not None for name in NAMES)
    assert told["seconds"]["all"] == pytest.approx(sum(told["seconds"][name] for name in NAMES))


def test_chapters_agree_with_each_other_and_with_the_model(told):
    model = trained()
    (answer,) = ask(model, [model.query(FACT.prompt, FACT.target, FACT.subject)])
    said = told["prediction"]
    assert said["probability"] == pytest.approx(answer.probability) and said["rank"] == answer.rank == 1
    assert [p["role"] for p in said["prompts"]] == ["prompt", *["paraphrase"] * 2, *["held out"] * 2]
    last = told["lens"]["positions"][0]["layers"][-1]
    assert (last["probability"], last["rank"]) == (pytest.approx(answer.probability, abs=1e-5), 1)
    assert told["trace"]["high"] == pytest.approx(answer.probability, abs=1e-5)
    assert told["parts"]["gap"] < 1e-4
    assert told["proof"]["neurons"] == len(told["neurons"]["neurons"]) > 0
    assert told["proof"]["heldout"] and told["proof"]["suppress"]["n"] == len(FACT.heldout)
    curve = told["faithfulness"]
    assert curve["sizes"][0] == 0 and curve["sizes"][-1] == curve["neurons"]
    for everything in (curve["kept"][-1], curve["removed"][0]):
        assert everything == pytest.approx(told["proof"]["probability"], rel=1e-5)
    assert [t["text"] for t in told["tokens"] if t["subject"]] == [FACT.subject]
    assert [t["read"] for t in told["tokens"]] == [False] * (len(told["tokens"]) - 1) + [True]


def test_the_edit_is_told_before_and_after(told, edit):
    found = told["edit"]
    assert found["before"]["prompt"]["p_true"] == pytest.approx(told["prediction"]["per_token"], rel=1e-5)
    assert found["after"]["prompt"]["says_new"] and found["own_prompt"] == FACT.prompt
    assert found["lens"][-1]["after_new"] == pytest.approx(found["after"]["prompt"]["p_new"], rel=1e-4)
    asked = [found["after"]["prompt"], *found["after"]["paraphrases"]]
    survives = found["survives"]
    assert survives["prompts"] == len(asked) == 5
    assert survives["prompts_old_before"] == 5
    assert survives["prompts_old"] == sum(a["p_true"] > a["p_new"] for a in asked)
    ahead = [row for row in found["lens"] if row["after_true"] > row["after_new"] and row["after_true"] > 0.01]
    assert survives["layers_old"] == [row["layer"] for row in ahead]
    assert 0 <= survives["neurons_left"] < 1
    assert found["layers"] == [0] and found["content_hash"] == edit.content_hash


def test_the_model_is_as_it_was(edit):
    model = trained()
    before = weights(model)
    explain(model, None, edit, QUICK)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_an_edit_lends_its_prompts_only_to_the_same_fact(edit):
    bare = Fact(template=FACT.template, subject=FACT.subject, target=FACT.target)
    assert edited_fact(bare, edit) == replace(edit.facts[0], relation=None, id=None)
    own = replace(bare, heldout=("The town of {} is",))
    assert edited_fact(own, edit).heldout == own.heldout
    other = replace(facts()[2], paraphrases=())
    assert edited_fact(other, edit) == replace(other, target_new="Bexum")
    assert explain(trained(), other, edit, QUICK)["edit"]["own_prompt"] == FACT.prompt


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_told_or_says_why_not(family):
    model = tiny(family)
    fact = Fact(template=templated(PROMPT, SUBJECT), subject=SUBJECT, target=TARGET, target_new="R")
    edit = random_edit(model, 1, facts=(fact,)) if family in EDITED else None
    found = explain(model, fact, edit, QUICK)
    assert {name for name in NAMES if found[name] is None} - set(found["notes"]) <= {"proof", "cards", "edit"}
    assert (found["edit"] is None) == (edit is None)
    refused = set(found["notes"])
    assert not refused & NEVER_REFUSED
    assert family not in DECODERS or not refused
    assert all(reason and "\n" not in reason for reason in found["notes"].values())
    assert json.dumps(found, allow_nan=False)


def test_a_model_of_one_layer_is_told():
    model = tiny("llama", num_hidden_layers=1)
    fact = Fact(template=templated(PROMPT, SUBJECT), subject=SUBJECT, target=TARGET)
    found = explain(model, fact, config=QUICK)
    assert found["edit"] is None and found["lens"]["positions"][0]["layers"][-1]["layer"] == 0


def test_kinds_that_could_not_be_tried_are_not_told(told):
    """The small model knows no built-in fact: nothing says that a neuron is, or is not, this fact's own."""
    neurons = told["neurons"]
    assert set(neurons["tests"]["controls"].values()) == {0}
    untold = [neuron for neuron in neurons["neurons"] if neuron["kind"] is None]
    text = page(told)
    assert untold and f"What else {len(untold)} of them answer" in text
    assert "There is no known fact of other relations or of the same relation or with the same answer" in text
    assert "private to this fact:" not in text


def test_what_cannot_be_told_is_said(edit):
    model = trained()
    with pytest.raises(InputError, match="no fact"):
        explain(model, None)
    with pytest.raises(InputError, match="2 facts"):
        explain(model, None, replace(edit, facts=(FACT, FACT)))
    with pytest.raises(InputError, match="no new answer"):
        explain(model, FACT, replace(edit, facts=(FACT,)))
    with pytest.raises(InputError, match="target"):
        explain(model, replace(FACT, target="nowhere"))
    with pytest.raises(InputError, match="at most 32"):
        explain(model, replace(FACT, template="Zarn " * 40 + "{} lives in"))
    with pytest.raises(InputError, match="draws"):
        ExplainConfig(draws=0)
    with pytest.raises(ModelError, match="other weights|not the weight"):
        explain(tiny("llama", hidden_size=32, intermediate_size=24), None, edit, QUICK)


def test_what_was_told_of_a_fact_is_not_asked_again(edit, monkeypatch):
    """Neither with another edit nor by a new process: only what the edit does is asked anew."""
    kept = [chapter.name for chapter in CHAPTERS if chapter.kept]
    first = explain(trained(), FACT, config=QUICK)
    told = []
    tell = {chapter: chapter.tell for chapter in CHAPTERS}
    watched = [
        replace(chapter, tell=lambda story, chapter=chapter: told.append(chapter.name) or tell[chapter](story))
        for chapter in CHAPTERS
    ]
    monkeypatch.setattr("knowedit.report.page.explain.CHAPTERS", watched)
    again, with_edit = explain(trained(), FACT, config=QUICK), explain(trained(), FACT, edit, QUICK)
    assert kept and not set(told) & set(kept) and with_edit["edit"] is not None
    for record in (again, with_edit):
        assert all(record[name] == first[name] for name in kept)
    explain(trained(), replace(FACT, heldout=()), config=QUICK)
    assert told.count("trace") == 1
    explain(trained(), FACT, config=replace(QUICK, seed=1))
    assert told.count("trace") == 2


def test_a_model_that_bears_hooks_is_asked_again():
    model = trained()
    first = explain(model, FACT, config=QUICK)
    halved = on_output(model.down(1), lambda x: x / 2)
    with hooked(halved, every_thread=True):
        other = explain(model, FACT, config=QUICK)
    assert other["trace"] != first["trace"] and other["neurons"] != first["neurons"]
    assert explain(model, FACT, config=QUICK)["trace"] == first["trace"]


def test_plain_values_hold_no_number_that_is_none():
    assert plain({"a": (1, float("nan")), 2: [float("inf"), "x", None, True]}) == {
        "a": [1, None],
        "2": [None, "x", None, True],
    }


def test_a_new_chapter_is_a_row_and_a_template(tmp_path, monkeypatch):
    def tell(story):
        return {"letters": len(story.fact.subject)}

    row = Chapter("letters", tell, "How long its name is")
    monkeypatch.setattr("knowedit.report.page.explain.CHAPTERS", (*CHAPTERS, row))
    monkeypatch.setattr("knowedit.report.page.html.CHAPTERS", (*CHAPTERS, row))
    (tmp_path / "letters.html.j2").write_text('{{ heading("letters") }}<p>{{ num("letters.letters", "integer") }}</p>')
    loaders = [PackageLoader("knowedit", "report/page/templates"), FileSystemLoader(tmp_path)]
    monkeypatch.setattr("knowedit.report.page.html.PackageLoader", lambda *_: ChoiceLoader(loaders))
    monkeypatch.setattr("knowedit.report.page.html.templates", templates.__wrapped__)  # none that are kept
    record = explain(trained(), FACT, config=QUICK)
    text = page(record)
    assert record["letters"] == {"letters": len(FACT.subject)}
    assert '<li><a href="#letters">How long its name is</a></li>' in text
    assert f'<p><data value="{len(FACT.subject)}" data-path="letters.letters">{len(FACT.subject)}</data></p>' in text
