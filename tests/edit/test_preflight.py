"""Pre-flight, outcome and guard on the trained model, where right and wrong are known."""

from dataclasses import replace

import pytest
import torch
from support.tiny import tiny
from support.trained import facts, trained

from knowedit.edit.covariance import Covariance
from knowedit.edit.methods.rome import RomeConfig, rome
from knowedit.edit.methods.v_star import VStarSearch
from knowedit.edit.preflight import Guard, GuardError, check, outcome, perplexity, preflight
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
    found = preflight(model, edit, facts=HOMES)
    ((_, delta),) = edit.deltas.items()
    assert found.relative_norm == pytest.approx((delta.matrix().norm() / model.down_weight(0).norm()).item())
    assert found.k_C_inv_k == edit.notes["k_C_inv_k"]
    assert edit.facts[0].subject not in {near.subject for near in found.nearest}
    leaks = [near.leak for near in found.nearest]
    assert leaks == sorted(leaks, reverse=True) and all(-1.001 <= near.cosine <= 1.001 for near in found.nearest)


def test_the_first_token_is_warned_of(edited):
    model, edit = edited
    found = preflight(model, edit, facts=HOMES)
    assert found.first and "first token" in found.warnings[0]
    assert found.warnings[0].endswith("words before it"), "it is in layer 0 already"
    later = replace(edit, facts=(replace(edit.facts[0], template="The home of {} is"),))
    found = preflight(model, later, facts=HOMES)
    assert not found.first and not any("first token" in warning for warning in found.warnings)


def test_outcome_is_of_the_edit_and_leaves_the_model_alone(edited):
    model, edit = edited
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    found = outcome(model, edit, lens=True, text=TEXT)
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())
    assert found.before.prompt.says_true and found.after.prompt.says_new
    assert len(found.lens) == model.n_layers
    last = found.lens[-1]
    assert last.after_new == pytest.approx(found.after.prompt.p_new, rel=1e-4)
    assert last.before_true == pytest.approx(found.before.prompt.p_true, rel=1e-4)
    assert found.perplexity_after != found.perplexity_before
    befores = [neuron.before for neuron in found.neurons]
    assert befores == sorted(befores, reverse=True) and befores[0] > 0
    assert sum(n.after for n in found.neurons) < sum(befores), "the old answer rests on them no more"


def test_the_guard_stops_what_is_past_it(edited):
    model, edit = edited
    before, after = preflight(model, edit, facts=HOMES), outcome(model, edit, text=TEXT)
    loose = Guard(relative_norm=1e6, leak=1e6, perplexity=1e6, neighbours=2.0)
    check(before, after, loose)
    with pytest.raises(GuardError, match="of its norm"):
        check(before, after, replace(loose, relative_norm=before.relative_norm / 2))
    with pytest.raises(GuardError, match=before.nearest[0].subject):
        check(before, after, replace(loose, leak=before.nearest[0].leak / 2))
    worse = replace(after, perplexity_after=after.perplexity_before * 1.5)
    with pytest.raises(GuardError, match="50.0%"):
        check(before, worse, replace(loose, perplexity=0.1))
    with pytest.raises(InputError, match="above 0"):
        Guard(leak=0)


def test_perplexity_is_that_of_the_model_itself():
    model = tiny("llama")
    ids = torch.tensor([model.encode(TEXT).ids])
    with torch.no_grad():
        loss = model.hf(input_ids=ids, labels=ids).loss
    assert perplexity(model, TEXT) == pytest.approx(loss.exp().item(), rel=1e-4)
    with pytest.raises(InputError, match="two tokens"):
        perplexity(tiny("gpt2"), "a")
    with pytest.raises(InputError, match="masked"):
        perplexity(tiny("bert"), TEXT)
