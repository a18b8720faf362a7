"""Distributions are those of numpy on the very values, in every family."""

import json

import numpy as np
import pytest
import torch
from support.tiny import D_MODEL, FAMILIES, PROMPT, tiny

from knowedit import InputError
from knowedit.mlp.activations import collect, text_positions
from knowedit.mlp.layer_anatomy import QUANTILES, anatomy
from knowedit.models.expansion import expansions

TEXTS = (PROMPT, "The capital of France is", "Paris is the capital of")


def own_values(model, prompts):
    return collect(model, prompts, lambda p: text_positions(model, p), expansions(model))


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_described_as_it_is(family):
    model = tiny(family)
    prompts = [model.encode(text) for text in TEXTS]
    found = anatomy(model, prompts)
    values = own_values(model, prompts)
    gated = found.nonlinear == "gate"
    assert [width for _, width in found.flow] == [D_MODEL, *[model.n_neurons] * (3 if gated else 2), D_MODEL]
    assert found.tokens == sum(len(text_positions(model, p)) for p in prompts)
    for layer in range(model.n_layers):
        one = found.layer(layer)
        assert [s.name for s in one.stages] == [name for name, _ in found.flow]
        for stage in one.stages:
            wanted = values[layer][stage.name]
            flat = wanted.double().flatten().numpy()
            assert stage.values == flat.size
            assert stage.quantiles == pytest.approx(np.quantile(flat, QUANTILES), abs=1e-6)
            assert (stage.least, stage.most) == pytest.approx((flat.min(), flat.max()))
            edges = np.array(found.edges[stage.name])
            clipped = np.clip(flat, edges[0], edges[-1])
            shares = np.histogram(clipped, edges)[0] / flat.size
            assert sum(stage.histogram) == pytest.approx(1)
            assert stage.histogram == pytest.approx(shares)
        assert one.below_zero.n == len(TEXTS) and 0 <= one.below_zero.low <= one.below_zero.high <= 1
    json.dumps(found.as_dict(), allow_nan=False)


def test_the_curve_is_the_nonlinearity_over_the_data():
    model = tiny("llama")
    found = anatomy(model, [model.encode(PROMPT)])
    x, y = np.array(found.curve).T
    assert y == pytest.approx(x / (1 + np.exp(-x)), abs=1e-5) and found.activation == "SiLU"
    low, high = min(s.stage("gate").quantiles[0] for s in found.layers), max(
        s.stage("gate").quantiles[-1] for s in found.layers
    )  # fmt: skip
    assert x[0] <= low + 1e-6 and x[-1] >= high - 1e-6


def test_a_relus_zeros_are_in_the_bin_of_zero():
    model = tiny("opt")
    prompts = [model.encode(text) for text in TEXTS]
    stage = anatomy(model, prompts).layer(0).stage("neurons")
    zeros = (own_values(model, prompts)[0]["neurons"] == 0).double().mean().item()
    assert zeros > 0.2 and max(stage.histogram) >= zeros


def test_some_layers_in_several_passes_are_those_of_all(monkeypatch):
    model = tiny("gpt2")
    prompts = [model.encode(text) for text in TEXTS]
    whole = anatomy(model, prompts)
    monkeypatch.setattr("knowedit.mlp.layer_anatomy.BUDGET", 1)
    assert anatomy(model, prompts) == whole
    some = anatomy(model, prompts, layers=[2])
    assert [one.layer for one in some.layers] == [2]
    assert some.layer(2).stage("up").quantiles == whole.layer(2).stage("up").quantiles


def test_one_text_has_no_interval_and_none_is_refused():
    model = tiny("gpt2")
    assert anatomy(model, [model.encode(PROMPT)]).layer(0).below_zero.low is None
    with pytest.raises(InputError, match="no token"):
        anatomy(model, [])
    with pytest.raises(InputError, match="no token"):
        anatomy(model, [model.encode("a")])  # the first alone
    with pytest.raises(InputError, match="out of range"):
        anatomy(model, [model.encode(PROMPT)], layers=[9])
    assert torch.is_grad_enabled()
