"""The stages of the dashboard without a browser: what each of them does with a tab, and that text stays text."""

import json
import re
from contextlib import ExitStack
from threading import Event

import pytest
import torch
from support.edits import same, strong, weights
from support.fact_sets import fact_set, requests
from support.rounding import near_probability
from support.trained import facts, trained

from knowedit import InputError, amplify, applied, ask, builtin_facts, find_fact, load_edit, preflight
from knowedit.edit.preflight import outcome
from knowedit.errors import ModelError
from knowedit.locate.locate import score_prompts
from knowedit.mlp import anatomy, relation_probe
from knowedit.models.passes.replay import record
from knowedit.recall.lens import logit_lens
from knowedit.report.page import story
from knowedit.selection import per_relation
from knowedit.serving.formats import FORMATS
from knowedit.ui import asking, comparing, editing, inside, locating, stacking
from knowedit.ui.jobs import Doing, Report
from knowedit.ui.render import doing, problem
from knowedit.ui.tab import Entry, Tab, Told
from knowedit.ui.toolkit import Factor

HOSTILE = "<script>window.ran=1</script><img src=x onerror='window.ran=2'>\x1b[31m\u202e"
REPORT = Report(lambda doing: None, Event())


def data(html):
    """The exact numbers of a piece of HTML, by their place in the record."""
    return {path: float(value) for value, path in re.findall(r'<data value="([^"]*)" data-path="([^"]*)"', html)}


@pytest.fixture
def asked():
    """A tab that has asked where Zarn lives."""
    tab = Tab()
    fact = facts()[0]
    html, builtin = asking.ask(trained(), tab, REPORT, fact.prompt, fact.subject, "")
    assert builtin is None
    return tab, html


def test_a_fact_is_asked_as_the_library_asks_it(asked):
    tab, html = asked
    fact = facts()[0]
    assert tab.told.story.fact.target == fact.target  # which is the model's own first choice
    (answer,) = ask(trained(), [trained().query_of(fact)])
    assert data(html)["prediction.top.0.1"] == answer.top[0][1]
    assert html.count("part of the subject") == 1 and html.count("where the answer is read</span>") == 2


def test_what_is_too_long_for_the_model_is_not_asked():
    with pytest.raises(InputError, match="at most 32"):
        asking.ask(trained(), Tab(), REPORT, "Zarn " * 40 + "lives in", "Zarn", "")


def test_what_was_asked_before_is_forgotten_when_a_question_fails(asked):
    tab, _ = asked
    with pytest.raises(InputError, match="there is no prompt; write"):
        asking.ask(trained(), tab, REPORT, " ", "Zarn", "")
    with pytest.raises(InputError, match="no fact was asked yet"):
        inside.look(trained(), tab, REPORT, 1, None)


def test_the_words_of_a_built_in_fact_are_that_fact_with_all_its_ways_to_ask():
    fact = find_fact(asking.START)
    assert asking.fact_in(trained(), *asking.words(asking.START)) == fact
    assert (f"{fact.prompt} {fact.target}", fact.id) in asking.choices()


def test_a_layer_is_shown_as_the_library_measures_it(asked):
    tab, _ = asked
    model, prompt = trained(), trained().query_of(facts()[0]).prompt
    html = inside.look(model, tab, REPORT, 1, None)
    numbers = data(html)
    seen = anatomy(model, [prompt], [1])
    assert numbers["anatomy.active"] == 1 - seen.layer(1).below_zero.value
    assert "input 32, gate 24, up 24, neurons 24, output 32" in html
    strong = inside.strongest(model, prompt, 1, prompt.read)
    recorded = record(model, prompt.ids).neurons[1][prompt.read]
    assert strong[0].activation == pytest.approx(recorded[strong[0].index].item(), rel=1e-5)
    assert numbers["neurons_at.0.writes"] == strong[0].writes == max(n.writes for n in strong)
    shares = [value for path, value in numbers.items() if path.startswith("heads_at.heads.0.looks")]
    assert len(shares) == prompt.read + 1 and sum(shares) == pytest.approx(1, abs=1e-5)
    assert [place for _, place in inside.tokens(tab, model)] == list(range(1, len(prompt.ids)))
    assert inside.read_position(tab, model) == prompt.read


