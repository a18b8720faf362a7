"""The solvers in the table of methods: a batch of facts is a set."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from support.fact_sets import requests
from support.trained import trained

from knowedit import FactSet, InputError
from knowedit.edit.fact_set.config import layers_for
from knowedit.edit.methods.table import method_config, prepare

SETTINGS = {
    "layers": [0],
    "least": 1e-9,
    "rows": {"contexts": 1, "preserve": 0.0, "covariance": {"tokens": 400}, "search": {"steps": 3}},
}


@pytest.fixture
def editor(monkeypatch, tmp_path):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    return lambda name: prepare(trained(), name, method_config(name, SETTINGS, None, trained()), ())


@pytest.mark.parametrize("name", ["memit", "emmet", "alphaedit"])
def test_a_batch_has_the_edit_of_its_set(name, editor):
    facts = requests()[:3]
    edits = editor(name)(facts)
    assert edits[0] is edits[1] is edits[2]
    alone = FactSet(trained(), method_config(name, SETTINGS, None, trained()))
    alone.add(facts)
    assert alone.edit().factors_hash == edits[0].factors_hash


def test_batches_tell_nothing_of_one_another_and_a_fact_that_is_kept_out_has_no_edit(editor):
    make, facts = editor("memit"), requests()
    first = make(facts[:2])[0]
    contrary = replace(facts[4], id="contrary", target_new="Aldor")
    edits = make([facts[4], contrary, facts[6]])
    assert edits[:2] == [None, None] and [fact.id for fact in edits[2].facts] == [facts[6].id]
    (again,) = {edit.factors_hash for edit in make(facts[:2])}
    assert again == first.factors_hash
    assert torch.isfinite(next(iter(first.deltas.values())).matrix()).all()


def test_a_batch_whose_change_cannot_be_made_leaves_nothing_in_the_next(editor):
    make, facts = editor("emmet"), requests()
    wanted = make(facts[2:4])[0].factors_hash
    with (
        pytest.raises(InputError, match="no edit today"),
        patch.object(FactSet, "edit", side_effect=InputError("no edit today")),
    ):
        make(facts[:2])
    assert {edit.factors_hash for edit in make(facts[2:4])} == {wanted}


def test_layers_by_the_number_of_facts():
    """Four at least, one for each 32nd of a layer's neurons in facts, and a third of the model's at most."""

    class Shape:
        n_layers, n_neurons, normalised = 30, 1536, False

    for facts, layers in ((1, 4), (200, 4), (300, 6), (480, 10), (5000, 10)):
        assert layers_for(Shape, 1, facts) == tuple(range(1, 1 + layers)), facts
    assert layers_for(Shape, 28, 1) == (28, 29), "no model has more layers than it has"
    Shape.normalised = True
    assert layers_for(Shape, 3, 1000) == (3,), "what its down-projections give is not added as it is"
