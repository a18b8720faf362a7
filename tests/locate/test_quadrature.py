"""Each rule is what its name says: exact up to its degree, on the points that its source uses. The search for points
ends, says by what, and loses nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.rounding import assert_near
from support.tiny import PROMPT, tiny

from benchmarks.reference.attribution import layer_scores
from knowedit import AttributionConfig, attribute
from knowedit.errors import InputError
from knowedit.hooks import hooked, on_output
from knowedit.locate import quadrature
from knowedit.locate.attribution import INCOMPLETE
from knowedit.locate.integration_path import Reading, integration_paths
from knowedit.locate.quadrature import RULES, STALLS, START, rule
from knowedit.models.passes.objective import Objective
from knowedit.models.passes.replay import record
from knowedit.prompts import Query

DEGREE = {
    "auto": lambda n: 2 * n - 1,
    "gauss-legendre": lambda n: 2 * n - 1,
    "midpoint": lambda n: 1,
    "trapezoid": lambda n: 1,
}


def integral(name, n, power):
    points, weights = rule(name, n)
    return float(weights @ points**power)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("n", [2, 3, 8, 20])
def test_rules_are_exact_up_to_their_degree_and_not_beyond(name, n):
    degree = DEGREE.get(name, lambda n: 0)(n)
    if name == "eleuther":
        degree = 1  # its error at both ends is the same, so a straight line comes out right
    for power in range(degree + 1):
        assert integral(name, n, power) == pytest.approx(1 / (power + 1), abs=1e-13)
    if degree < 12:  # beyond, the error of Gauss-Legendre is below rounding
        assert abs(integral(name, n, degree + 1) - 1 / (degree + 2)) > 1e-9


@pytest.mark.parametrize("name", RULES)
def test_points_lie_on_the_path_and_weights_add_up_to_one(name):
    points, weights = rule(name, 7)
    assert points.shape == weights.shape == (7,)
    assert points.dtype == weights.dtype == np.float64
    assert points.min() >= 0 and points.max() <= 1
    assert (np.diff(points) > 0).all() and (weights > 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-14)


def test_the_published_rules_point_by_point():
    points, weights = rule("dai", 20)
    assert points.tolist() == [k / 20 for k in range(20)]
    assert set(weights) == {1 / 20}
    points, weights = rule("eleuther", 20)
    assert points[0] == 0 and points[-1] == 1 and len(points) == 20
    assert set(weights) == {1 / 20}
    assert rule("right", 4)[0].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert rule("trapezoid", 3)[1].tolist() == [0.25, 0.5, 0.25]


def test_unknown_rules_are_refused_with_a_hint():
    with pytest.raises(
        InputError, match=r"no quadrature is called 'gauss' \(did you mean 'gauss-legendre'\?\); there are"
    ):
        rule("gauss", 8)


@pytest.mark.parametrize(("name", "n"), [("left", 0), ("left", -3), ("left", 2.5), ("left", None), ("trapezoid", 1)])
def test_too_few_nodes_are_refused(name, n):
    with pytest.raises(InputError, match="nodes are too few"):
        rule(name, n)


# ------------------------------------------------------------------ the search for points

HALF = (torch.bfloat16, torch.float16)


def path_of(family, dtype=torch.float32, of="log_probability"):
    """The paths of the first token of an answer, computed in the very `dtype` of the weights."""
    model = tiny(family, dtype)
    query = model.query(PROMPT, "Paris")
    step = query.steps[0]
    reading = Reading(step.ids, [step.read], [step.read], [Objective(of, query.target_ids[0])])
    return integration_paths(model, [reading], "zero")


def refine(path, tolerance, budget, *rule):
    """Of the only prompt."""
    (found,) = quadrature.refine(path, lambda f: tolerance, budget, *rule)
    return found


def integrate(path, *rule):
    """Of the only prompt."""
    (found,) = quadrature.integrate(path, *rule)
    return found


def covers_the_whole_path(integral, path):
    """Scores of all pieces add up to F(a) − F(b): none was dropped."""
    return (integral.scores.double().sum(1) - path.clean[0] + torch.tensor(integral.baseline_values)).abs().tolist()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_search_that_rounding_keeps_from_its_tolerance_ends(family, dtype):
    path = path_of(family, dtype)
    most = 10**6
    found = refine(path, 1e-3, most)
    assert found.ended == "rounding"
    assert sum(found.nodes) < most
    assert max(covers_the_whole_path(found, path)) <= 0.1  # in units of log F, of which half keeps 8 bits


@pytest.mark.parametrize("tolerance", [1e-6, 1e-12])
def test_a_tolerance_below_the_rounding_of_float32_ends_soon(tolerance):
    found = refine(path_of("llama"), tolerance, 10**6)
    assert found.ended == "rounding"
    assert max(found.nodes) <= START * sum(8**split for split in range(STALLS + 1))


@pytest.mark.parametrize("budget", [0, 30, 100])
def test_a_budget_bounds_the_search_and_is_reported(budget):
    path = path_of("olmo2")
    found = refine(path, 1e-9, budget)
    assert found.ended == "budget"
    assert sum(found.nodes) <= max(budget, START * path.model.n_layers)
    assert path.rows[0] >= sum(found.nodes)


@pytest.mark.parametrize("family", ["olmo2", "opt", "gpt2"])
def test_a_search_cut_off_by_its_budget_holds_every_piece_of_the_path(family):
    """Its scores add up to F(a) − F(b) better and better, whatever piece the budget ended at."""
    path = path_of(family)
    exact = integrate(path, "gauss-legendre", 512)
    layers = path.model.n_layers
    first, last = (refine(path, 1e-9, START * layers * n, "gauss-legendre") for n in (1, 64))
    assert_near(first.scores, integrate(path, "gauss-legendre", START).scores)
    error = [(found.scores - exact.scores).abs().max().item() for found in (first, last)]
    assert error[1] <= max(error[0] / 4, 1e-4 * exact.scores.abs().max().item())
    for found in (first, last):
        assert found.baseline_values == exact.baseline_values


def test_the_tolerance_ends_a_search_that_reaches_it():
    path = path_of("gpt2")
    found = refine(path, 1e-3, 10**6)
    assert found.ended == "tolerance"
    assert max(covers_the_whole_path(found, path)) <= 1e-3
    assert integrate(path, "gauss-legendre", 8).ended == "nodes"


# ------------------------------------------------------------------ norms behind the MLP

WITH_NORM = ("gemma2", "gemma3_text", "olmo2", "olmo3", "glm4", "exaone4")


def query_of(model):
    query = model.query(PROMPT, "Paris")
    return Query(query.steps[:1], query.target_ids[:1])


def stretched(model, layer, recording, n):
    """α and its weights, written out: Gauss-Legendre in x with α = c sinh sinh kx and c = √ε / rms of the output."""
    kept = []
    with hooked(on_output(model.down(layer), kept.append)), torch.no_grad():
        recording.block(layer, recording.inputs[layer])
    c = math.sqrt(model.hf.config.get_text_config().rms_norm_eps) / kept[0].square().mean().sqrt().item()
    x, w = rule("gauss-legendre", n)
    k = np.arcsinh(np.arcsinh(1 / c))
    return c * np.sinh(np.sinh(k * x)), w * c * k * np.cosh(k * x) * np.cosh(np.sinh(k * x))


@pytest.mark.parametrize("family", WITH_NORM)
def test_auto_equals_a_plain_loop_over_the_points_that_it_says(family, doubled):
    model = tiny(family, torch.float64)
    query = query_of(model)
    ids, read = query.prompt.ids, query.prompt.read
    found = attribute(model, query, config=AttributionConfig(nodes=7))
    recording = record(model, ids, start=read)
    for layer in range(model.n_layers):
        alphas, weights = stretched(model, layer, recording, 7)
        plain = layer_scores(model, layer, torch.tensor([ids]), read, query.target_ids[0], alphas, weights)
        assert (found.scores[layer] - plain).abs().max() <= 1e-6 * plain.abs().max()  # c is measured, to 1e-6


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", WITH_NORM)
def test_eight_points_hold_where_a_norm_stands_behind_the_mlp(family, seed, doubled):
    """In units of log F. The reference has 1,024 textbook points, some of them below the corner."""
    model = tiny(family, torch.float64, seed=seed)
    query = query_of(model)
    config = AttributionConfig(of="log_probability", nodes=8, row_limit=4096)
    eight = attribute(model, query, config=config)
    textbook, reference = (
        attribute(model, query, config=replace(config, quadrature="gauss-legendre", nodes=nodes)) for nodes in (8, 1024)
    )
    largest = reference.scores.abs().max()
    assert (eight.scores - reference.scores).abs().max() <= 0.01 * largest
    assert eight.missing.max() <= INCOMPLETE
    assert (textbook.scores - reference.scores).abs().max() > 0.2 * largest


@pytest.mark.parametrize("family", WITH_NORM)
def test_auto_costs_what_it_costs_in_other_families(family):
    found = attribute(tiny(family), PROMPT, "Paris", AttributionConfig(of="log_probability"))
    assert found.ended == "tolerance"
    assert sum(found.nodes) <= 5 * START * len(found.nodes) * len(found.target_ids)  # textbook points: 25 times START


def test_a_baseline_that_is_not_zero_has_no_end_to_stretch():
    model = tiny("gemma2")
    baseline = torch.randn(model.n_layers, model.n_neurons)
    found, wanted = (
        attribute(model, PROMPT, "Paris", AttributionConfig(nodes=6, baseline=baseline, quadrature=name))
        for name in ("auto", "gauss-legendre")
    )
    assert torch.equal(found.scores, wanted.scores)
