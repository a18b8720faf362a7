"""An adapter is loaded again by PEFT before it counts, and the model is as it was."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.edits import random_edit, same, weights
from support.tiny import tiny

from knowedit import InputError, ModelError
from knowedit.edit import export as formats
from knowedit.edit.export import to_peft
from knowedit.serving import export as serving
from knowedit.serving.export import adapter_gap, export


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_peft_gives_the_logits_of_the_edited_model_and_leaves_the_model(family, tmp_path):
    model = tiny(family)
    edits = [random_edit(model, 0, 1, seed=1), random_edit(model, 1, seed=2)]
    before, modules = weights(model), dict(model.hf.named_modules())
    trained = [parameter.requires_grad for parameter in model.hf.parameters()]
    gap = export(edits, model, tmp_path / "lora", "peft")
    assert 0 <= gap < 1e-3
    assert same(weights(model), before) and dict(model.hf.named_modules()) == modules
    assert [parameter.requires_grad for parameter in model.hf.parameters()] == trained


def test_an_adapter_that_changes_nothing_is_refused_and_gone(tmp_path, monkeypatch):
    model, edit = tiny("llama"), random_edit(tiny("llama"), 1)

    def silent(*arguments, **named):
        folder = to_peft(*arguments, **named)
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file({k: torch.zeros_like(t) for k, t in tensors.items()}, folder / "adapter_model.safetensors")
        return folder

    monkeypatch.setattr(serving, "to_peft", silent)
    with pytest.raises(ModelError, match="changes nothing as PEFT loads it"):
        export([edit], model, tmp_path / "lora", "peft")
    assert not list(tmp_path.iterdir())


def test_another_adapter_has_another_gap(tmp_path):
    model = tiny("llama")
    one, other = random_edit(model, 1, seed=1), random_edit(model, 1, seed=2)
    assert adapter_gap(to_peft(one, model, tmp_path / "lora"), [other], model) > 1e-2


@pytest.mark.parametrize("to", ["checkpoint", "gguf-lora"])
def test_the_other_formats_come_through_the_same_door(to, tmp_path):
    model = tiny("llama")
    assert export([random_edit(model, 1)], model, tmp_path / "out", to) is None
    assert json.loads((tmp_path / "out" / formats.PROVENANCE).read_text())["edits"]


def test_a_format_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(InputError, match="the format is 'lora', expected peft"):
        export([random_edit(tiny("llama"), 1)], tiny("llama"), tmp_path / "out", "lora")
