"""The layer that is best to edit: on the trained model the ground truth is tried by hand."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import hmean
from support.trained import facts, trained

from knowedit.edit.covariance import Covariance
from knowedit.edit.methods.best_layer import best_layer, layer_scores
from knowedit.edit.methods.rome import RomeConfig
from knowedit.edit.methods.v_star import VStarSearch
from knowedit.errors import InputError
from knowedit.facts import Neighbour
from knowedit.models.passes.replay import record

CONFIG = RomeConfig(contexts=(), search=VStarSearch(steps=20, lr=0.2, clamp=80.0, decay=0.0), preserve=0.0)


def development(n=3):
    homes = [f for f in facts() if f.relation == "home"]
    made = []
    for i, fact in enumerate(homes[:n]):
        others = tuple(Neighbour(f.prompt, f.target, f.subject) for f in homes[i + 4 : i + 7])
        new = next(f.target for f in homes if f.target not in {fact.target, *(o.target for o in others)})
        made.append(replace(fact, target_new=new, neighbours=others))
    return made


def covariances(model):
    keys = [record(model, model.encode(f.prompt).ids).neurons for f in facts()]
    stacked = {layer: [k[layer] for k in keys] for layer in range(model.n_layers)}

    joined = {layer: torch.cat(parts) for layer, parts in stacked.items()}
    return {layer: Covariance(layer, k.T @ k / len(k), len(k), {}) for layer, k in joined.items()}


def test_layers_are_scored_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    model, tried = trained(), []
    asked = dict(facts=development(), config=CONFIG, covariances=covariances(model))
    found = layer_scores(model, [0, 1, 2], progress=tried.append, **asked)
    assert [s.layer for s in found] == [0, 1, 2] and tried == [1, 2, 3]
    assert found[0].parts.shape == (3, 3) and found[0].score == pytest.approx(hmean(found[0].parts.mean(0)))
    assert sum(found[0].ES) > sum(found[1].ES), "the subject is looked up in layer 0; later edits come too late"
    assert found[2].score == 0, "no attention above the last layer takes anything to the answer"
    again = layer_scores(model, [0, 1, 2], progress=lambda s: pytest.fail("it was kept"), **asked)
    assert again == found
    (file,) = (tmp_path / "layers").iterdir()
    file.write_text("{damaged")
    assert layer_scores(model, [0], **asked) == found[:1]


def test_the_best_layer_needs_facts_that_the_model_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="knows none"):
        best_layer(trained(), [0], config=CONFIG, facts=())
    with pytest.raises(InputError, match="no neighbour"):
        best_layer(trained(), [0], config=CONFIG, facts=[replace(development(1)[0], neighbours=())])
    with pytest.raises(InputError, match="out of range"):
        best_layer(trained(), [7], config=CONFIG)
