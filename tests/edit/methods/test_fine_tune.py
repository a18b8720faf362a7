"""Fine-tuning of one projection: the same numbers as training a copy of the model, and nothing else touched."""

from copy import deepcopy
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from support.rounding import ADAM, LOGITS, PASS, assert_near, near
from support.tiny import SUBJECT, tiny
from support.trained import facts, trained
from support.training import Trained

from knowedit import Fact, InputError
from knowedit.edit.delta import Dense, weight_hash
from knowedit.edit.methods.fine_tune import PUBLISHED, FineTuneConfig, at_once, fine_tune, fine_tune_many
from knowedit.models.adapter import Model

LAYER = 1
FT = FineTuneConfig(layer=LAYER, steps=6, lr=5e-3)
FACT = Fact("The {} is located in the city of", SUBJECT, "P", target_new="Rome", id="eiffel")
SHORT = replace(FACT, target_new="R")  # one token in every vocabulary


def state(model: Model) -> dict:
    return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


def plain_loss(model: Model, hf: torch.nn.Module, fact: Fact) -> torch.Tensor:
    """Mean NLL of the new target's tokens by whole forward passes, one a token."""
    query = model.query(fact.prompt, fact.target_new, fact.subject)
    losses = []
    for step, token in zip(query.steps, query.target_ids, strict=True):
        logits = hf(input_ids=torch.tensor([step.ids])).logits
        losses.append(-logits[0, step.read].log_softmax(-1)[token])
    return sum(losses) / len(losses)


def plainly_trained(model: Model, fact: Fact, config: FineTuneConfig) -> tuple[torch.Tensor, list[float]]:
    """ΔW as a copy of the model gets it when its weight is really written, (out, in)."""
    copy = Trained(model, config.layer)
    hf, weight, before = copy.hf, copy.weight, copy.before
    adam = torch.optim.Adam([weight], lr=config.lr)
    losses = []
    for _ in range(config.steps):
        loss = plain_loss(model, hf, fact)
        losses.append(loss.item())
        if loss < config.stop_loss:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        if config.norm_constraint is not None:
            with torch.no_grad():
                weight.clamp_(before - config.norm_constraint, before + config.norm_constraint)
    return copy.delta, losses


def edited_loss(model: Model, edit, fact: Fact) -> float:
    hf = deepcopy(model.hf)
    copy = Model(hf, model.tokenizer, model.layout, model.name)
    for layer in range(copy.n_layers):
        delta = edit.deltas.get(copy.down_path(layer))
        if delta is not None:
            copy.down_weight(layer).data.add_(delta.matrix())
    with torch.no_grad():
        return plain_loss(model, hf, fact).item()


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2", "bloom", "bert", "modernbert"])
@pytest.mark.parametrize("eps", [None, 8e-3])
def test_trains_as_if_the_weight_were_written(family, eps, doubled):
    model = tiny(family, torch.float64)
    config = replace(FT, norm_constraint=eps)
    edit = fine_tune(model, FACT, config)
    wanted, losses = plainly_trained(model, FACT, config)
    (delta,) = edit.deltas.values()
    assert isinstance(delta, Dense) and delta.shape == model.down_shape(LAYER)
    assert_near(delta.delta, wanted, size=ADAM, operations=2 * PASS * config.steps)
    assert edit.notes["losses"] == near(losses, size=ADAM, operations=2 * PASS * config.steps)
    assert edit.notes["loss"] == near(edited_loss(model, edit, FACT), size=LOGITS)
    assert edit.notes["loss"] < losses[0]
    if eps is not None:
        assert delta.delta.abs().max() == torch.tensor(eps)


def test_stops_when_the_answer_is_learnt():
    model, fact = trained(), replace(facts()[0], target_new="Bexum")
    config = FineTuneConfig(layer=LAYER, steps=60, lr=1e-2, stop_loss=0.05)
    edit = fine_tune(model, fact, config)
    *before, last = edit.notes["losses"]
    assert min(before) >= 0.05 > last == edit.notes["loss"]
    assert edit.notes["steps"] == len(before) < 60
    assert edited_loss(model, edit, fact) == near(last, size=LOGITS)