def test_the_answer_forms_and_expansion_is_measured_or_said_not_to_be(asked):
    tab, _ = asked
    html = inside.output(tab, REPORT)
    settled = logit_lens(trained(), "Zarn lives in", "Aldor").settled()
    assert data(html)["lens.positions.0.settled"] == settled
    found = relation_probe(trained(), per_relation(builtin_facts(), inside.PROBED), layers=[1])
    assert data(inside.expand(trained(), REPORT, 1))["accuracy.neurons.value"] == found.accuracy[1]["neurons"].value


def test_scaled_neurons_give_what_the_model_gives_with_them_scaled(asked):
    tab, _ = asked
    html, names = locating.locate(tab, REPORT)
    assert names and all(f">{name}</th>" in html for name in names)
    sites = list(tab.told.story.neurons)
    factors = [(0.0, 3.0, 0.5, 1.0)[i % 4] for i in range(locating.SLIDERS)]
    before, after = locating.scaled(tab, factors)
    query = trained().query_of(tab.told.story.fact)
    with ExitStack() as on, torch.no_grad():
        for site, factor in zip(sites, factors, strict=False):
            on.enter_context(amplify(trained(), [site], factor))
        logits = trained().hf(torch.tensor([query.prompt.ids])).logits[0, -1]
    assert after == near_probability(logits.softmax(-1)[query.target_ids[0]].item())
    assert before == near_probability(ask(trained(), [query])[0].probability)
    assert f"<strong>{after * 100:.1f}" in locating.gauge(tab, factors)


def test_nothing_is_scaled_or_edited_before_there_is_something_to_do_it_to(asked):
    tab, _ = asked
    for act, what in (
        (lambda: locating.scaled(tab, [1.0]), "locate them first"),
        (lambda: locating.card(trained(), tab, REPORT, "0/1"), "locate them again"),
        (lambda: editing.put_on(trained(), tab, REPORT), "make one first"),
        (lambda: locating.locate(Tab(), REPORT), "no fact was asked"),
        (lambda: editing.propose(trained(), tab, REPORT, " ", "rome", editing.OWN_LAYER), "there is no new answer"),
        (
            lambda: editing.propose(trained(), tab, REPORT, "Aldor ", "rome", editing.OWN_LAYER),
            "is the fact's own target",
        ),
        (lambda: stacking.take_off(tab, 0), "choose one"),
        (lambda: stacking.save(trained(), tab, None, "x"), "choose one"),
        (lambda: stacking.load(trained(), tab, REPORT, " "), "Name a folder"),
        (lambda: stacking.load(trained(), tab, REPORT, "/nowhere/at/all"), "is no folder"),
    ):
        with pytest.raises(InputError, match=what):
            act()


def test_an_edit_is_looked_at_before_it_is_made_and_asked_about_after(asked):
    tab, _ = asked
    model, base = trained(), weights(trained())
    shown = editing.propose(model, tab, REPORT, "Bexum", "fine_tune", "1")
    assert "Nothing is changed yet" in shown and not tab.stack and same(weights(model), base)
    edit, before, _ = tab.proposal
    found = preflight(model, edit)
    assert before.as_dict() == found.as_dict()
    assert data(shown)["preflight.relative_norm"] == found.relative_norm
    assert all(near.subject in shown for near in found.facts[0].nearest)
    for other in (("Cirra", "fine_tune", "1"), ("Bexum", "rome", "1"), ("Bexum", "fine_tune", "0")):
        with pytest.raises(InputError, match="another one than the pre-flight looked at"):
            editing.put_on(model, tab, REPORT, *other)
    done = editing.put_on(model, tab, REPORT, "Bexum", "fine_tune", "1")
    assert same(weights(model), base) and tab.proposal is None
    (kept,) = tab.edits
    assert kept.content_hash == edit.content_hash and kept.made["command"] == "knowedit ui"
    assert kept.measured["preflight"]["relative_norm"] == found.relative_norm
    sides = kept.measured["facts"][0]
    assert sides["after"]["prompt"]["p_new"] > sides["before"]["prompt"]["p_new"]
    assert set(kept.measured["guard"]) == {"bounds", "refused"}
    after = outcome(model, edit).facts[0].after.prompt
    assert data(done)["edit.after.prompt.p_new"] == near_probability(after.p_new)
    assert data(done)["drift"] >= 0 and "Written freely" in done


