"""Pre-flight, outcome and guard on the trained model, where right and wrong are known."""

from dataclasses import replace

import pytest
import torch
from support.rounding import near, near_probability
from support.tiny import tiny
from support.trained import facts, trained

from knowedit.edit.covariance import Covariance
from knowedit.edit.delta import LowRank
from knowedit.edit.edit import make_edit
from knowedit.edit.guard import Guard, GuardError, check, did_not_take
from knowedit.edit.methods.rome import RomeConfig, rome
from knowedit.edit.methods.v_star import VStarSearch
from knowedit.edit.preflight import outcome, perplexity, preflight
from knowedit.errors import InputError
from knowedit.facts import Neighbour
from knowedit.models.passes.replay import record

HOMES = [f for f in facts() if f.relation == "home"]
CONFIG = RomeConfig(layer=0, contexts=(), search=VStarSearch(steps=40, lr=0.2, clamp=80.0, decay=0.0), preserve=0.0)
TEXT = "Zarn lives in Aldor Quill lives in Bexum"


@pytest.fixture(scope="module")
def edited():
    torch.manual_seed(0)
    model = trained()
    others = tuple(Neighbour(f.prompt, f.target, f.subject) for f in HOMES[1:4])
    fact = replace(HOMES[0], target_new="Bexum", neighbours=others)
    keys = torch.cat([record(model, model.encode(f.prompt).ids).neurons[0] for f in facts()])
    return model, rome(model, fact, CONFIG, covariance=Covariance(0, keys.T @ keys / len(keys), len(keys), {}))


def test_preflight_tells_norm_and_nearest(edited):
    model, edit = edited
    before = preflight(model, edit, facts=HOMES)
    ((_, delta),) = edit.deltas.items()
    assert before.relative_norm == near((delta.matrix().norm() / model.down_weight(0).norm()).item())
    (key,) = before.facts
    assert key.k_C_inv_k == edit.notes["k_C_inv_k"]
    assert edit.facts[0].subject not in {other.subject for other in key.nearest}
    leaks = [other.leak for other in key.nearest]
    assert leaks == sorted(leaks, reverse=True) and all(-1.001 <= other.cosine <= 1.001 for other in key.nearest)
    assert before.worst == key.nearest[0]
    assert before.fact_dict()["nearest"][0]["leak"] == leaks[0]


def test_the_first_token_is_warned_of(edited):
    model, edit = edited
    before = preflight(model, edit, facts=HOMES)
    assert before.facts[0].first and "first token" in before.warnings[0]
    assert before.warnings[0].endswith("words before it"), "it is in layer 0 already"
    later = replace(edit, facts=(replace(edit.facts[0], template="The home of {} is"),))
    before = preflight(model, later, facts=HOMES)
    assert not before.facts[0].first and not any("first token" in warning for warning in before.warnings)


def test_outcome_is_of_the_edit_and_leaves_the_model_alone(edited):
    model, edit = edited
    weights = {name: p.clone() for name, p in model.hf.named_parameters()}
    result = outcome(model, edit, lens=True, text=TEXT)
    assert all(torch.equal(p, weights[name]) for name, p in model.hf.named_parameters())
    (fact,) = result.facts
    assert fact.before.prompt.says_true and fact.after.prompt.says_new
    assert len(fact.lens) == model.n_layers
    last = fact.lens[-1]
    assert last.after_new == near_probability(fact.after.prompt.p_new)
    assert last.before_true == near_probability(fact.before.prompt.p_true)
    assert result.perplexity_after != result.perplexity_before
    befores = [neuron.before for neuron in fact.neurons]
    assert befores == sorted(befores, reverse=True) and befores[0] > 0
    assert sum(n.after for n in fact.neurons) < sum(befores), "the old answer rests on them no more"


@pytest.fixture(scope="module")
def together(edited):
    """One edit of three facts: the sum of their edits by ROME."""
    model, first = edited
    C = Covariance(0, torch.eye(model.n_neurons), 100, {})
    others = [rome(model, replace(f, target_new="Cirra", neighbours=()), CONFIG, covariance=C) for f in HOMES[4:6]]
    edits = [first, *others]
    deltas = [delta for edit in edits for delta in edit.deltas.values()]
    change = LowRank(torch.cat([delta.u for delta in deltas], 1), torch.cat([delta.v for delta in deltas], 1))
    facts = [edit.facts[0] for edit in edits]
    notes = {"k_C_inv_k": [edit.notes["k_C_inv_k"] for edit in edits]}
    return model, make_edit(model, {0: change}, method="sum", config={}, facts=facts, notes=notes)


def test_an_edit_of_several_facts_is_looked_at_fact_by_fact(together):
    model, edit = together
    before = preflight(model, edit, facts=HOMES)
    assert [key.k_C_inv_k for key in before.facts] == edit.notes["k_C_inv_k"]
    edited = {fact.subject for fact in edit.facts}
    assert not edited & {other.subject for key in before.facts for other in key.nearest}, "they are meant to change"
    for fact, key in zip(edit.facts, before.facts, strict=True):
        alone = replace(edit, facts=(fact,), notes={})
        (same,) = preflight(model, alone, facts=[f for f in HOMES if f.subject not in edited]).facts
        kept = [other for other in same.nearest if other.subject not in edited]
        assert [other.subject for other in key.nearest] == [other.subject for other in kept]
        assert [other.leak for other in key.nearest] == near([other.leak for other in kept])
    assert before.worst.leak == max(other.leak for key in before.facts for other in key.nearest)
    assert sum("'s first token" in warning for warning in before.warnings) == 3
    assert all(any(warning.startswith(repr(s)) for warning in before.warnings) for s in edited)


