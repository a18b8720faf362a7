"""What is measured does not depend on how a model is compiled, on its mode, or on what surrounds the call."""

from dataclasses import replace
from functools import cache
from tempfile import TemporaryDirectory

import pytest
import torch
from support.edits import random_edit
from support.tiny import PROMPT, SUBJECT, TARGET, hf, tiny, tokenizer

import knowedit
from knowedit import AttributionConfig, Fact, InputError, ModelError, RomeConfig, wrap
from knowedit.answers import ask
from knowedit.display.result import plain
from knowedit.edit.apply import applied, apply, unedited
from knowedit.edit.covariance import Covariance
from knowedit.edit.delta import LowRank
from knowedit.edit.methods.fine_tune import FineTuneConfig
from knowedit.edit.methods.loc_ft import LocFTConfig, loc_ft
from knowedit.edit.methods.v_star import VStarSearch
from knowedit.edit.stack import HookedDelta
from knowedit.evaluate.edits.drift import Drift
from knowedit.evaluate.edits.generation import generate
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.memory.corpus_scan import neurons_at
from knowedit.models.passes.climb import Climb
from knowedit.recall.flow import RecallConfig
from knowedit.recall.trace import Site, TraceConfig
from knowedit.texts.corpus import Samples

IDS = torch.tensor([[1, 5, 9, 23]])
NEURONS = [(0, 5), (1, 3)]
OTHER = "The Eiffel Tower is located of the city in"
FACT = Fact("The {} is located in the city of", SUBJECT, "P", target_new="R")


def query(model):
    return model.query(PROMPT, TARGET, SUBJECT)


def identity(model):
    return Covariance(1, torch.eye(model.n_neurons), 1000, {})


def rome(model):
    config = RomeConfig(layer=1, contexts=("The capital",), search=VStarSearch(steps=3, lr=0.1), preserve=0.0)
    return deltas(knowedit.rome(model, FACT, config, covariance=identity(model)))


def deltas(edit):
    return [delta.matrix() for delta in edit.deltas.values()]


def attribute(model, **config):
    return knowedit.attribute(model, query(model), config=replace(AttributionConfig(nodes=4), **config)).scores


def trace(model, **config):
    return knowedit.trace.trace(model, PROMPT, TARGET, SUBJECT, TraceConfig(draws=2, **config))


def climbed(model):
    """States and keys of a prompt on its way up through two changed layers."""
    climb = Climb(model, [query(model).prompt], 0, 1)
    factors = (torch.ones(n, 1, device=model.device) / n for n in (model.d_model, model.n_neurons))
    return [climb.states, *climb.changed(0, HookedDelta([LowRank(*factors)]), 1)]


def covariance(model):
    with TemporaryDirectory() as cache:
        return knowedit.covariance(model, [1], tokens=40, source=Samples(), cache=cache, few=True)[1].C


MEASUREMENTS = {
    "answers": lambda m: ask(m, [query(m)]),
    "attribution": attribute,
    "attribution by captum": lambda m: attribute(m, engine="captum"),
    "ranking by logit": lambda m: knowedit.rank(m, query(m), method="logit"),
    "ranking by ablation": lambda m: knowedit.rank(m, query(m), method="ablation"),
    "proof": lambda m: knowedit.prove(m, NEURONS, [query(m)], draws=3),
    "trace": lambda m: trace(m),
    "trace by gradients": lambda m: trace(m, fast=True),
    "patching": lambda m: knowedit.trace.patch(m, PROMPT, OTHER, [Site("mlp", 1, 3)], target=TARGET).values,
    "lens": lambda m: knowedit.lens.logit_lens(m, PROMPT, TARGET),
    "logit attribution": lambda m: knowedit.lens.logit_attribution(m, PROMPT, TARGET),
    "recall": lambda m: knowedit.flow.recall_fact(m, FACT, config=RecallConfig()),
    "and gates": lambda m: knowedit.mlp.and_gates(m, [FACT]),
    "imputation": lambda m: knowedit.mlp.impute(m, query(m)),
    "anatomy": lambda m: knowedit.mlp.anatomy(m, [query(m).steps[0]]),
    "neurons": lambda m: [values for _, values in neurons_at(m, [(1, 2, 3)], [1])],
    "ROME": rome,
    "fine-tuning": lambda m: deltas(knowedit.fine_tune(m, FACT, FineTuneConfig(layer=1, steps=2))),
    "fact set": climbed,
    "fine-tuning on all facts": lambda m: deltas(loc_ft(m, [FACT], LocFTConfig(layer=1, passes=2))),
    "covariance": covariance,
    "scores of edits": lambda m: score_edits(m, [random_edit(m, 1)], [[(PROMPT, TARGET)]]),
    "essence drift": lambda m: Drift(m).essence([FACT], [random_edit(m, 1)]),
    "generation": lambda m: generate(m, [PROMPT], tokens=4),
    "samples": lambda m: next(Samples().batches(m, 20)),
}
GRADIENTS = (
    "attribution",
    "attribution by captum",
    "ranking by logit",
    "trace by gradients",
    "logit attribution",
    "ROME",
    "fine-tuning",
    "fine-tuning on all facts",
)
SOME = ("answers", "attribution", "trace", "ROME", "scores of edits")


