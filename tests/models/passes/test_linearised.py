"""The rules of RelP: the same values, and gradients that share the answer out without loss."""

import pytest
import torch
from support.tiny import FAMILIES, PROMPT, TARGET, double, tiny

from knowedit import InputError, rank
from knowedit.hooks import hooked, on_input
from knowedit.models.adapter import Model
from knowedit.models.passes.linearised import linearised
from knowedit.prompts import Query

UNBIASED = ("llama", "gemma2", "gemma3_text", "smollm3", "mistral")
"""Families without biases: what they answer is nothing but the sum of what tokens bring in. Between them they have
norms behind the MLP, windows, capped attention, and other nonlinearities."""
EPS = torch.finfo(torch.float32).eps


def first_token(model: Model) -> Query:
    """A query for the first token of the target."""
    query = model.query(PROMPT, TARGET)
    return Query(query.steps[:1], query.target_ids[:1])


def ids_of(model: Model) -> torch.Tensor:
    return torch.tensor([model.encode(f"{PROMPT} [MASK]." if model.masked else PROMPT).ids])


@pytest.mark.parametrize("family", [pytest.param(family, marks=pytest.mark.covered) for family in FAMILIES])
@torch.no_grad()
def test_values_are_the_models_own(family):
    model = tiny(family)
    ids = ids_of(model)
    plain = model.hf(ids).logits
    with linearised(model):
        inside = model.hf(ids).logits
    # a few roundings in each of some ten steps of three layers, of logits up to that size
    assert (inside - plain).abs().max() <= 64 * EPS * plain.abs().max()
    assert torch.equal(model.hf(ids).logits, plain)


@pytest.mark.parametrize("family", UNBIASED)
def test_relevance_is_conserved(family):
    """With rules for every nonlinearity the logit is linear in the embeddings, so it is the sum of gradient × input."""
    with double():
        model = tiny(family, final_logit_softcapping=None) if family == "gemma2" else tiny(family)
        ids, kept = ids_of(model), []

        def embedded(states):
            kept.append(states.detach().requires_grad_())
            return kept[-1]

        with linearised(model), hooked(on_input(model.blocks[0], embedded)):
            logits = model.hf(ids).logits[0, -1]
            (gradient,) = torch.autograd.grad(logits[7], kept[0])
        shared_out = (gradient * kept[0]).sum()
        assert abs(shared_out - logits[7]) < 1e-9 * abs(gradient * kept[0]).sum()
        with hooked(on_input(model.blocks[0], embedded)):
            plain = model.hf(ids).logits[0, -1]
            (gradient,) = torch.autograd.grad(plain[7], kept[1])
        assert abs((gradient * kept[1]).sum() - plain[7]) > 1e-2 * abs(plain[7])  # which plain gradients do not


def test_relp_gives_a_last_layers_neurons_what_they_add_to_the_target():
    """Behind the last MLP only the norm is left, a constant: the score is the direct effect on p, to first order."""
    with double():
        model = tiny("llama")
        query = first_token(model)
        scores, last = rank(model, query, method="relp"), model.n_layers - 1
        neurons, states = [], []
        with (
            torch.no_grad(),
            hooked(
                on_input(model.down(last), lambda x: neurons.append(x[0, -1])),
                on_input(model.hf.model.norm, lambda x: states.append(x[0, -1])),
            ),
        ):
            logits = model.hf(torch.tensor([query.prompt.ids])).logits[0, -1]
        p, target = logits.softmax(-1), query.target_ids[0]
        norm = model.hf.model.norm
        scale = norm.weight * (states[0].square().mean() + norm.variance_epsilon).rsqrt()
        unembedding = model.unembedding.weight
        slope = p[target] * (unembedding[target] - p @ unembedding) * scale
        wanted = neurons[0] * (slope @ model.down_weight(last))
        assert torch.allclose(scores[last], wanted.to(scores), rtol=0, atol=1e-6 * wanted.abs().max().item())


def test_logp_is_what_a_value_vector_adds_to_the_stream_that_comes_in():
    model = tiny("llama")
    query = first_token(model)
    scores, layer = rank(model, query, method="logp"), 1
    neurons, states = [], []
    with (
        torch.no_grad(),
        hooked(
            on_input(model.down(layer), lambda x: neurons.append(x[0, -1])),
            on_input(model.blocks[layer], lambda x: states.append(x[0, -1])),
        ),
    ):
        model.hf(torch.tensor([query.prompt.ids]))
    for index in range(0, model.n_neurons, 17):
        with torch.no_grad():
            added = states[0] + neurons[0][index] * model.down_weight(layer)[:, index]
            logits = model.hf.lm_head(model.hf.model.norm(torch.stack([states[0], added])))
        before, after = logits.log_softmax(-1)[:, query.target_ids[0]].tolist()
        # both log-probabilities are rounded to their size
        assert scores[layer, index].item() == pytest.approx(after - before, abs=32 * EPS * max(abs(before), 1))


def test_a_gate_that_is_not_known_is_refused(monkeypatch):
    def unknown(model):
        raise InputError("no projection makes its neurons")

    monkeypatch.setattr("knowedit.models.passes.linearised.expansions", unknown)
    with pytest.raises(InputError, match="no projection"):
        rank(tiny("llama"), PROMPT, TARGET, method="relp")
