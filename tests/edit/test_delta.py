"""An edit is a frozen value: shapes, finiteness, and a hash of what it is."""

import dataclasses

import pytest
import torch
from support.edits import FACT, random_edit
from support.rounding import assert_near
from support.tiny import tiny

from knowedit import InputError
from knowedit.edit.delta import Dense, LowRank, weight_hash
from knowedit.edit.edit import Edit


@pytest.fixture(scope="module")
def model():
    return tiny("gpt2")


def test_low_rank():
    u, v, x = torch.randn(5, 2), torch.randn(7, 2), torch.randn(3, 4, 7)
    delta = LowRank(u, v)
    assert (delta.shape, delta.rank) == ((5, 7), 2)
    assert_near(delta.matrix(), torch.einsum("ok,ik->oi", u, v), operations=2)
    assert_near(delta.of(x), torch.einsum("ok,ik,rti->rto", u, v, x), operations=2 * 7)
    assert torch.linalg.matrix_rank(delta.matrix()) == 2


def test_dense():
    matrix, x = torch.randn(5, 7), torch.randn(3, 7)
    delta = Dense(matrix)
    assert (delta.shape, delta.rank) == ((5, 7), 5) and torch.equal(delta.matrix(), matrix)
    assert_near(delta.of(x), torch.einsum("oi,ri->ro", matrix, x), operations=7)


def test_inputs_in_half_precision_are_taken_as_float32():
    delta, x = LowRank(torch.randn(5, 1), torch.randn(7, 1)), torch.randn(3, 7).bfloat16()
    assert delta.of(x).dtype == torch.float32 and torch.equal(delta.of(x), delta.of(x.float()))


def test_factors_are_copies_in_float32():
    u, v = torch.randn(5, 1, dtype=torch.float64, requires_grad=True), torch.randn(1, 7).T
    delta = LowRank(u, v)
    wanted = delta.matrix()
    with torch.no_grad():
        u.zero_(), v.zero_()
    assert torch.equal(delta.matrix(), wanted) and not delta.u.requires_grad
    assert {t.dtype for t in delta.tensors().values()} == {torch.float32} and delta.v.is_contiguous()


@pytest.mark.parametrize(
    "u, v",
    [
        (torch.ones(5, 2), torch.ones(7, 3)),
        (torch.ones(5, 0), torch.ones(7, 0)),
        (torch.ones(5), torch.ones(7)),
        (torch.ones(5, 1, 1), torch.ones(7, 1, 1)),
        ([[1.0]], [[1.0]]),
        (None, torch.ones(7, 1)),
    ],
)
def test_factors_of_wrong_shapes(u, v):
    with pytest.raises(InputError, match="expected|matrix"):
        LowRank(u, v)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_factors_that_are_not_finite(value):
    """1e300 is finite in float64, but a factor is float32."""
    bad = torch.ones(5, 1, dtype=torch.float64)
    bad[3] = value
    for make in (lambda: LowRank(bad, torch.ones(7, 1)), lambda: LowRank(torch.ones(7, 1), bad), lambda: Dense(bad)):
        with pytest.raises(InputError, match="NaN or infinity"):
            make()


def test_an_edit_cannot_be_changed(model):
    edit = random_edit(model, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        edit.seed = 3
    with pytest.raises(TypeError):
        edit.deltas["other"] = edit.deltas[model.down_path(1)]
    config = {"steps": 3}
    edit = dataclasses.replace(edit, config=config)
    config["steps"] = 4
    assert edit.config["steps"] == 3


def test_edits_that_say_too_little(model):
    edit = random_edit(model, 1)
    with pytest.raises(InputError, match="without a change"):
        Edit({}, {}, "random")
    for bases in ({}, {**edit.bases, "other": ""}):
        with pytest.raises(InputError, match="base of every weight"):
            Edit(edit.deltas, bases, "random")


def test_the_same_request_has_the_same_hash(model):
    one, two = (random_edit(model, 1, 2, seed=3, config={"steps": 3, "lr": 0.5}) for _ in range(2))
    assert one.content_hash == two.content_hash
    later = dataclasses.replace(two, created="2026-01-01T00:00:00Z", versions={"torch": "9"}, notes={"loss": 1.0})
    assert later.content_hash == one.content_hash
    reordered = Edit(
        dict(reversed(one.deltas.items())), one.bases, "random", {"lr": 0.5, "steps": 3}, (FACT,), one.model, 3
    )
    assert reordered.content_hash == one.content_hash


def test_what_makes_an_edit_another_one(model):
    edit = random_edit(model, 1, rank=2, config={"steps": 3})
    path = model.down_path(1)
    delta = edit.deltas[path]
    others = [
        dataclasses.replace(edit, **change)
        for change in (
            {"deltas": {path: LowRank(1.2 * delta.u, delta.v)}},
            {"deltas": {path: LowRank(-delta.u, delta.v)}},
            {"deltas": {path: LowRank(delta.u.flip(0), delta.v)}},
            {"deltas": {path: LowRank(delta.v, delta.u)}},
            {"deltas": {model.down_path(2): delta}, "bases": {model.down_path(2): edit.bases[path]}},
            {"bases": {path: "other"}},
            {"method": "other"},
            {"config": {"steps": 4}},
            {"facts": ()},
            {"facts": (dataclasses.replace(FACT, target_new="Berlin"),)},
            {"model": "other"},
            {"seed": 1},
        )
    ]
    assert len({edit.content_hash, *(other.content_hash for other in others)}) == 1 + len(others)


def test_another_order_of_addition_is_the_same_edit_of_other_bits(model):
    for seed in range(20):
        edit = random_edit(model, 1, rank=2, seed=seed)
        path = model.down_path(1)
        delta = edit.deltas[path]
        noise = torch.randn(delta.u.shape, generator=torch.Generator().manual_seed(seed))
        near = dataclasses.replace(edit, deltas={path: LowRank(delta.u * (1 + 2e-6 * noise), delta.v)})
        assert near.content_hash == edit.content_hash and near.factors_hash != edit.factors_hash
    dense = dataclasses.replace(edit, deltas={path: Dense(delta.matrix())})  # it does the same
    assert dense.content_hash == edit.content_hash and dense.factors_hash != edit.factors_hash


def test_a_change_of_nothing_has_a_hash(model):
    zero = LowRank(torch.zeros(model.d_model, 1), torch.zeros(model.n_neurons, 1))
    edit = random_edit(model, 1)
    assert len(dataclasses.replace(edit, deltas={model.down_path(1): zero}).content_hash) == 64


def test_the_hash_of_a_weight():
    weight = torch.randn(4, 6)
    wanted = weight_hash(weight)
    assert wanted == weight_hash(weight.T.contiguous().T) == weight_hash(torch.nn.Parameter(weight.clone()))
    one_bit = weight.clone()
    one_bit.view(torch.int32)[2, 3] ^= 1
    others = [one_bit, weight.T, weight.reshape(6, 4), weight.double(), weight.bfloat16(), weight.half()]
    assert len({wanted, *map(weight_hash, others)}) == 1 + len(others)
    assert weight_hash(torch.zeros(2, 2)) != weight_hash(-torch.zeros(2, 2))


def test_the_context_of_an_edit(model):
    edit, before = random_edit(model, 1), model.weights_hash()
    with edit.applied(model) as handle:
        assert handle.edit is edit and model.weights_hash() != before
    assert model.weights_hash() == before
