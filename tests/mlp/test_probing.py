"""The probe finds what is there, finds nothing where there is nothing, and never tests what it was trained on."""

from dataclasses import replace

import numpy as np
import pytest
from support.tiny import MASKED, tiny
from support.trained import facts, trained

from knowedit import Fact, InputError
from knowedit.mlp.probing import (  # fmt: skip
    RANDOM,
    ProbeConfig,
    _folds,
    classify,
    random_neurons,
    relation_probe,
    templates,
    usable_facts,
)


def test_ridge_is_the_primal_solution_with_the_best_strength():
    """Leave-one-out by refitting without each, one after the other."""
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=(24, 40)), rng.integers(3, size=24), rng.normal(size=(9, 40))
    x[:, 3] = 7.0  # a feature that does not vary
    found = classify(x, y, new)
    spread = x.std(0)
    spread[3] = np.inf
    X, N = (x - x.mean(0)) / spread, (new - x.mean(0)) / spread
    Y = np.eye(3)[y]
    unit = np.linalg.eigvalsh(X @ X.T).clip(0).mean()

    def fit(X, Y, lam, at):
        # an intercept that is not shrunk: centre what is fitted on
        m, o = X.mean(0), Y.mean(0)
        w = np.linalg.solve((X - m).T @ (X - m) + lam * np.eye(X.shape[1]), (X - m).T @ (Y - o))
        return (at - m) @ w + o

    errors = []
    for ridge in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
        left = [Y[i] - fit(np.delete(X, i, 0), np.delete(Y, i, 0), ridge * unit, X[i : i + 1])[0] for i in range(24)]
        errors.append((np.square(left)).mean())
    best = (1e-3, 1e-2, 1e-1, 1.0, 10.0)[int(np.argmin(errors))]
    assert (found == fit(X, Y, best * unit, N).argmax(1)).all()


def test_separable_classes_are_told_apart_and_noise_is_not():
    rng = np.random.default_rng(1)
    y = np.arange(60) % 2
    x = rng.normal(size=(60, 200))
    assert (classify(x[:40], y[:40], x[40:]) == y[40:]).mean() < 0.8
    x[:, :5] += 6 * y[:, None]
    assert (classify(x[:40], y[:40], x[40:]) == y[40:]).mean() == 1


def test_the_trained_model_separates_its_relations():
    found = relation_probe(trained(), facts(), ProbeConfig(folds=3))
    assert found.relations == {"home": 12, "work": 12} and found.chance == 0.5
    assert list(found.accuracy[2]) == ["input", "gate", "up", "neurons", "output", RANDOM]
    best = found.accuracy[2]["output"]
    assert best.n == 24 and best.value > 0.9 and best.low > 0.5


def test_shuffled_relations_are_not_separated():
    names = np.random.default_rng(0).permutation(["home", "work"] * 12).tolist()
    shuffled = [replace(f, relation=n) for f, n in zip(facts(), names, strict=True)]
    found = relation_probe(trained(), shuffled, ProbeConfig(folds=3), layers=[2])
    assert all(e.low < found.chance + 0.15 for e in found.accuracy[2].values())


def test_no_tested_subject_or_template_was_trained_on():
    chosen = usable_facts(facts(), 3)
    fold = _folds(chosen, ProbeConfig(folds=3))
    for k in range(3):
        tested = {f.subject for f, own in zip(chosen, fold, strict=True) if own == k}
        trained_on = {f.subject for f, own in zip(chosen, fold, strict=True) if own != k}
        assert tested and not tested & trained_on
    for f in chosen:
        assert len(set(templates(f)[:3])) == 3


def test_the_random_expansion_has_the_layers_own_row_norms():
    import torch

    from knowedit.models.expansion import expansion

    for family in ("gpt2", "llama", "phi3"):
        model = tiny(family)
        one = expansion(model, 0)
        inputs = torch.randn(50, model.d_model)
        found = random_neurons(model, 0, one, inputs, seed=3)
        assert found.shape == (50, model.n_neurons)
        assert torch.equal(found, random_neurons(model, 0, one, inputs, seed=3))
        assert not torch.equal(found, random_neurons(model, 0, one, inputs, seed=4))


@pytest.mark.covered
@pytest.mark.parametrize("family", sorted(MASKED))
def test_masked_models_are_probed_at_their_mask(family):
    some = [
        Fact(t[0], s, "Paris", paraphrases=(t[1],), relation=t[0])
        for t in (("{} is in", "You find {} in"), ("{} speaks", "They of {} speak"))
        for s in ("Rome", "Japan", "Italy", "Zürich")
    ]
    found = relation_probe(tiny(family), some, ProbeConfig(folds=2))
    assert found.accuracy[0]["input"].n == 8


def test_too_little_to_probe_is_said():
    with pytest.raises(InputError, match="two relations or more"):
        relation_probe(trained(), [f for f in facts() if f.relation == "home"])
    with pytest.raises(InputError, match="folds"):
        ProbeConfig(folds=1)
    with pytest.raises(InputError, match="'read' or 'lookup'"):
        ProbeConfig(position="last")
