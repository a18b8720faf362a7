"""Which families normalise what their MLP adds is measured, and so is where that ends: √ε / rms(y)."""

import math

import pytest
import torch
from support.rounding import assert_near
from support.tiny import BY_STRUCTURE, DECODERS, FAMILIES, PROMPT, tiny

from knowedit.hooks import hooked, on_output
from knowedit.models.passes.corner import NORMALISED, added, corners
from knowedit.models.passes.replay import record

WITH_NORM = ("gemma2", "gemma3_text", "olmo2", "olmo3", "glm4", "exaone4")


@pytest.mark.parametrize("family", [*FAMILIES, *BY_STRUCTURE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_tells_families_with_a_norm_behind_the_mlp(family, dtype):
    assert tiny(family, dtype).normalised == (family in WITH_NORM)


def recorded(model):
    ids = model.encode(PROMPT).ids
    return record(model, ids, start=len(ids) - 1)


@pytest.mark.parametrize("family", WITH_NORM)
def test_the_corner_of_a_norm_is_the_root_of_its_epsilon_over_the_output(family, doubled):
    model = tiny(family, torch.float64)
    recording = recorded(model)
    epsilon = model.hf.config.get_text_config().rms_norm_eps
    for layer in range(model.n_layers):
        kept = []
        with hooked(on_output(model.down(layer), kept.append)), torch.no_grad():
            recording.block(layer, recording.inputs[layer])
        rms = kept[0].square().mean().sqrt().item()
        assert corners(recording, layer, [[0]])[0] == pytest.approx(math.sqrt(epsilon) / rms, rel=1e-6)


@pytest.mark.parametrize("family", sorted(set(DECODERS) - set(WITH_NORM)))
def test_no_other_decoder_bends(family):
    model = tiny(family)
    assert all(corners(recorded(model), layer, [[0]])[0] == math.inf for layer in range(model.n_layers))


def test_an_mlp_that_adds_nothing_has_no_corner():
    model = tiny("gemma2")
    recording = recorded(model)
    with torch.no_grad():
        model.hf.model.layers[1].post_feedforward_layernorm.weight.fill_(-1.0)  # Gemma scales by 1 + weight
    assert corners(recording, 1, [[0]])[0] == math.inf
    assert corners(recording, 2, [[0]])[0] < NORMALISED


BEHIND = {"glm4": "post_mlp_layernorm"}


@pytest.mark.parametrize("family", WITH_NORM)
def test_what_a_block_adds_for_an_output_is_turned_by_the_norm_behind(family):
    model, generator = tiny(family, torch.float64), torch.Generator().manual_seed(0)
    norm = getattr(model.hf.model.layers[1], BEHIND.get(family, "post_feedforward_layernorm"))
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
    outputs = torch.randn(5, model.d_model, dtype=torch.float64, generator=generator)
    assert_near(added(model, 1, outputs), norm(outputs).detach())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_without_a_norm_behind_the_mlp_an_output_is_added_as_it_is(family):
    model = tiny(family)
    outputs = model.down_weight(1).T
    assert added(model, 1, outputs) is outputs