def measured(model, what):
    """As JSON has it, every digit."""
    return plain(MEASUREMENTS[what](model))


@cache
def as_ever(family, what):
    return measured(tiny(family), what)


# ---------------------------------------------------------------- compiled


def compiled(name, hf):
    """`hf` compiled in one of the `WAYS`: what is called for its answers."""
    layers = hf.model.layers
    if name == "in place":
        hf.compile(backend="eager")
    elif name == "in place, one graph":
        hf.compile(backend="eager", fullgraph=True)
    elif name == "wrapper":
        return torch.compile(hf, backend="eager")
    elif name == "forward":
        hf.forward = torch.compile(hf.forward, backend="eager")
    elif name == "without its head":
        hf.model.compile(backend="eager")
    elif name == "blocks":
        for block in layers:
            block.compile(backend="eager")
    elif name == "blocks replaced":
        for i, block in enumerate(layers):
            layers[i] = torch.compile(block, backend="eager")
    elif name == "MLPs replaced":
        for block in layers:
            block.mlp = torch.compile(block.mlp, backend="eager")
    elif name == "function around it":
        return torch.compile(lambda **arguments: hf(**arguments), backend="eager")
    return hf


WAYS = (
    "in place", "in place, one graph", "wrapper", "forward", "without its head", "blocks", "blocks replaced",
    "MLPs replaced", "function around it",
)  # fmt: skip


def answered(call):
    with torch.no_grad():
        return call(input_ids=IDS).logits


def pair():
    """A model of two layers, and the same to be compiled."""
    return tiny("llama", num_hidden_layers=2), hf("llama", num_hidden_layers=2)


@pytest.mark.parametrize("way", WAYS)
def test_interventions_reach_a_compiled_model(way):
    plain_model, hf_model = pair()
    model = wrap(hf_model, tokenizer("bpe-bos"))
    call = compiled(way, hf_model)
    clean = answered(plain_model.hf)
    assert torch.equal(answered(call), clean)  # from here on it is compiled, without hooks
    with knowedit.suppress(plain_model, NEURONS):
        suppressed = answered(plain_model.hf)
    with knowedit.suppress(model, NEURONS):
        assert torch.equal(answered(call), suppressed)
    assert torch.equal(answered(call), clean)
    assert not torch.equal(suppressed, clean)


@pytest.mark.parametrize("way", ["wrapper", "MLPs replaced"])
def test_edits_reach_what_was_compiled_before_it_was_wrapped(way):
    plain_model, hf_model = pair()
    edit = random_edit(plain_model, 1)
    call = compiled(way, hf_model)
    clean = answered(call)
    model = wrap(hf_model, tokenizer("bpe-bos"))
    for mode in ("in-place", "hook"):
        with applied(plain_model, edit, mode=mode):
            edited = answered(plain_model.hf)
        handle = apply(model, edit, mode=mode)
        assert torch.equal(answered(call), edited)
        with unedited(model):
            assert torch.equal(answered(call), clean)
        handle.revert()
        assert torch.equal(answered(call), clean)
    assert not torch.equal(edited, clean)


@pytest.mark.parametrize(
    "way, what", [*(("blocks replaced", what) for what in MEASUREMENTS), *(("in place", what) for what in SOME)]
)
def test_a_compiled_model_is_measured_as_the_model_is(way, what):
    model = tiny("llama")
    answered(compiled(way, model.hf))
    assert measured(model, what) == as_ever("llama", what)


def test_a_model_that_is_compiled_among_hooks_does_not_keep_them():
    model = tiny("llama")
    clean = answered(model.hf)
    with knowedit.suppress(model, NEURONS):
        call = torch.compile(model.hf, backend="eager")
        answered(call)
    assert torch.equal(answered(call), clean)


