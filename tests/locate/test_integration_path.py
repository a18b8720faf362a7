"""Each rule is what its name says: exact up to its degree, on the points that its source uses."""

import numpy as np
import pytest

from knowedit.errors import InputError
from knowedit.locate.integration_path import RULES, rule

DEGREE = {"gauss-legendre": lambda n: 2 * n - 1, "midpoint": lambda n: 1, "trapezoid": lambda n: 1}


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
