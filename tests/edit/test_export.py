"""Exports as other tools load them: PEFT's merge has the bits of W + u vᵀ, a checkpoint those of the edited model."""

import json
import os
from dataclasses import replace

import peft
import pytest
import torch
import transformers
from accelerate import cpu_offload
from safetensors.torch import load_file
from support.rounding import assert_near
from support.tiny import FAMILIES, MASKED, PROMPT, SUBJECT, hf, tiny, tokenizer

from knowedit import Fact, InputError, ModelError, load, wrap
from knowedit.edit.apply import applied, apply, edits_on
from knowedit.edit.delta import Dense, LowRank
from knowedit.edit.edit import make_edit
from knowedit.edit.export import to_checkpoint, to_peft
from knowedit.edit.methods.knowledge_neurons import knowledge_neurons

# PEFT 0.21 asks transformers 5 for a property by its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FACT = Fact("The {} is located in the city of", SUBJECT, "Paris", target_new="Rome", id="eiffel")
HALF = [torch.bfloat16, torch.float16]


def random_edit(model, ranks: dict[int, int], seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    deltas = {
        layer: LowRank(*(0.3 * torch.randn(n, rank, generator=generator) for n in model.down_shape(layer)))
        for layer, rank in ranks.items()
    }
    return make_edit(model, deltas, method="random", config={}, facts=[FACT])


def adapted(family: str, folder, dtype=torch.float32):
    """A fresh model of the family with the adapter on it, as a user of PEFT gets it."""
    return peft.PeftModel.from_pretrained(hf(family, dtype), folder)


def ids(model):
    return torch.tensor([model.encode(PROMPT).ids])


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


def rewrapped(module, family: str):
    return wrap(module, tokenizer(FAMILIES[family][2]))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj", "gemma2", "bert"])
def test_peft_merges_to_the_bits_of_the_edit(family, tmp_path):
    model = tiny(family)
    edit = random_edit(model, {0: 1, 2: 1})
    folder = to_peft(edit, model, tmp_path / "lora")
    merged = rewrapped(adapted(family, folder).merge_and_unload(), family)
    for layer in range(model.n_layers):
        weight, delta = model.down_weight(layer), edit.deltas.get(model.down_path(layer))
        assert torch.equal(merged.down_weight(layer), weight if delta is None else weight + delta.matrix())
    with applied(model, edit):  # nothing else differs either
        for name, p in model.hf.named_parameters():
            assert torch.equal(p, merged.hf.get_parameter(name)), name


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_unmerged_adapter_says_what_the_edited_model_says(family, tmp_path):
    model = tiny(family)
    edit = random_edit(model, {1: 1})
    base, tokens = logits(model.hf, ids(model)), ids(model)
    with_adapter = adapted(family, to_peft(edit, model, tmp_path / "lora"))
    said = logits(with_adapter, tokens)
    with applied(model, edit):
        assert_near(said, logits(model.hf, tokens))
    assert (said - base).abs().max() > 1e-2  # an adapter that matches nothing would go unnoticed otherwise
    with with_adapter.disable_adapter():
        assert torch.equal(logits(with_adapter, tokens), base)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_half_precision_is_rounded_once(family, dtype, tmp_path):
    model = tiny(family, dtype)
    edit = random_edit(model, {1: 1})
    folder = to_peft(edit, model, tmp_path / "lora")
    assert {t.dtype for t in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}
    merged = rewrapped(adapted(family, folder, dtype).merge_and_unload(), family)
    wanted = (model.down_weight(1).float() + edit.deltas[model.down_path(1)].matrix()).to(dtype)
    assert torch.equal(merged.down_weight(1), wanted) and merged.dtype == dtype


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_several_edits_are_one_adapter(family, tmp_path):
    model = tiny(family)
    edits = [random_edit(model, {0: 1, 1: 1}, seed=1), random_edit(model, {1: 2, 2: 1}, seed=2)]
    folder = to_peft(edits, model, tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    paths = [model.down_path(layer) for layer in range(3)]
    assert config["target_modules"] == paths and (config["r"], config["lora_alpha"]) == (1, 1)
    assert config["rank_pattern"] == config["alpha_pattern"] == {paths[1]: 3}
    assert config["fan_in_fan_out"] is (family == "gpt2")
    a = load_file(folder / "adapter_model.safetensors")[f"base_model.model.{paths[1]}.lora_A.weight"]
    assert tuple(a.shape) == (3, model.n_neurons)
    merged = rewrapped(adapted(family, folder).merge_and_unload(), family)
    with applied(model, edits[0]), applied(model, edits[1]):
        for layer in range(3):
            assert_near(merged.down_weight(layer), model.down_weight(layer), operations=4)


def test_an_edit_made_on_an_edited_model_stacks(tmp_path):
    model = tiny("llama")
    first = random_edit(model, {1: 1}, seed=1)
    with applied(model, first):
        second = random_edit(model, {1: 1}, seed=2)
    to_peft([first, second], model, tmp_path / "lora")
    with pytest.raises(ModelError, match="not the one that this edit was made for"):
        to_peft(second, model, tmp_path / "alone")
    assert os.listdir(tmp_path) == ["lora"]


def test_offloaded_models_are_exported_as_adapters(tmp_path):
    model = tiny("llama")
    edits = [random_edit(model, {0: 1}), random_edit(model, {1: 1})]
    to_peft(edits, model, tmp_path / "lora")
    cpu_offload(model.hf, execution_device="cpu")
    to_peft(edits, model, tmp_path / "offloaded")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("lora", "offloaded")]
    assert files[0] == files[1]
    with pytest.raises(ModelError, match="offloaded"):
        to_checkpoint(edits, model, tmp_path / "checkpoint")


def test_a_square_projection_keeps_its_orientation(tmp_path):
    model = tiny("gpt2", n_inner=32)
    edit = random_edit(model, {1: 1})
    folder = to_peft(edit, model, tmp_path / "lora")
    merged = peft.PeftModel.from_pretrained(hf("gpt2", n_inner=32), folder).merge_and_unload()
    wanted = model.down_weight(1) + edit.deltas[model.down_path(1)].matrix()
    assert torch.equal(rewrapped(merged, "gpt2").down_weight(1), wanted)


def test_a_method_edits_export(tmp_path):
    model = tiny("llama")
    edit = knowledge_neurons(model, FACT, neurons=[(0, 1), (0, 2), (2, 3)])
    merged = adapted("llama", to_peft(edit, model, tmp_path / "lora")).merge_and_unload()
    with applied(model, edit):
        for name, p in model.hf.named_parameters():
            assert torch.equal(p, merged.get_parameter(name)), name
    provenance = json.loads((tmp_path / "lora" / "knowedit.json").read_text())
    assert provenance["edits"][0]["content_hash"] == edit.content_hash
    assert provenance["edits"][0]["facts"][0]["target_new"] == "Rome"


def test_names_the_base(tmp_path):
    model = tiny("llama")
    for name, base, wanted in (("a", None, "tiny-llama"), ("b", "owner/model", "owner/model")):
        to_peft(random_edit(model, {0: 1}), model, tmp_path / name, base=base)
        assert peft.PeftConfig.from_pretrained(tmp_path / name).base_model_name_or_path == wanted


def test_the_base_is_where_the_model_was_loaded_from(tmp_path, monkeypatch):
    model = tiny("llama")
    model.hf.save_pretrained(tmp_path / "here")
    model.tokenizer.save_pretrained(tmp_path / "here")
    monkeypatch.chdir(tmp_path)
    loaded = load("here")
    to_peft(random_edit(loaded, {0: 1}), loaded, tmp_path / "a")
    base = peft.PeftConfig.from_pretrained(tmp_path / "a").base_model_name_or_path
    assert base == str(tmp_path / "here") and load(base).n_layers == model.n_layers
    loaded.hf.name_or_path = "owner/model"
    to_peft(random_edit(loaded, {0: 1}), loaded, tmp_path / "b")
    assert peft.PeftConfig.from_pretrained(tmp_path / "b").base_model_name_or_path == "owner/model"


@pytest.mark.parametrize("write", [to_peft, to_checkpoint])
def test_exported_files_are_as_readable_as_others(write, tmp_path):
    model = tiny("llama")
    (tmp_path / "other").write_text("")
    write(random_edit(model, {0: 1}), model, tmp_path / "out")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, (tmp_path / "other").stat().st_mode)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_checkpoint_is_the_edited_model(family, dtype, tmp_path):
    model = tiny(family, dtype)
    shape = model.down_shape(2)
    dense = make_edit(model, {2: Dense(0.1 * torch.ones(shape))}, method="dense", config={}, facts=[FACT])
    edits = [random_edit(model, {0: 1, 2: 2}), dense]
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    folder = to_checkpoint(edits, model, tmp_path / "checkpoint")
    auto = transformers.AutoModelForMaskedLM if family in MASKED else transformers.AutoModelForCausalLM
    loaded = auto.from_pretrained(folder, dtype="auto").eval()
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters()) and not edits_on(model)
    with applied(model, edits[0]), applied(model, edits[1]):
        for name, p in model.hf.named_parameters():
            assert torch.equal(p, loaded.get_parameter(name)), name
        if dtype == torch.float32:  # a loaded model keeps its rotary angles in float32, a converted one does not
            assert torch.equal(logits(loaded, ids(model)), logits(model.hf, ids(model)))
    again = transformers.AutoTokenizer.from_pretrained(folder)
    assert again(PROMPT)["input_ids"] == model.tokenizer(PROMPT)["input_ids"]
    assert len(json.loads((folder / "knowedit.json").read_text())["edits"]) == 2
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_refuses_what_is_no_adapter(tmp_path):
    model = tiny("gpt2")
    dense = make_edit(model, {1: Dense(torch.ones(32, 48))}, method="fine_tune", config={}, facts=[FACT])
    with pytest.raises(InputError, match="fine_tune changes transformer.h.1.mlp.c_proj densely.*export a checkpoint"):
        to_peft([random_edit(model, {0: 1}), dense], model, tmp_path / "lora")
    with pytest.raises(InputError, match="no edit to export"):
        to_peft([], model, tmp_path / "lora")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("export", [to_peft, to_checkpoint])
def test_refuses_folders_and_models(export, tmp_path, monkeypatch):
    model = tiny("llama")
    edit = random_edit(model, {0: 1})
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there' exists already; choose a new folder"):
        export(edit, model, tmp_path / "there")
    with pytest.raises(InputError, match="is no folder; make it first"):
        export(edit, model, tmp_path / "nowhere" / "lora")
    with pytest.raises(InputError, match="no down-projection of tiny-gpt2"):
        export(edit, tiny("gpt2"), tmp_path / "lora")
    with pytest.raises(ModelError, match="not the one that this edit was made for"):
        export(edit, tiny("llama", seed=1), tmp_path / "lora")
    with pytest.raises(ModelError, match="not the one that this edit"):
        broken = replace(edit, bases={path: "0" * 64 for path in edit.bases})
        export(broken, model, tmp_path / "lora")
    handle = apply(model, edit)
    with pytest.raises(InputError, match="has edits on it \\(1\\).*revert them first"):
        export(edit, model, tmp_path / "lora")
    handle.revert()
    before = model.down_weight(0).clone()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(InputError, match="No space left on device; choose a folder"):
        export(edit, model, tmp_path / "lora")
    assert os.listdir(tmp_path) == ["there"] and torch.equal(model.down_weight(0), before)
