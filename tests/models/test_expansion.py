"""What a layer's neurons are made of, told in every family by making them again."""

from dataclasses import replace

import pytest
import torch
from support.tiny import D_MODEL, FAMILIES, N_NEURONS, PROMPT, hf, tiny, tokenizer

from knowedit import LayoutError, wrap
from knowedit.models.expansion import expansion, expansions, projections, watching
from knowedit.models.layouts import LAYOUTS

PLAIN = {"gpt2", "gpt_neo", "gptj", "gpt_neox", "opt", "bloom", "falcon", "mpt", "phi", "starcoder2", "bert", "roberta",
         "distilbert"}  # fmt: skip
FUSED = {"phi3", "modernbert"}


def see(model, found):
    ids = torch.tensor([model.encode(PROMPT).ids])
    with torch.no_grad(), watching(model, found) as seen:
        model.hf(input_ids=ids, attention_mask=torch.ones_like(ids))
    return ids.shape[1], seen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stages_make_the_neurons_and_the_output(family):
    model = tiny(family)
    found = expansions(model)
    tokens, seen = see(model, found)
    for layer, one in found.items():
        assert (one.gated, one.fused) == (family not in PLAIN, family in FUSED)
        values = seen[layer]
        assert values.input.shape == values.output.shape == (tokens, D_MODEL)
        assert values.up.shape == values.neurons.shape == (tokens, model.n_neurons)
        assert (values.gate is None) == (family in PLAIN)
        made = one.neurons(values.up, values.gate)
        assert torch.allclose(made, values.neurons, atol=1e-6)
        assert not torch.allclose(one.act(values.up), values.neurons, atol=1e-2) or not one.gated
        bias = model.down_bias(layer)
        output = made @ model.down_weight(layer).T + (0 if bias is None else bias)
        assert torch.allclose(output, values.output, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_projections_of_a_block_are_its_matrices(family):
    model = tiny(family)
    parts = projections(model.hf, model.layout, 0)
    assert model.layout.down in parts["mlp"] and len(parts["mlp"]) == (3 if family not in PLAIN | FUSED else 2)
    assert all(path.startswith(model.layout.attention) for path in parts["attention"])
    counted = sum(m.weight.numel() for modules in parts.values() for m in modules.values())
    assert counted == sum(p.numel() for p in model.blocks[0].parameters() if p.dim() == 2)


def test_an_expansion_that_cannot_be_is_refused_with_the_remedy():
    layout = replace(LAYOUTS["llama"], up="mlp.up_proj")  # the gate forgotten
    model = wrap(hf("llama"), tokenizer("bpe-bos"), layout=layout)
    with pytest.raises(LayoutError, match="makes its neurons .tried mlp.up_proj.*layout=") as error:
        expansion(model, 0)
    assert "\n" not in str(error.value)
    model = wrap(hf("llama"), tokenizer("bpe-bos"), layout=replace(layout, gate="mlp.gate"))
    with pytest.raises(LayoutError, match="has no 'mlp.gate'"):
        expansion(model, 0)


def test_a_layout_overrules_the_search():
    layout = replace(LAYOUTS["llama"], up="mlp.up_proj", gate="mlp.gate_proj")
    model = wrap(hf("llama"), tokenizer("bpe-bos"), layout=layout)
    found = expansion(model, 1)
    assert (found.up, found.gate) == ("mlp.up_proj", "mlp.gate_proj")


def test_half_precision_is_understood():
    assert expansion(tiny("gemma2", torch.bfloat16), 0).gated
    assert N_NEURONS == tiny("gemma2").n_neurons
