"""Sparsity: keeping all is the model itself, keeping some is a model inside a hook, and strong neurons matter more."""

import numpy as np
import pytest
import torch
from support.tiny import DECODERS, FAMILIES, MASKED, PROMPT, SUBJECT, tiny
from support.trained import facts, trained

from knowedit.errors import InputError
from knowedit.hooks import hooked, on_input
from knowedit.memory.corpus_scan import scan, value_norms
from knowedit.memory.sparsity import SparsityConfig, active_by_layer, keep_strongest


def prompt_of(model, family):
    return model.encode("The city of [MASK] is in France." if family in MASKED else PROMPT)


@pytest.mark.parametrize("at", ["read", "all"])
@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_changes_nothing(family, at):
    model = tiny(family)
    (found,) = keep_strongest(model, [prompt_of(model, family)], SparsityConfig(shares=(1.0,), at=at, draws=2))
    for ratio in (found.ratio, found.random_ratio):
        assert ratio.value == pytest.approx(1, abs=1e-4) and ratio.n == 1 and ratio.low is None
    assert found.top1.value == found.random_top1.value == 1


@pytest.mark.parametrize("at", ["read", "all"])
@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_some_is_what_a_hook_does(family, at):
    model = tiny(family)
    prompt = prompt_of(model, family)
    tokens = torch.tensor([prompt.ids])
    places = [prompt.read] if at == "read" else list(range(1, len(prompt.ids) - (1 if model.masked else 0)))
    n = max(1, round(0.2 * model.n_neurons))

    def thin(layer):
        def thinned(neurons):
            shaped = neurons.reshape(1, len(prompt.ids), -1).clone()
            c = shaped.abs() * value_norms(model, layer)
            for place in places:
                weak = c[0, place].argsort(descending=True)[n:]
                shaped[0, place, weak] = 0
            return shaped.reshape(neurons.shape)

        return thinned

    def p(*hooks):
        with torch.no_grad(), hooked(*hooks):
            logits = model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        return logits[0, prompt.read].softmax(-1)

    clean, thinned = p(), p(*(on_input(model.down(layer), thin(layer)) for layer in range(model.n_layers)))
    (found,) = keep_strongest(model, [prompt], SparsityConfig(shares=(0.2,), at=at))
    best = clean.argmax()
    assert found.ratio.value == pytest.approx((thinned[best] / clean[best]).item(), rel=5e-3)
    assert found.top1.value == float(thinned.argmax() == best)


def test_strong_neurons_remain_longer_than_random_ones():
    model = trained()
    prompts = [model.encode(fact.prompt, fact.subject) for fact in facts()]
    found = keep_strongest(model, prompts, SparsityConfig(shares=(0.1, 0.5)))
    for kept in found:
        assert kept.ratio.n == kept.top1.n == len(prompts)
        assert kept.ratio.low > kept.random_ratio.high
        assert kept.top1.value >= kept.random_top1.value
    assert found[1].ratio.value > found[0].ratio.value
    assert keep_strongest(model, prompts, SparsityConfig(shares=(0.1, 0.5))) == found
    one = keep_strongest(model, prompts, SparsityConfig(shares=(0.1,), layers=(2,)))[0]
    assert one.ratio.value > found[0].ratio.value  # one thinned layer of three does less


@pytest.mark.covered
@pytest.mark.parametrize("family", [*DECODERS, *MASKED])
def test_active_shares_are_means_over_texts(family):
    found = scan(tiny(family), tokens=260)
    for at, layer in enumerate(active_by_layer(found)):
        assert layer.layer == at and layer.active.n == len(found.rows)
        assert layer.active.value == pytest.approx(found.row_active[at].mean().item(), rel=1e-5)
        assert layer.never == int((found.active[at] == 0).sum())
        assert layer.active.low <= layer.active.value <= layer.active.high


def test_effective_share():
    """One neuron that carries all is 1/n, all alike are 1."""
    model = tiny("gpt2")
    with torch.no_grad():
        model.down_weight(0)[:, 1:] = 0
    found = scan(model, tokens=130)
    np.testing.assert_allclose(found.row_effective[0], 1 / model.n_neurons, rtol=1e-4)


def test_bad_settings_are_refused():
    for wrong in ({"shares": ()}, {"shares": (0.0,)}, {"shares": (1.5,)}, {"at": "lookup"}, {"draws": 0}):
        with pytest.raises(InputError):
            SparsityConfig(**wrong)
    model = tiny("gpt2")
    with pytest.raises(InputError, match="no prompt"):
        keep_strongest(model, [])
    with pytest.raises(InputError, match="layer 7"):
        keep_strongest(model, [model.encode(PROMPT, SUBJECT)], SparsityConfig(layers=(7,)))