def test_what_is_shared_of_an_edit_is_of_the_one_that_was_put_on(asked, tmp_path):
    tab, _ = asked
    editing.propose(trained(), tab, REPORT, "Bexum", "fine_tune", "1")
    editing.put_on(trained(), tab, REPORT, "Bexum", "fine_tune", "1")
    tab.stack.clear()
    editing.propose(trained(), tab, REPORT, "Cirra", "fine_tune", "1")
    text = comparing.share(tab, tmp_path).read_text()
    assert '<span class="answer new">Bexum</span>' in text and '<span class="answer new">Cirra' not in text


def test_before_is_asked_with_the_edits_that_are_on(asked):
    tab, _ = asked
    tab.stack.append(Entry(strong("Zarn", "Bexum"), "Zarn"))
    with pytest.raises(InputError, match="ask it again"):
        editing.propose(trained(), tab, REPORT, "Cirra", "fine_tune", "1")


@pytest.fixture
def stacked(asked):
    """Three edits on the stack, of which the middle one is set aside."""
    tab, _ = asked
    tab.stack += [Entry(strong(name, city), name) for name, city in (("Zarn", "Bexum"), ("Quill", "Cirra"))]
    tab.stack.insert(1, Entry(strong("Tavo", "Aldor"), "Tavo", on=False))
    return tab


def test_any_edit_comes_off_or_is_set_aside(stacked):
    first, second, third = (entry.edit for entry in stacked.stack)
    assert stacked.edits == (first, third)
    stacking.set_aside(stacked, [1, 2])
    assert stacked.edits == (second, third)
    stacking.take_off(stacked, 1)
    assert stacked.edits == (third,)
    assert [place for _, place in stacking.entries(stacked)] == [0, 1]


def test_the_stack_says_whether_the_bits_are_those_that_were_loaded(asked):
    tab, _ = asked
    model, edit = trained(), strong("Zarn", "Bexum")
    unedited = model.weights_hash()
    assert "bit for bit" in stacking.stack(model, tab, unedited)
    tab.stack.append(Entry(edit, "Zarn"))
    with applied(model, edit):
        html = stacking.stack(model, tab, unedited)
        assert "are edited" in html and model.weights_hash()[:16] in html
        (answer,) = ask(model, [model.query_of(tab.told.story.fact)])
    assert f"{100 * answer.probability:.1f}" in html
    assert "bit for bit" in stacking.stack(model, tab, unedited)


def test_edits_are_saved_loaded_and_exported(stacked, tmp_path):
    model = trained()
    assert "another edit" not in stacking.save(model, stacked, 1, str(tmp_path / "saved"))
    assert load_edit(tmp_path / "saved").content_hash == stacked.stack[1].edit.content_hash
    tab = Tab()
    stacking.load(model, tab, REPORT, str(tmp_path / "saved"))
    assert [entry.name for entry in tab.stack] == ["Tavo lives in Aldor"]
    with pytest.raises(InputError, match="on the stack already: Tavo lives in Aldor"):
        stacking.load(model, tab, REPORT, str(tmp_path / "saved"))
    said = stacking.export(model, stacked, REPORT, str(tmp_path / "lora"), "peft")
    assert json.loads((tmp_path / "lora/adapter_config.json").read_text())["r"] == 2  # of the two that are on
    assert "Loaded again by PEFT" in said
    with pytest.raises(InputError, match="exists"):
        stacking.export(model, stacked, REPORT, str(tmp_path / "lora"), "checkpoint")
    assert {name for _, name in stacking.kinds()} == set(FORMATS)
    with pytest.raises(InputError, match="no edit is on"):
        stacking.export(model, Tab(), REPORT, str(tmp_path / "other"), "peft")