def test_the_outcome_of_several_facts_is_that_of_each(together):
    model, edit = together
    result = outcome(model, edit, text=TEXT)
    for fact, each in zip(edit.facts, result.facts, strict=True):
        (alone,) = outcome(model, replace(edit, facts=(fact,)), text=TEXT).facts
        assert each.after.prompt.p_new == near_probability(alone.after.prompt.p_new)
        assert each.before.prompt.p_true == near_probability(alone.before.prompt.p_true)
        assert len(each.after.neighbours) == len(fact.neighbours)
    lost = [b.prefers_true and a.prefers_new for f in result.facts
            for b, a in zip(f.before.neighbours, f.after.neighbours, strict=True)]  # fmt: skip
    assert len(lost) == 3 and result.neighbours_lost == sum(lost) / 3


def test_an_edit_without_facts_cannot_be_asked(edited):
    model, edit = edited
    for look in (preflight, outcome):
        with pytest.raises(InputError, match="no fact"):
            look(model, replace(edit, facts=()))


def test_the_guard_stops_what_is_past_it(edited):
    model, edit = edited
    before, after = preflight(model, edit, facts=HOMES), outcome(model, edit, text=TEXT)
    loose = Guard(relative_norm=1e6, leak=1e6, perplexity=1e6, neighbours=2.0, efficacy=0, paraphrases=0)
    check(before, after, loose)
    with pytest.raises(GuardError, match="of its norm"):
        check(before, after, replace(loose, relative_norm=before.relative_norm / 2))
    with pytest.raises(GuardError, match=f"move {before.worst.subject!r} .* as much as its own subject"):
        check(before, after, replace(loose, leak=before.worst.leak / 2))
    worse = replace(after, perplexity_after=after.perplexity_before * 1.5)
    with pytest.raises(GuardError, match="50.0%"):
        check(before, worse, replace(loose, perplexity=0.1))
    with pytest.raises(InputError, match="above 0"):
        Guard(leak=0)
    with pytest.raises(InputError, match="the guard's efficacy is 2, expected a share from 0 to 1"):
        Guard(efficacy=2)


def changed(result, where, **values):
    """An outcome with the state after of its first fact's prompt or paraphrases changed."""
    first = result.facts[0]
    pairs = getattr(first.after, where)
    new = tuple(replace(p, **values) for p in pairs) if isinstance(pairs, tuple) else replace(pairs, **values)
    return replace(result, facts=(replace(first, after=replace(first.after, **{where: new})), *result.facts[1:]))


def test_an_edit_that_did_not_take_is_not_let_through(edited):
    model, edit = edited
    before, after = preflight(model, edit, facts=HOMES), outcome(model, edit, text=TEXT)
    loose = Guard(relative_norm=1e6, leak=1e6, perplexity=1e6, neighbours=2.0)
    took = changed(changed(after, "prompt", says_new=True), "paraphrases", p_true=0.0, p_new=1.0)
    assert took.efficacy == took.paraphrases_won == 1 and did_not_take(took) is None
    check(before, took, loose)
    missed = changed(took, "prompt", says_new=False, p_new=0.01, top=(("Aldor", 0.9),))
    assert missed.efficacy == 0
    words = r"did not take: after .* says 'Aldor' \(p of its first token = 0.900\); a token of the new answer has 0.010"
    with pytest.raises(GuardError, match=words):
        check(before, missed, loose)
    check(before, missed, replace(loose, efficacy=0))


def test_paraphrases_that_preferred_the_new_answer_before_and_gain_nothing_are_not_won(edited):
    model, edit = edited
    result = outcome(model, edit, text=TEXT)
    assert result.facts[0].after.paraphrases
    unmoved = changed(changed(result, "prompt", says_new=True), "paraphrases", p_true=0.0, p_new=0.0)
    assert unmoved.paraphrases_won == 0
    before = preflight(model, edit, facts=HOMES)
    loose = Guard(relative_norm=1e6, leak=1e6, perplexity=1e6, neighbours=2.0)
    with pytest.raises(GuardError, match="wins 0% of the paraphrases, the guard asks for 50%"):
        check(before, unmoved, loose)
    check(before, unmoved, replace(loose, paraphrases=0))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_every_row_of_a_long_text_begins_with_the_special_token_that_texts_begin_with(family, monkeypatch):
    monkeypatch.setattr("knowedit.edit.preflight._ROW", 5)
    model = tiny(family)
    ids = model.encode(TEXT).ids
    begins = [ids[0]] if ids[0] in model.tokenizer.all_special_ids else []
    assert bool(begins) == (family != "gpt2")
    rows = [[*(begins or ids[start : start + 1]), *ids[start + 1 : start + 6]] for start in range(0, len(ids) - 1, 5)]
    with torch.no_grad():
        losses = [
            model.hf(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss * (len(row) - 1) for row in rows
        ]
    assert len(rows) > 1
    assert perplexity(model, TEXT) == near_probability((sum(losses) / (len(ids) - 1)).exp().item())


def test_perplexity_is_that_of_the_model_itself():
    model = tiny("llama")
    ids = torch.tensor([model.encode(TEXT).ids])
    with torch.no_grad():
        loss = model.hf(input_ids=ids, labels=ids).loss
    assert perplexity(model, TEXT) == near_probability(loss.exp().item())
    with pytest.raises(InputError, match="two tokens"):
        perplexity(tiny("gpt2"), "a")
    with pytest.raises(InputError, match="masked"):
        perplexity(tiny("bert"), TEXT)
