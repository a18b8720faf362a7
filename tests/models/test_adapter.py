"""The canonical view: its shapes, its head, its hash, and what it says to wrong names."""

import pytest
import torch
from support.rounding import LOGITS, PASS, assert_near
from support.tiny import FAMILIES, PROMPT, hf, tiny, tokenizer

from knowedit import InputError, LayoutError, ModelError, wrap
from knowedit.hooks import hooked, on_input, on_output
from knowedit.models.adapter import frozen


def run(model):
    """The model's own hidden states before its head, and its logits."""
    tokens = torch.tensor([model.encode("The capital of France is", "France").ids])
    kept = []
    handle = model.blocks[-1].register_forward_hook(
        lambda m, a, out: kept.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        logits = model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    handle.remove()
    return kept[0], logits


@pytest.mark.parametrize("family", FAMILIES)
def test_normed_and_logits_are_the_models_own_head(family):
    model = tiny(family)
    hidden, wanted = run(model)
    found = model.logits(model.normed(hidden))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "cohere", "granite", "gptj", "bert"])
def test_logits_of_some_tokens_and_their_slope(family, doubled):
    model = tiny(family, torch.float64)
    normed = torch.randn(3, model.unembedding.weight.shape[1])
    tokens = [5, 2, 7]
    some, rows = model.logits_of(normed, tokens)
    assert torch.allclose(some, model.logits(normed)[:, tokens], rtol=1e-12, atol=1e-12)
    assert torch.equal(rows, model.unembedding.weight[tokens])
    raw = model.unembedding(normed)[:, tokens].detach().requires_grad_()
    (wanted,) = torch.autograd.grad(model._shaped(raw).sum(), raw)
    assert torch.allclose(torch.as_tensor(model.logits_slope(some)).expand_as(some), wanted, rtol=1e-10)


def test_families_that_scale_or_cap_their_logits_do():
    assert tiny("cohere")._logit_scale == pytest.approx(0.4)
    assert tiny("granite")._logit_scale == pytest.approx(1 / 3)
    assert tiny("gemma2")._softcap == pytest.approx(3.0)
    assert run(tiny("gemma2"))[1].abs().max() < 3
    assert tiny("llama")._logit_scale == 1 and tiny("llama")._softcap is None


def test_the_hash_is_of_the_weights_alone_and_of_every_one():
    model = tiny("llama")
    before = model.weights_hash()
    assert before == tiny("llama").weights_hash()
    assert len(before) == 64
    weight = model.down_weight(2)
    with torch.no_grad():
        old = weight[3, 4].item()
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
        changed = model.weights_hash()
        weight[3, 4] = old
    assert changed != before
    assert model.weights_hash() == before
    assert tiny("llama", torch.bfloat16).weights_hash() != before


def test_the_hash_sees_a_write_that_no_version_counter_sees():
    model = tiny("llama")
    before, version = model.weights_hash(), model.down_weight(1)._version
    model.down_weight(1).data[0, 0] += 1
    assert model.down_weight(1)._version == version
    assert model.weights_hash() != before


def test_the_hash_refuses_what_it_cannot_see():
    model = tiny("llama")
    model.down(0).to("meta")
    with pytest.raises(ModelError, match="layers.0.mlp.down_proj.weight of tiny-llama has no values"):
        model.weights_hash()


@pytest.mark.parametrize("layer", [3, -1, "2", 1.0, None])
def test_layers_out_of_range(layer):
    model = tiny("gpt2")
    for ask in (model.down, model.attention, model.down_path, model.down_weight, model.check_layer):
        with pytest.raises(InputError, match="is out of range; tiny-gpt2 has layers 0 to 2"):
            ask(layer)


@pytest.mark.parametrize("index", [48, -1, "7", 2.0])
def test_neurons_out_of_range(index):
    model = tiny("gpt2")
    assert model.check_neuron(2, 47) == (2, 47)
    with pytest.raises(InputError, match="is out of range; tiny-gpt2 has 0 to 47 a layer"):
        model.check_neuron(0, index)


def test_frozen_gives_back_exactly_what_it_took():
    model = tiny("gpt2")
    parameters = list(model.hf.parameters())
    parameters[0].requires_grad_(False)
    wanted = [p.requires_grad for p in parameters]
    with pytest.raises(KeyError), frozen(model):
        assert not any(p.requires_grad for p in parameters)
        raise KeyError
    assert [p.requires_grad for p in parameters] == wanted


def test_a_model_says_what_it_is():
    assert repr(tiny("gpt2")) == "Model('tiny-gpt2', 3 layers × 48 neurons, torch.float32)"
    model = tiny("gpt2")
    assert model.device == torch.device("cpu")
    assert model.vocabulary == len(tokenizer("bpe"))
    assert model.dtype is torch.float32


def test_wrapping_puts_a_model_into_evaluation_mode_and_takes_its_class_for_a_name():
    made = wrap(hf("gpt2").train(), tokenizer("bpe"))
    assert not made.hf.training
    assert made.name == "GPT2LMHeadModel"


def test_a_head_is_needed():
    model = hf("gpt2")
    model.lm_head = None
    with pytest.raises(LayoutError, match="has no output embeddings"):
        wrap(model, tokenizer("bpe"))


def test_an_offloaded_model_gives_the_same_answers():
    """Weights that accelerate keeps elsewhere (`meta` between calls) are brought in where they are needed."""
    from accelerate import cpu_offload

    from knowedit import attribute, rank
    from knowedit.locate import attribute_many
    from knowedit.locate.neurons import vocabulary

    here, away = tiny("llama"), hf("llama")
    cpu_offload(away, execution_device=torch.device("cpu"))
    away = wrap(away, here.tokenizer)
    assert next(away.hf.parameters()).device.type == "meta"
    prompt = "The capital of France is"
    torch.testing.assert_close(attribute(away, prompt, "Paris").scores, attribute(here, prompt, "Paris").scores)
    for method in ("gradient", "logit", "ablation"):
        wanted = rank(here, prompt, "Paris", method=method)
        torch.testing.assert_close(rank(away, prompt, "Paris", method=method), wanted)
    queries = [here.query(text, "Paris") for text in (prompt, "Rome is not far from")]
    for found, query in zip(attribute_many(away, queries), queries, strict=True):
        wanted = attribute(here, query).scores
        assert_near(found.scores, wanted, size=LOGITS * wanted.abs().max().item(), operations=2 * PASS)
    assert vocabulary(away, 1, 3) == vocabulary(here, 1, 3)
    assert away.weights_hash() == here.weights_hash()
    with torch.autocast("cpu"), pytest.raises(InputError, match="autocast is on"):
        attribute(away, prompt, "Paris")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_joined_heads_are_what_their_projection_maps(family):
    model = tiny(family)
    ids = torch.tensor([model.encode(PROMPT).ids])
    seen = []
    with (
        hooked(on_input(model.heads(1), lambda x: seen.append(x)), on_output(model.heads(1), lambda x: seen.append(x))),
        torch.no_grad(),
    ):
        model.hf(input_ids=ids)
    joined, out = seen
    weight, bias = model.heads_weight(1), getattr(model.heads(1), "bias", None)
    assert joined.shape[-1] % model.n_heads == 0
    wanted = joined @ weight.T + (0 if bias is None else bias)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