def test_an_edit_that_was_made_above_another_says_so_when_it_is_saved_and_loaded(asked, tmp_path):
    tab, _ = asked
    model, below = trained(), strong("Zarn", "Bexum")
    with applied(model, below):
        above = strong("Quill", "Cirra")
    tab.stack += [Entry(below, "Zarn"), Entry(above, "Quill")]
    assert "made while another edit was on" in stacking.save(model, tab, 1, str(tmp_path / "above"))
    with pytest.raises(ModelError, match="had another edit on it.*put the other edit on first"):
        stacking.load(model, Tab(), REPORT, str(tmp_path / "above"))


def test_a_slider_takes_whatever_is_typed_into_its_box():
    """Nothing is where it began, and what is beyond an end is that end: no error stands over the answer."""
    slider = Factor(0, 3, 1, step=0.1)
    typed = {None: 1, -5: 0, 99: 3, 2.5: 2.5, 0: 0}
    assert {value: slider.preprocess(value) for value in typed} == typed
    assert slider.get_block_name() == "slider"


def test_a_set_of_facts_is_one_entry(tmp_path):
    model = trained()
    held = fact_set()
    held.add(requests()[:3])
    held.save(tmp_path / "set")
    tab = Tab()
    stacking.load(model, tab, REPORT, str(tmp_path / "set"))
    assert [entry.name for entry in tab.stack] == ["3 facts of set"] and len(tab.edits[0].facts) == 3


def test_text_from_outside_is_text(asked):
    tab, _ = asked
    tab.stack.append(Entry(strong("Zarn", "Bexum"), HOSTILE))
    pieces = [
        doing(Doing(HOSTILE)),
        problem(HOSTILE),
        stacking.stack(trained(), tab, ""),
        asking.ask(trained(), tab, REPORT, f"{HOSTILE} Zarn lives in", "Zarn", "")[0],
    ]
    for html in pieces:
        assert "<script" not in html and "<img" not in html and "\x1b" not in html and "\u202e" not in html


def test_two_prompts_and_without_and_with_are_side_by_side(asked):
    tab, _ = asked
    model, other = trained(), facts()[2]
    html = comparing.prompts(model, tab, REPORT, other.prompt, other.subject, "")
    assert html.count("Which neurons say it</h2>") == 2 and other.prompt in html
    with pytest.raises(InputError, match="no edit is on"):
        comparing.edits(model, tab, REPORT)
    tab.stack.append(Entry(strong("Zarn", "Bexum"), "Zarn"))
    base = weights(model)
    html = comparing.edits(model, tab, REPORT)
    assert "The answer is the model" in html and "does not say" in html and same(weights(model), base)
    assert (
        "does not give &#39;Aldor&#39; with the edits, so no neurons are claimed" in html and "were located" not in html
    )


def test_what_is_compared_with_an_edit_is_known_by_the_weights_that_it_has(asked, monkeypatch):
    tab, _ = asked
    model, edit = trained(), strong("Zarn", "Bexum")
    tab.stack.append(Entry(edit, "Zarn"))
    hashes = []
    told = Told.__init__

    def noted(self, *arguments):
        told(self, *arguments)
        hashes.append(self.story.weights_hash)

    monkeypatch.setattr(Told, "__init__", noted)
    comparing.edits(model, tab, REPORT)
    with applied(model, edit):
        assert hashes == [model.weights_hash()]  # without it the fact was asked before


def test_neurons_that_were_located_are_not_located_again(asked, monkeypatch):
    tab, _ = asked
    located = []
    monkeypatch.setattr(story, "score_prompts", lambda *a, **more: located.append(1) or score_prompts(*a, **more))
    locating.locate(tab, REPORT)
    locating.locate(tab, REPORT)
    tab.stack.append(Entry(strong("Zarn", "Bexum"), "Zarn"))
    comparing.edits(trained(), tab, REPORT)
    assert len(located) == 2  # as it was asked, and with the edit


def test_what_is_shared_is_the_page_of_what_was_looked_at(asked, tmp_path):
    tab, _ = asked
    inside.output(tab, REPORT)
    text = comparing.share(tab, tmp_path).read_text()
    assert text.startswith("<!doctype html>") and "How the answer forms" in text
    assert "Which neurons say it" not in text  # they were not located
    locating.locate(tab, REPORT)
    assert "Which neurons say it" in comparing.share(tab, tmp_path).read_text()