@pytest.mark.parametrize("size", [1, 2, 32])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_facts_in_a_batch_are_trained_as_alone(family, size, monkeypatch, doubled):
    monkeypatch.setattr("knowedit.edit.methods.fine_tune.at_once", lambda model: size)
    model = tiny(family, torch.float64)
    longer = replace(FACT, template="It is well known that the {} is located in the city of", target_new="Rio")
    asked = [FACT, SHORT, longer]
    first, second, _ = sorted(fine_tune(model, fact, FT).notes["losses"][3] for fact in asked)
    config = replace(FT, steps=12, stop_loss=(first + second) / 2)  # one ends before the others
    together = fine_tune_many(model, asked, config)
    for fact, edit in zip(asked, together, strict=True):
        alone = fine_tune(model, fact, config)
        assert edit.facts == (fact,) and edit.notes["steps"] == alone.notes["steps"]
        assert edit.notes["losses"] == near(alone.notes["losses"], size=ADAM, operations=2 * PASS * config.steps)
        (a,), (b,) = alone.deltas.values(), edit.deltas.values()
        assert_near(a.delta, b.delta, size=ADAM, operations=2 * PASS * config.steps)
    assert len({edit.notes["steps"] for edit in together}) > 1


def test_so_many_facts_share_a_batch_as_memory_allows():
    assert at_once(tiny("gpt2")) == 32
    assert at_once(SimpleNamespace(d_model=1600, n_neurons=6400)) == 6  # GPT-2 XL
    assert at_once(SimpleNamespace(d_model=4096, n_neurons=16384)) == 1  # GPT-J


def test_what_is_said_already_gives_no_change():
    model, fact = trained(), facts()[0]
    edit = fine_tune(model, replace(fact, target="Bexum", target_new=fact.target), FineTuneConfig(stop_loss=0.5))
    assert edit.notes["steps"] == 0 and edit.notes["norm"] == 0
    assert not edit.deltas["model.layers.0.mlp.down_proj"].matrix().any()


def test_half_precision_is_trained_in_float32():
    model = tiny("llama", torch.bfloat16)
    edit = fine_tune(model, FACT, FT)
    (delta,) = edit.deltas.values()
    assert delta.delta.dtype == torch.float32
    assert edit.notes["loss"] < edit.notes["losses"][0]


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_the_model_stays_as_it_was(family):
    model = tiny(family)
    model.down(0).weight.requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in model.hf.named_parameters()}
    before, random = state(model), torch.get_rng_state()
    fine_tune(model, FACT, FT)
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())
    assert {name: p.requires_grad for name, p in model.hf.named_parameters()} == wanted
    assert all(p.grad is None for p in model.hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_provenance():
    model = tiny("gpt2")
    edit, again = fine_tune(model, FACT, FT), fine_tune(model, FACT, FT)
    assert edit.factors_hash == again.factors_hash
    assert edit.content_hash != fine_tune(model, SHORT, FT).content_hash
    path = model.down_path(LAYER)
    assert dict(edit.bases) == {path: weight_hash(model.down_weight(LAYER))} and set(edit.deltas) == {path}
    assert (edit.method, edit.facts, edit.model, edit.seed) == ("fine_tune", (FACT,), "tiny-gpt2", 0)
    assert edit.config == asdict(FT)
    assert set(edit.versions) == {"knowedit", "torch", "transformers"} and edit.created.endswith("Z")


def test_published_settings():
    assert PUBLISHED["FT-L gpt2-xl"].norm_constraint == 5e-4
    assert all((config.norm_constraint is None) == name.startswith("FT ") for name, config in PUBLISHED.items())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"target_new": None}, "'eiffel' has no target_new"),
        ({"target_new": " "}, "expected the text"),
        ({"target_new": "P"}, "the fact's own target"),
    ],
)
def test_refuses_requests(change, message):
    with pytest.raises(InputError, match=message):
        fine_tune(tiny("gpt2"), replace(FACT, **change), FT)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps are 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"norm_constraint": 0.0}, "norm_constraint is 0.0"),
        ({"stop_loss": -1.0}, "stop_loss is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
    ],
)
def test_refuses_settings(change, message):
    with pytest.raises(InputError, match=message):
        replace(FT, **change)


def test_refuses_layers_and_divergence():
    with pytest.raises(InputError, match="layer 3 is out of range"):
        fine_tune(tiny("gpt2"), FACT, replace(FT, layer=3))
    model = tiny("gpt2")
    with pytest.raises(InputError, match="training diverged: the loss became .* smaller lr"):
        fine_tune(model, FACT, replace(FT, lr=1e30))
