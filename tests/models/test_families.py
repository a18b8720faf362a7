"""Every supported family wraps, by the table and (where it can) by structure alone, and what cannot is refused."""

import dataclasses

import pytest
import torch
import transformers as T
from support.tiny import DECODERS, FAMILIES, MASKED, N_LAYERS, PROMPT, hf, tiny, tokenizer

from knowedit import LayoutError, ModelError, wrap
from knowedit.models.layouts import LAYOUTS, Layout, find_layout

OTHER_LAYERS = {"gpt_neo": 4}
NEURONS = {"bloom": 128, "mpt": 128}  # four times d_model, which their configs cannot change
HEADS_THAT_STRUCTURE_MISSES = {  # wrapped by the table; without it they are refused with the remedy
    "opt": "project_out stands before the blocks",
    "bert": "the head transforms, acts and normalises",
    "roberta": "the head transforms, acts and normalises",
    "distilbert": "the head transforms, acts and normalises",
    "modernbert": "the head transforms, acts and normalises",
}


def wrapped(model):
    family = next(f for f in FAMILIES if model.config.model_type == f)
    return wrap(model, tokenizer(FAMILIES[family][2]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_wraps_by_the_table(family):
    model = tiny(family)
    assert model.n_layers == OTHER_LAYERS.get(family, N_LAYERS)
    assert model.masked == (family in MASKED)
    assert (model.d_model, model.n_neurons) == (32, NEURONS.get(family, 48))
    for layer in range(model.n_layers):
        assert model.down_weight(layer).shape == (model.d_model, model.n_neurons)
        assert model.hf.get_submodule(model.down_path(layer)) is model.down(layer)
        assert "att" in type(model.attention(layer)).__name__.lower()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_down_weight_and_bias_are_the_modules_own_map(family):
    model = tiny(family)
    neurons = torch.randn(5, model.n_neurons)
    for layer in range(model.n_layers):
        wanted = neurons @ model.down_weight(layer).T
        if model.down_bias(layer) is not None:
            wanted = wanted + model.down_bias(layer)
        module = model.down(layer)
        torch.testing.assert_close(module(neurons), wanted, rtol=1e-4, atol=1e-5)
        assert model.down_weight(layer).data_ptr() == module.weight.data_ptr()  # a view: edits reach the model


@pytest.mark.parametrize("family", FAMILIES)
def test_wrapping_leaves_the_model_as_it_was(family):
    model = hf(family)
    some = list(model.parameters())[1]
    some.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    wrapped(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_whoever_asks_for_a_tiny_model_has_one_that_nobody_touched(family):
    anew = wrap(hf(family), tokenizer(FAMILIES[family][2]), name=f"tiny-{family}")
    touched = tiny(family)
    with torch.no_grad():
        for weight in touched.hf.parameters():
            weight.zero_()
    touched.hf.train().register_forward_hook(print)
    model = tiny(family)
    assert {name: v for name, v in vars(model).items() if name != "hf"} == {
        name: v for name, v in vars(anew).items() if name != "hf"
    }
    found, wanted = model.hf.state_dict(), anew.hf.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not model.hf.training and not model.hf._forward_hooks
    tied = model.hf.get_input_embeddings().weight is model.unembedding.weight
    assert tied == (anew.hf.get_input_embeddings().weight is anew.unembedding.weight)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in HEADS_THAT_STRUCTURE_MISSES])
def test_a_family_wraps_by_structure_alone(family, monkeypatch):
    known = tiny(family).layout
    monkeypatch.delitem(LAYOUTS, family)
    found = tiny(family).layout
    assert (found.blocks, found.down) == (known.blocks, known.down)


@pytest.mark.parametrize("family", HEADS_THAT_STRUCTURE_MISSES)
def test_what_structure_cannot_see_is_refused_with_the_remedy(family, monkeypatch):
    known = LAYOUTS[family]
    monkeypatch.delitem(LAYOUTS, family)
    with pytest.raises(LayoutError, match=r"head .*; pass layout=knowedit.Layout"):
        tiny(family)
    by_hand = wrap(hf(family), tokenizer(FAMILIES[family][2]), layout=known)  # the remedy works
    assert by_hand.layout == known


def test_opt_without_a_projection_has_its_norm_before_the_blocks(monkeypatch):
    monkeypatch.delitem(LAYOUTS, "opt")
    with pytest.raises(LayoutError, match="head after the last block gives other logits"):
        tiny("opt", word_embed_proj_dim=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": "model.blocks"}, "has no 'model.blocks', where the layout puts blocks"),
        ({"blocks": "model.norm"}, "'model.norm' is a LlamaRMSNorm, expected a list of blocks"),
        ({"down": "mlp.fc_out"}, "has no 'mlp.fc_out', where the layout puts down"),
        ({"down": "mlp.act_fn"}, "expected a projection"),
        ({"attention": "attn"}, "has no 'attn', where the layout puts attention"),
        ({"final": ()}, "the head after the last block gives other logits"),
        ({"final": ("model.norm", "model.norm")}, "the head after the last block gives other logits"),
        ({"final": ("model.ln_f",)}, "has no 'model.ln_f', a step of the layout's head"),
        ({"final": ("model.layers",)}, "cannot run"),
        ({"down": "mlp.up_proj"}, None),
    ],
)
def test_wrong_layouts_are_refused_with_the_remedy(change, message):
    wrong = dataclasses.replace(LAYOUTS["llama"], **change)
    if message is None:  # a projection as good as any other: only its shape tells
        assert wrap(hf("llama"), tokenizer("bpe-bos"), layout=wrong).n_neurons == 32
        return
    with pytest.raises(LayoutError, match=message) as error:
        wrap(hf("llama"), tokenizer("bpe-bos"), layout=wrong)
    assert "pass layout=knowedit.Layout(blocks=" in str(error.value)


