"""Activation patching equals hooks on whole prompts in every family, whatever is patched."""

import json
from dataclasses import replace

import pytest
import torch
from support.tiny import FAMILIES, tiny
from support.trained import trained

from knowedit import InputError
from knowedit.hooks import hooked, on_input, on_output
from knowedit.recall.trace.corruption import run
from knowedit.recall.trace.patching import Site, grid, patch


def prompts(model):
    """Two prompts that differ in two tokens."""
    clean = model.encode("The capital of Japan is")
    special = model.tokenizer.all_special_ids
    ids = tuple((i + 3) % model.vocabulary if t in (2, 3) and i not in special else i for t, i in enumerate(clean.ids))
    return clean, replace(clean, ids=ids)


def logits(model, ids, *hooks):
    tokens = torch.tensor([ids])
    with torch.no_grad(), hooked(*hooks):
        return model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def plainly(model, clean, corrupt, sites):
    """The corrupt prompt's logits with `sites` patched by hooks as the whole model runs."""
    source = run(model, torch.tensor([clean.ids]), inputs=True)
    hooks = []
    for site in sites:
        module = model.blocks[site.layer]
        values = source.states[site.layer + 1]
        if site.kind != "residual":
            sublayer = "attention" if site.kind in ("attention", "head") else "mlp"
            module = model.heads(site.layer) if sublayer == "attention" else model.down(site.layer)
            values = (source.inputs if site.kind in ("head", "neuron") else source.outputs)[sublayer][site.layer]
        size = {"head": values.shape[-1] // model.n_heads, "neuron": 1}.get(site.kind, values.shape[-1])
        part = slice((site.index or 0) * size, ((site.index or 0) + 1) * size)
        at = slice(None) if site.position is None else site.position

        def put(x, values=values, at=at, part=part):
            y = x.reshape(len(corrupt.ids), -1).clone()
            y[at, part] = values[0, at, part]
            return y.reshape(x.shape)

        hooks.append((on_input if site.kind in ("head", "neuron") else on_output)(module, put))
    return logits(model, corrupt.ids, *hooks)[:, corrupt.read]


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_site_equals_hooks_on_the_whole_model(family):
    model = tiny(family)
    clean, corrupt = prompts(model)
    last = model.n_layers - 1
    sites = [
        Site("residual", 0, 2),
        Site("residual", last, -1),
        Site("mlp", 1, 3),
        Site("attention", 1, -1),
        Site("head", 1, 3, 3),
        Site("head", 0, None, 1),
        Site("neuron", 0, 3, 5),
        [Site("mlp", 0, 2), Site("attention", 1, 3), Site("residual", 1, 1)],
    ]

    def metric(logits):
        return logits.log_softmax(-1)[:, 7]

    found = patch(model, clean, corrupt, sites, metric)
    assert found.clean == pytest.approx(metric(logits(model, clean.ids)[:, clean.read]).item(), abs=2e-5)
    assert found.corrupt == pytest.approx(metric(logits(model, corrupt.ids)[:, clean.read]).item(), abs=2e-5)
    for site, value in zip(sites, found.values, strict=True):
        wanted = plainly(model, clean, corrupt, [site] if isinstance(site, Site) else site)
        assert value == pytest.approx(metric(wanted).item(), abs=2e-5), site
    assert len({round(value, 4) for value in found.values}) > 2


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_patching_everything_gives_the_clean_run_and_nothing_the_corrupt_one(family):
    model = tiny(family)
    clean, corrupt = prompts(model)
    everything = [Site("residual", layer) for layer in range(model.n_layers)]
    first = [Site("mlp", 0), Site("attention", 0), Site("residual", 0)]
    found = patch(model, clean, corrupt, [*everything, first, []], lambda logits: logits[:, 7])
    for value in found.values[:-1]:
        assert value == pytest.approx(found.clean, abs=2e-5)
    assert found.values[-1] == found.corrupt != found.clean
    assert found.recovered[-1] == 0 and found.recovered[0] == pytest.approx(1, abs=1e-3)
    same = patch(model, clean, clean, everything, lambda logits: logits[:, 7])
    assert same.values == pytest.approx([same.clean] * len(everything), abs=2e-5)
    if same.clean == same.corrupt:
        assert same.recovered == (None,) * len(everything)


def test_named_metrics_are_those_of_the_models_logits():
    model = trained()
    clean, corrupt = "Zarn lives in", "Quill lives in"
    target, foil = (model.tokenizer.convert_tokens_to_ids(word) for word in ("Aldor", "Bexum"))
    row = logits(model, model.encode(clean).ids)[0, -1].double()
    wanted = {
        "probability": row.softmax(-1)[target],
        "log_probability": row.log_softmax(-1)[target],
        "logit": row[target],
        "logit_difference": row[target] - row[foil],
    }
    for name, value in wanted.items():
        foil = "Bexum" if name == "logit_difference" else None
        found = patch(model, clean, corrupt, grid(model, "residual", range(3)), name, target="Aldor", foil=foil)
        assert found.clean == pytest.approx(value.item(), rel=1e-5) and found.metric == name
        assert found.clean > found.corrupt
        assert found.recovered[-1] == pytest.approx(1, abs=1e-4)  # the last token after the last layer
        record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert record["patched"][0]["sites"] == [{"kind": "residual", "layer": 0, "position": 0}]
        assert record["tokens"][0] == ["Zarn", "Quill"]


def test_a_grid_has_every_token_and_layer_or_every_head():
    model = tiny("llama")
    assert grid(model, "mlp", [1, 2])[:4] == [
        Site("mlp", 0, 1),
        Site("mlp", 1, 1),
        Site("mlp", 2, 1),
        Site("mlp", 0, 2),
    ]
    assert len(grid(model, "head", [1, 2])) == model.n_layers * model.n_heads


@pytest.mark.parametrize(
    "change, words",
    [
        ({"corrupt": "You will find Quill in"}, "3 tokens and the corrupt one 5"),
        ({"sites": [Site("residuals", 0)]}, "did you mean 'residual'"),
        ({"sites": ["mlp"]}, "unknown"),
        ({"sites": [Site("mlp", 9)]}, "layer 9 is out of range"),
        ({"sites": [Site("mlp", 0, 3)]}, "position 3"),
        ({"sites": [Site("head", 0)]}, "needs the index"),
        ({"sites": [Site("mlp", 0, None, 2)]}, "takes no index"),
        ({"sites": [Site("head", 0, None, 4)]}, "head 4 is out of range"),
        ({"sites": [Site("neuron", 0, None, 999)]}, "neuron index 999"),
        ({"metric": "logits"}, "did you mean 'logit'"),
        ({"target": None}, "needs a target"),
        ({"metric": "logit_difference"}, "a foil"),
        ({"metric": "logit", "foil": "Bexum"}, "a foil"),
        ({"metric": "logit_difference", "foil": "Aldor"}, "same token"),
        ({"clean": "Zarn " * 40, "corrupt": "Quill " * 40}, "at most 32"),
    ],
)
def test_what_cannot_be_patched_is_refused(change, words):
    given = {"clean": "Zarn lives in", "corrupt": "Quill lives in", "sites": [], "target": "Aldor"} | change
    with pytest.raises(InputError, match=words):
        patch(trained(), **given)


def test_masks_at_different_tokens_are_refused():
    model = tiny("bert")
    texts = ("The [MASK] is a city", "The city is a [MASK]")
    with pytest.raises(InputError, match="masks at different tokens"):
        patch(model, *texts, [], "logit", target=".")
