"""Rounding is what it says, leaves no trace, and what it does to facts, neurons and edits is measured."""

import json

import pytest
import torch
from support.edits import strong, weights
from support.tiny import FAMILIES, PROMPT, TARGET, tiny
from support.trained import facts, trained

from knowedit import Fact, InputError, ModelError
from knowedit.edit.apply import applied, edits_on
from knowedit.edit.rewrite_quality import rewrite_quality
from knowedit.mlp.quantization import PrecisionConfig, precision, quantized, quantized_weight
from knowedit.models.expansion import projections


def test_grids_by_hand():
    w = torch.tensor([[0.7, -0.3, 0.05, -0.7], [0.0, 0.0, 0.0, 0.0], [4.0, -1.0, 1.9, 2.1]])
    two = quantized_weight(w, 2)
    assert torch.allclose(two[0], torch.tensor([0.7, 0.0, 0.0, -0.7]))
    assert torch.equal(two[1], torch.zeros(4))  # a channel of zeros stays
    assert torch.allclose(two[2], torch.tensor([4.0, 0.0, 0.0, 4.0]))
    one = quantized_weight(w, 1)
    assert torch.allclose(one[0], 0.4375 * torch.tensor([1.0, -1.0, 1.0, -1.0]))
    four = quantized_weight(w, 4)
    assert torch.allclose(four[2], torch.tensor([4.0, -8 / 7, 12 / 7, 16 / 7]))


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_errors_are_at_most_half_a_step_and_rounding_twice_is_rounding_once(bits):
    w = torch.randn(20, 50)
    found = quantized_weight(w, bits)
    step = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((found - w).abs() <= step / 2 * (1 + 1e-5)).all()
    assert all(len(row.unique()) <= 2**bits - 1 for row in found)
    assert torch.allclose(quantized_weight(found, bits), found, atol=1e-6)


def test_one_bit_is_the_best_scaled_sign():
    w = torch.randn(6, 40)
    found = quantized_weight(w, 1)
    best = (found - w).square().sum(1)
    for factor in (0.9, 1.1):
        assert (best < (factor * found - w).square().sum(1)).all()


@pytest.mark.parametrize("part", ["mlp", "attention"])
@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_one_part_is_rounded_by_output_channel_and_restored_to_the_bit(family, part):
    model = tiny(family)
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    inside = {id(m.weight) for layer in range(model.n_layers)
              for m in projections(model.hf, model.layout, layer)[part].values()}  # fmt: skip
    with quantized(model, 3, part) as error:
        assert 0.05 < error < 0.6
        for name, p in model.hf.named_parameters():
            assert torch.equal(p, before[name]) == (id(p) not in inside), name
        for layer in range(model.n_layers):
            if part == "mlp":  # (out, in) whatever the module stores
                assert all(len(row.unique()) <= 7 for row in model.down_weight(layer))
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())


def test_weights_come_back_after_an_exception():
    model = tiny("llama")
    before = weights(model)
    with pytest.raises(ZeroDivisionError), quantized(model, 1):
        1 / 0  # noqa: B018
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


def test_half_precision_keeps_its_dtype():
    model = tiny("gpt2", torch.bfloat16)
    with quantized(model, 8) as error:
        assert model.down_weight(0).dtype == torch.bfloat16 and 0 < error < 0.05


def test_the_trained_model_survives_eight_bits_and_not_one():
    model = trained()
    edit = strong("Zarn", "Dovath")
    before = weights(model)
    found = precision(model, facts()[:10], [edit], PrecisionConfig(bits=(8, 1), neurons=3))
    assert [(level.part, level.bits) for level in found.levels] == [
        ("none", None), ("mlp", 8), ("mlp", 1), ("attention", 8), ("attention", 1)
    ]  # fmt: skip
    full, eight, one, *_ = found.levels
    assert full.known.value == 1 and full.found_again.value == 1 and full.efficacy.value == 1
    assert eight.known.value == 1 and eight.found_again.value > 0.8 and eight.efficacy.value == 1
    assert eight.error < 0.02 < one.error
    assert one.probability.value < eight.probability.value
    assert full.suppressed.value < 0 and full.suppressed.n <= 3
    with applied(model, edit):
        (contrasts,) = rewrite_quality(model, edit.facts)
    assert full.edited.value == eight.edited.value == float(contrasts.prompt.says_new)
    assert full.known.n == 10 and full.known.low < 1
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True)) and not edits_on(model)
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize("family", ["gpt2", "falcon", "bert"])
def test_without_edits_and_neurons_these_are_not_measured(family):
    fact = Fact(PROMPT.replace("Eiffel Tower", "{}"), "Eiffel Tower", TARGET)
    found = precision(tiny(family), [fact], config=PrecisionConfig(bits=(4,), parts=("mlp",), neurons=0))
    assert len(found.levels) == 2 and found.edits == 0
    for level in found.levels:
        assert level.efficacy.value is None and level.found_again.n == 0 and level.suppressed.value is None
        assert level.probability.n == 1 and level.probability.low is None


def test_what_cannot_be_rounded_is_refused_before_anything_is_written():
    model = tiny("llama")
    model.blocks[2].mlp.up_proj.weight = model.blocks[2].mlp.gate_proj.weight  # tied
    before = weights(model)
    with pytest.raises(ModelError, match="share weights"), quantized(model, 4):
        pass
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    model = tiny("llama")
    torch.nn.utils.parametrizations.weight_norm(model.blocks[1].mlp.down_proj)
    with pytest.raises(ModelError, match="packed, offloaded or computed"), quantized(model, 4):
        pass


def test_wrong_options_are_said():
    for bits in ((), (0,), (17,), (2.5,), (True,), ("8",)):
        with pytest.raises(InputError, match="bits"):
            PrecisionConfig(bits=bits)
    with pytest.raises(InputError, match="mlp, attention"):
        PrecisionConfig(parts=("head",))
    with pytest.raises(InputError, match="0 or more"):
        PrecisionConfig(neurons=-1)
    with pytest.raises(InputError, match="no fact"):
        precision(tiny("gpt2"), [])