def test_a_down_projection_that_nothing_reads_is_refused():
    model = hf("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    with pytest.raises(LayoutError, match="layers.0.mlp.down_proj does not influence the output"):
        wrapped(model)


def test_layers_of_different_widths_are_refused():
    model = hf("llama")
    model.model.layers[1].mlp = type(model.model.layers[1].mlp)(T.LlamaConfig(hidden_size=32, intermediate_size=40))
    with pytest.raises(LayoutError, match="layer 0 has 48 → 32; knowedit needs the same in every layer"):
        wrapped(model)


def test_a_square_conv1d_is_turned_by_its_type_not_its_shape():
    model = tiny("gpt2", n_inner=32)
    neurons = torch.randn(5, 32)
    for layer in range(model.n_layers):
        module = model.down(layer)
        assert module.weight.shape == (32, 32)
        torch.testing.assert_close(module(neurons) - module.bias, neurons @ model.down_weight(layer).T)
        assert torch.equal(model.down_weight(layer), module.weight.T)


def test_a_square_linear_is_not_turned():
    model = tiny("llama", intermediate_size=32)
    assert torch.equal(model.down_weight(1), model.down(1).weight)


def mixtral():
    small = dict(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ids = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return T.AutoModelForCausalLM.from_config(
        T.MixtralConfig(**small, num_key_value_heads=2, num_local_experts=2, **ids)
    )


def t5():
    config = T.T5Config(
        vocab_size=300, d_model=32, d_ff=48, num_layers=2, num_heads=2, d_kv=8, decoder_start_token_id=0
    )
    return T.AutoModelForSeq2SeqLM.from_config(config)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (mixtral, "mixtral is a mixture-of-experts model .*; knowedit takes models with one MLP a block"),
        (t5, "t5 is an encoder-decoder model; knowedit takes decoders and masked language models"),
        (lambda: hf("llama").model, "LlamaModel is neither a causal nor a masked language model"),
    ],
)
def test_models_of_another_kind_are_refused(build, message):
    with pytest.raises(ModelError, match=message):
        wrap(build(), tokenizer("bpe"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(family, value):
    model = hf(family)
    down = dict(model.named_modules())[f"{LAYOUTS[family].blocks}.1.{LAYOUTS[family].down}"]
    with torch.no_grad():
        down.weight[3, 5] = value
    with pytest.raises(
        ModelError, match=rf"weight .*1.{LAYOUTS[family].down}.weight of .* holds NaN or infinite values"
    ):
        wrapped(model)


def test_a_bert_decoder_that_sees_ahead_is_refused():
    config = T.BertConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        is_decoder=False,
    )
    with pytest.raises(ModelError):
        wrap(T.BertLMHeadModel(config), tokenizer("wordpiece"))


def test_find_layout_is_the_table_entry():
    layout = find_layout(hf("gpt2"))
    assert layout is LAYOUTS["gpt2"]
    assert isinstance(layout, Layout)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readme_prompt_has_room_in_every_family(family):
    prompt = tiny(family).encode(PROMPT, "Eiffel Tower")
    assert prompt.lookup < prompt.read < len(prompt.ids)
    assert max(prompt.ids) < tiny(family).vocabulary


def test_all_22_decoders_and_4_masked_models_are_here():
    assert (len(DECODERS), len(MASKED)) == (22, 4)
    assert set(FAMILIES) <= set(LAYOUTS)