def test_other_models_are_compiled_again_when_hooks_are_gone():
    model, calls = tiny("llama"), []

    def backend(graph, _):
        return lambda *inputs: calls.append(1) or graph(*inputs)

    other = torch.compile(torch.nn.Linear(2, 2), backend=backend)
    other(torch.ones(1, 2))
    with knowedit.suppress(model, NEURONS), knowedit.suppress(model, NEURONS):
        other(torch.ones(1, 2))
    assert len(calls) == 1
    other(torch.ones(1, 2))
    assert len(calls) == 2


# ---------------------------------------------------------------- modes


MODES = ("training", "training of the blocks", "dropout alone", "checkpoints")


def put(model, mode):
    """Into a mode in which answers are others; which modules are in training then."""
    if mode == "training of the blocks":
        model.hf.transformer.train()
    elif mode == "dropout alone":
        for module in model.hf.modules():
            module.training = isinstance(module, torch.nn.Dropout)
    else:
        model.hf.train()
    if mode == "checkpoints":
        model.hf.activation_checkpointing_enable()
    return [module.training for module in model.hf.modules()]


@pytest.mark.parametrize(
    "mode, what",
    [*(("training", what) for what in MEASUREMENTS), *((mode, what) for mode in MODES[1:] for what in SOME)],
)
def test_a_model_in_training_is_measured_as_one_in_evaluation_and_trains_on(mode, what):
    model = tiny("gpt2")
    training = put(model, mode)
    assert measured(model, what) == as_ever("gpt2", what)
    assert [module.training for module in model.hf.modules()] == training


@pytest.mark.parametrize("mode", MODES)
def test_these_modes_change_what_the_model_itself_answers(mode):
    model = tiny("gpt2")
    clean = answered(model.hf)
    put(model, mode)
    assert not torch.equal(answered(model.hf), clean)


@pytest.mark.parametrize("what", MEASUREMENTS)
def test_inference_mode_is_left_for_what_is_measured(what):
    model = tiny("llama")
    with torch.inference_mode():
        found = measured(model, what)
        assert torch.is_inference_mode_enabled()
    assert found == as_ever("llama", what)


@pytest.mark.parametrize("what", GRADIENTS)
def test_gradients_are_taken_where_they_are_switched_off(what):
    model = tiny("llama")
    with torch.no_grad():
        assert measured(model, what) == as_ever("llama", what)


@pytest.mark.parametrize("what", MEASUREMENTS)
def test_weights_of_inference_mode_are_measured_or_refused_where_gradients_go_through_them(what):
    with torch.inference_mode():
        model = tiny("llama")
    if what in GRADIENTS:
        with pytest.raises(ModelError, match=r"was made in torch.inference_mode\(\), .*; load the model outside of it"):
            measured(model, what)
    else:
        assert measured(model, what) == as_ever("llama", what)


@pytest.mark.parametrize("what", MEASUREMENTS)
def test_autocast_is_refused_before_it_rounds_what_is_measured(what):
    model = tiny("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(InputError, match="torch.autocast is on"):
        measured(model, what)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert measured(model, what) == as_ever("llama", what)


@pytest.mark.parametrize("what", SOME)
def test_a_config_that_asks_for_tuples_is_refused(what):
    model = tiny("llama")
    model.hf.config.return_dict = False
    with pytest.raises(InputError, match="set its config.return_dict to True"):
        measured(model, what)


# ---------------------------------------------------------------- modules that were replaced


def test_the_head_is_the_one_that_a_resized_vocabulary_has():
    model = tiny("llama")
    model.hf.resize_token_embeddings(model.vocabulary + 7, mean_resizing=False)
    fresh = wrap(model.hf, model.tokenizer, name=model.name)
    assert model.vocabulary == fresh.vocabulary == len(model.tokenizer) + 7
    for what in SOME:
        assert measured(model, what) == measured(fresh, what)


@pytest.mark.parametrize("path", ["model.layers.1.mlp", "model.layers.1.mlp.down_proj", "model.layers.1", "model.norm"])
def test_modules_that_somebody_replaced_are_the_ones_that_are_measured(path):
    model, other = tiny("llama"), hf("llama", seed=1)
    before = measured(model, "answers")
    model.hf.set_submodule(path, other.get_submodule(path))
    fresh = wrap(model.hf, model.tokenizer, name=model.name)
    assert measured(model, "answers") != before
    for what in SOME:
        assert measured(model, what) == measured(fresh, what)


def test_layers_that_were_cut_off_are_gone():
    model = tiny("llama")
    del model.hf.model.layers[2:]
    assert model.n_layers == 2
    assert measured(model, "attribution") == measured(wrap(model.hf, model.tokenizer, name=model.name), "attribution")
    with pytest.raises(InputError, match="has layers 0 to 1"):
        model.down(2)
