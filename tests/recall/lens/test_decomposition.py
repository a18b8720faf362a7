"""Direct logit attribution adds up in every family, and its parts are those that a plain computation finds."""

import pytest
import torch
from support.edits import random_edit
from support.tiny import DECODERS, MASKED, PROMPT, SUBJECT, TARGET, hf, tiny
from support.trained import facts, trained

from knowedit import wrap
from knowedit.edit.apply import MODES, applied
from knowedit.errors import InputError, ModelError
from knowedit.hooks import hooked, on_input, on_output
from knowedit.recall.lens.decomposition import logit_attribution
from knowedit.recall.lens.projection import aim

FOIL = "Q"


def own_logits(model, asked):
    with torch.no_grad():
        tokens = torch.tensor([asked.prompt.ids])
        logits = model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, asked.prompt.read]
    return logits[asked.target], 0.0 if asked.foil is None else logits[asked.foil]


@pytest.mark.parametrize("foil", [None, FOIL])
@pytest.mark.parametrize("family", DECODERS)
def test_the_parts_sum_to_the_logit_to_the_last_digits(family, foil, doubled):
    model = tiny(family, torch.float64)
    asked = aim(model, PROMPT, TARGET, foil)
    found = logit_attribution(model, asked)
    assert found.gap < 1e-12 * found.mlp.abs().sum() + 1e-12
    assert found.sublayer_gap < 1e-12
    one, other = own_logits(model, asked)
    assert found.capped == pytest.approx((one - other).item(), abs=1e-12)
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    if cap is None:
        assert found.logit == pytest.approx(found.capped, abs=1e-12)
    else:  # the parts are those of the logit before the cap
        own = [cap * torch.atanh(torch.as_tensor(z) / cap) for z in (one, other)]
        assert found.logit == pytest.approx((own[0] - own[1]).item(), abs=1e-9)
        assert abs(found.logit - found.capped) > 1e-3
    assert found.neurons.abs().sum() > 0 and found.heads.abs().sum() > 0


@pytest.mark.parametrize("family", DECODERS)
def test_in_single_precision_the_gap_is_rounding(family):
    found = logit_attribution(tiny(family), PROMPT, TARGET, subject=SUBJECT, position="lookup")
    assert found.position == tiny(family).encode(PROMPT, SUBJECT).lookup
    assert max(found.gap, found.sublayer_gap) < 1e-5


# ---------------------------------------------------------------- against plain computations, by name of each family


def seen(model, ids, modules):
    """Inputs and outputs of modules at the last token."""
    kept = {}
    hooks = []
    for name, module in modules.items():
        hooks += [on_input(module, lambda x, name=name: kept.__setitem__((name, "in"), x[0, -1].detach().clone()))]
        hooks += [on_output(module, lambda x, name=name: kept.__setitem__((name, "out"), x[0, -1].detach().clone()))]
    with hooked(*hooks), torch.no_grad():
        model.hf(input_ids=torch.tensor([ids]))
    return kept


def rms(x, weight, eps):
    return weight * torch.rsqrt(x.pow(2).mean() + eps)


@pytest.mark.parametrize("family", ["llama", "granite", "gemma2", "olmo2", "cohere", "gpt2"])
def test_parts_are_those_of_a_plain_computation(family, doubled):
    model = tiny(family, torch.float64)
    asked = aim(model, PROMPT, TARGET, FOIL)
    found = logit_attribution(model, asked)
    config, layer = model.hf.config, 1
    block = model.blocks[layer]
    post = family in ("gemma2", "olmo2")
    norms = {"heads": block.post_attention_layernorm, "down": block.post_feedforward_layernorm} if post else {}
    final = model.hf.transformer.ln_f if family == "gpt2" else model.hf.model.norm
    modules = {"heads": model.heads(layer), "down": model.down(layer), "final": final}
    at = seen(model, asked.prompt.ids, modules)
    h, eps = at["final", "in"], getattr(final, "eps", None) or getattr(final, "variance_epsilon", None)
    rows = model.unembedding.weight.detach()
    u = rows[asked.target] - rows[asked.foil]
    plus = 1.0 if family == "gemma2" else 0.0  # Gemma keeps its norms' weights less one
    if family in ("gpt2", "cohere"):  # LayerNorm: what is centred on one side may be centred on the other
        scaled = u * final.weight.detach() * torch.rsqrt(h.var(unbiased=False) + eps)
        direction = scaled - scaled.mean()
    else:
        direction = u * rms(h, plus + final.weight.detach(), eps)
    direction = direction * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    to_heads = to_neurons = direction * getattr(config, "residual_multiplier", 1.0)
    if post:
        to_heads, to_neurons = (
            direction
            * rms(at[out, "out"], plus + norm.weight.detach(), getattr(norm, "eps", None) or norm.variance_epsilon)
            for out, norm in norms.items()
        )
    heads = (to_heads @ model.heads_weight(layer).detach() * at["heads", "in"]).reshape(model.n_heads, -1).sum(1)
    neurons = to_neurons @ model.down_weight(layer).detach() * at["down", "in"]
    torch.testing.assert_close(found.heads[layer], heads, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.neurons[layer], neurons, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.activations[layer], at["down", "in"])
    assert found.attention[layer].item() == pytest.approx((to_heads @ at["heads", "out"]).item())
    assert found.mlp[layer].item() == pytest.approx((to_neurons @ at["down", "out"]).item())
    if family == "gpt2":
        assert found.bias == pytest.approx((u @ final.bias.detach()).item())
        assert found.mlp_bias[layer].item() == pytest.approx((direction @ model.down_bias(layer).detach()).item())


