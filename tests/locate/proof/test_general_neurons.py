"""Neurons that any answer needs: found on a panel of known facts, once a model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.trained import facts, trained

from knowedit.locate.config import LocateConfig
from knowedit.locate.locate import locate_fact
from knowedit.locate.proof import neuron_kinds
from knowedit.locate.proof.draws import draw
from knowedit.locate.proof.general_neurons import MASSIVE, changes_of_panel
from knowedit.locate.proof.neuron_kinds import CONTROLS, ControlPool
from knowedit.models.intervene import scale

EPS = torch.finfo(torch.float32).eps


def test_changes_of_the_panel_are_those_of_the_model_itself():
    model = trained()
    panel = ControlPool(model, facts()).controls(None, "", None, 3, sorts=("general",)).general
    changes = changes_of_panel(panel)
    layers = [layer for layer, _ in changes]
    assert all(layers.count(layer) >= MASSIVE for layer in range(model.n_layers))
    for site in list(changes)[:: max(1, len(changes) // 5)]:
        for factor, values in zip((0.0, 2.0), changes[site], strict=True):
            with torch.no_grad(), scale(model, [site], factor):
                for query, value in zip(panel.queries, values, strict=True):
                    prompt, (target,) = query.prompt, query.target_ids
                    p = model.hf(torch.tensor([prompt.ids])).logits[0, prompt.read].softmax(-1)[target].item()
                    assert value == pytest.approx(p, abs=64 * EPS)  # a probability, so at most 1


def test_a_neuron_is_general_where_other_answers_change_without_it_or_doubled(monkeypatch):
    """Of two facts of one relation and one of another; the fact's own relation, answer and subject have no say."""
    model = trained()
    zarn, other = facts()[0], facts()[-1]
    assert zarn.relation != other.relation
    pool = ControlPool(model, [zarn, other])
    monkeypatch.setattr(neuron_kinds, "changes_of_panel", lambda panel: _falling(panel, other))
    assert pool.general_neurons(None, "", None) == {(0, 0), (0, 2)}
    assert pool.general_neurons(None, "", other.relation) == {(0, 3)}
    assert pool.general_neurons(None, other.target, None) == {(0, 3)}
    assert pool.general_neurons(other.subject, "", None) == {(0, 3)}
    assert pool.general_neurons(zarn.subject, "", other.relation) == set()


def _falling(panel, other):
    """Probabilities of the panel: (0, 0) takes half of `other`'s answer away, (0, 1) a quarter, (0, 2) adds half when
    doubled, (0, 3) takes a quarter of the first fact's."""
    of_other = [query.target_ids == panel.model.query_of(other).target_ids for query in panel.queries]

    def times(factor, here=True):
        return [p * (factor if is_it == here else 1) for p, is_it in zip(panel.probability, of_other, strict=True)]

    return {
        (0, 0): [times(0.5), times(1)],
        (0, 1): [times(0.75), times(1)],
        (0, 2): [times(1), times(1.5)],
        (0, 3): [times(0.75, here=False), times(1)],
    }


def test_panels_are_of_unlike_relations_and_kept_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    model = trained()
    made = []
    monkeypatch.setattr(neuron_kinds, "changes_of_panel", lambda panel: made.append(panel) or changes_of_panel(panel))
    first, second = (ControlPool(model, facts(), weights_hash=model.weights_hash()) for _ in range(2))
    assert first.general_neurons(None, "", None) == second.general_neurons(None, "", None)
    assert len(made) == 1 and first._panels == second._panels
    assert len(made[0]) == CONTROLS
    relations = {fact.relation for fact in facts()}
    asked = {query.prompt.ids for query in made[0].queries[: len(relations)]}
    assert {fact.relation for fact in facts() if model.query_of(fact).prompt.ids in asked} == relations


def test_a_model_that_knows_nothing_has_no_general_neurons():
    assert ControlPool(trained(), ()).general_neurons(None, "", None) == set()


def test_neither_a_selection_nor_its_random_sets_hold_general_neurons(monkeypatch):
    model, fact = trained(), facts()[0]
    config = LocateConfig(attribution=replace(LocateConfig().attribution, nodes=8))
    first = next(iter(locate_fact(model, fact, config, pool=ControlPool(model, facts()))))
    monkeypatch.setattr(ControlPool, "general_neurons", lambda *args: {first})
    assert first not in list(locate_fact(model, fact, config, pool=ControlPool(model, facts())))
    layer, index = first
    activations = torch.zeros(model.n_layers, model.n_neurons)
    located = [(layer, (index + 1) % model.n_neurons)]
    rng = np.random.default_rng(0)
    for by_activation in (True, False):
        sets = draw(located, activations, 200, rng, by_activation=by_activation, left_out={first})
        assert first not in [site for sites in sets for site in sites]