def test_taking_the_last_layers_neuron_away_takes_its_part_away(doubled):
    """Between the last layer and the logit stands only the norm: its scale is all that the part does not foresee."""
    model = tiny("gpt2", torch.float64)
    asked = aim(model, PROMPT, TARGET)
    found = logit_attribution(model, asked)
    last = model.n_layers - 1
    index = int(found.neurons[last].abs().argmax())

    def without(neurons):
        neurons = neurons.clone()
        neurons[..., -1, index] = 0
        return neurons

    kept = {}
    with hooked(
        on_input(model.down(last), without),
        on_input(model.hf.transformer.ln_f, lambda x: kept.__setitem__("after", x[0, -1].detach())),
    ):
        own_logits(model, asked)
    own_logits(model, asked)
    with hooked(on_input(model.hf.transformer.ln_f, lambda x: kept.__setitem__("before", x[0, -1].detach()))):
        own_logits(model, asked)
    norm = model.hf.transformer.ln_f
    u = model.unembedding.weight[asked.target].detach() * norm.weight.detach()
    scale = torch.rsqrt(kept["before"].var(unbiased=False) + norm.eps)
    less = kept["before"] - kept["after"]
    assert found.neurons[last, index].item() == pytest.approx((u @ (less - less.mean()) * scale).item())


# ---------------------------------------------------------------- shapes of blocks, and what is refused


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gpt_neox", {"use_parallel_residual": False}),
        ("stablelm", {"use_parallel_residual": True}),
        ("falcon", {"parallel_attn": False, "bias": True}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("opt", {"word_embed_proj_dim": 32}),
        ("opt", {"_remove_final_layer_norm": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_hidden_layers": 1}),
        ("cohere", {"use_qk_norm": True}),
        ("gemma2", {"final_logit_softcapping": None}),
    ],
)
def test_variants_of_families_add_up(family, options, doubled):
    found = logit_attribution(tiny(family, torch.float64, **options), PROMPT, TARGET, FOIL)
    assert max(found.gap, found.sublayer_gap) < 1e-12


@pytest.mark.parametrize(
    ("family", "options"),
    [("opt", {"do_layer_norm_before": False}), ("bloom", {"apply_residual_connection_post_layernorm": True})],
)
def test_blocks_that_do_not_add_to_the_stream_are_refused(family, options):
    with pytest.raises(ModelError, match="what it received plus what attention and MLP add"):
        logit_attribution(tiny(family, **options), PROMPT, TARGET)


@pytest.mark.parametrize("family", MASKED)
def test_masked_models_are_refused(family):
    with pytest.raises(ModelError, match="masked model, whose logits are no sum over its layers"):
        logit_attribution(tiny(family), "The city of [MASK] is in France.", TARGET)


def test_half_precision_adds_up_as_well_as_its_rounding_lets_it():
    found = logit_attribution(tiny("llama", torch.bfloat16), PROMPT, TARGET, FOIL)
    assert max(found.gap, found.sublayer_gap) < 0.1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_neurons_are_those_of_the_edited_weight(family, mode, doubled):
    model = tiny(family, torch.float64)
    before = logit_attribution(model, PROMPT, TARGET)
    with applied(model, random_edit(model, 1), mode=mode):
        after = logit_attribution(model, PROMPT, TARGET)
    assert max(after.gap, after.sublayer_gap) < 1e-10
    assert not torch.allclose(after.neurons[1], before.neurons[1])
    assert torch.equal(logit_attribution(model, PROMPT, TARGET).neurons, before.neurons)


def test_positions_and_numbers_that_cannot_be_used():
    model = tiny("llama")
    with pytest.raises(InputError, match="needs a subject"):
        logit_attribution(model, PROMPT, TARGET, position="lookup")
    with pytest.raises(InputError, match="expected a number from 0 on"):
        logit_attribution(model, PROMPT, TARGET).strongest_heads(-1)


def test_the_model_is_left_as_it_was():
    model = wrap(hf("falcon"), tiny("falcon").tokenizer)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    logit_attribution(model, PROMPT, TARGET)
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_the_strongest_come_first_and_the_dictionary_holds_them():
    fact = facts()[0]
    found = logit_attribution(trained(), fact.prompt, fact.target, facts()[2].target, subject=fact.subject)
    heads = found.strongest_heads(5)
    assert [abs(value) for *_, value in heads] == sorted((abs(value) for *_, value in heads), reverse=True)
    layer, index, value = found.strongest_neurons(1)[0]
    assert value == found.neurons[layer, index].item() and abs(value) == found.neurons.abs().max().item()
    record = found.as_dict(heads=3, neurons=2)
    assert len(record["heads"]) == 3 and len(record["neurons"]) == 2
    assert record["target"] == fact.target and record["foil"] == facts()[2].target
    total = record["embedding"] + record["bias"] + sum(row["attention"] + row["mlp"] for row in record["layers"])
    assert total == pytest.approx(record["total"]) == pytest.approx(record["logit"], abs=1e-4)
    assert record["logit"] > 0  # it knows the fact
