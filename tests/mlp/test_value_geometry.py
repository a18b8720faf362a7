"""Angles, tails and dimensions against what is known in closed form, and against plain loops."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from support.tiny import FAMILIES, tiny

from knowedit import InputError
from knowedit.mlp.value_geometry import (  # fmt: skip
    BINS,
    GPT3_WIDTH,
    effective_dimension,
    fitting,
    geometry,
    log_tail,
    random_angles,
)


def test_the_tail_is_betas_and_goes_on_where_that_underflows():
    for d, epsilon in ((2, 0.3), (3, 0.5), (576, 0.1), (576, 0.5)):
        assert log_tail(d, epsilon) == pytest.approx(float(stats.beta.logsf(epsilon**2, 0.5, (d - 1) / 2)))
    assert log_tail(3, 0.25) == pytest.approx(math.log(0.75))  # on a sphere heights are uniform
    # by the series on both sides of the switch: smooth, and below the bound 2 exp(−dε²/2)
    values = [log_tail(GPT3_WIDTH, e) for e in (0.29, 0.30, 0.31, 0.5)]
    assert np.diff(values[:3]) == pytest.approx([values[1] - values[0]] * 2, rel=0.05)
    assert values[3] < math.log(2) - GPT3_WIDTH * 0.25 / 2 and math.isfinite(values[3])


def test_random_directions_agree_with_the_table():
    """In 50 dimensions at 60°: as many random directions as fit have about one pair that is too close."""
    fit = fitting(50, 60.0)
    n = round(10**fit.expected)
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(20):
        v = rng.normal(size=(n, 50))
        v /= np.linalg.norm(v, axis=1, keepdims=True)
        pairs.append((np.abs(v @ v.T)[np.triu_indices(n, 1)] > 0.5).sum())
    assert 0.4 < np.mean(pairs) < 1.9


def test_the_table_grows_as_angles_shrink_and_with_the_width():
    for d in (576, GPT3_WIDTH):
        counts = [fitting(d, angle).expected for angle in (89, 85, 80, 70, 60)]
        assert counts == sorted(counts) and counts[0] >= math.log10(d)
    assert fitting(GPT3_WIDTH, 85.0).bound == pytest.approx(
        GPT3_WIDTH * math.cos(math.radians(85)) ** 2 / 4 / math.log(10)
    )
    assert fitting(GPT3_WIDTH, 80.0).expected > fitting(GPT3_WIDTH, 80.0).bound > 40


def test_random_angles_are_a_distribution_and_uniform_in_the_plane():
    for d in (2, 3, 576):
        assert sum(random_angles(d)) == pytest.approx(1)
    assert random_angles(2) == pytest.approx([1 / BINS] * BINS)
    assert random_angles(3)[BINS // 2] == pytest.approx(0.5 * math.sin(math.pi / BINS), rel=1e-2)


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_against_a_plain_loop(family):
    model = tiny(family)
    found = geometry(model)
    values = model.down_weight(1).detach().double().numpy().T
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosines = unit @ unit.T
    pairs = np.array([cosines[i, j] for i, j in itertools.combinations(range(len(unit)), 2)])
    one = found.layers[1]
    assert (one.vectors, one.pairs) == (len(unit), len(pairs))
    assert one.cosine.value == pytest.approx(np.abs(pairs).mean(), abs=1e-5)
    assert one.closest == pytest.approx(math.degrees(math.acos(np.abs(pairs).max())), abs=0.02)
    assert one.interference.value == pytest.approx((np.square(cosines).sum(1) - 1).mean(), rel=1e-4)
    wanted = np.histogram(np.degrees(np.arccos(pairs)), BINS, (0, 180))[0] / len(pairs)
    assert np.abs(np.array(one.angles) - wanted).max() <= 3 / len(pairs)  # a pair on the edge of a bin
    eigenvalues = np.linalg.eigvalsh(unit.T @ unit)
    assert one.dimension == pytest.approx(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum(), rel=1e-4)
    json.dumps(found.as_dict(), allow_nan=False)


def test_random_value_vectors_are_as_random_ones():
    model = tiny("llama", intermediate_size=600)
    one = geometry(model, [0]).layers[0]
    assert one.cosine.value == pytest.approx(one.cosine_random, rel=0.02)
    assert one.interference.value == pytest.approx(one.interference_random, rel=0.02)
    assert one.dimension == pytest.approx(one.dimension_random, rel=0.02)
    assert one.beyond == pytest.approx(1e-3, rel=0.4)
    assert one.closest == pytest.approx(one.closest_random, abs=8)
    assert np.abs(np.array(one.angles) - random_angles(32)).max() < 0.005


def test_orthogonal_vectors_do_not_interfere():
    model = tiny("gpt2", n_inner=32)
    with torch.no_grad():
        model.down(0).weight.copy_(torch.eye(32))
    one = geometry(model, [0]).layers[0]
    assert one.interference.value == one.cosine.value == one.beyond == 0
    assert one.closest == 90 and one.dimension == pytest.approx(32)
    with torch.no_grad():
        model.down(0).weight[:] = torch.eye(32)[:1]  # all alike
    one = geometry(model, [0]).layers[0]
    assert one.closest == pytest.approx(0, abs=0.1) and one.dimension == pytest.approx(1)


def test_effective_dimension_of_known_spectra():
    assert effective_dimension(torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0]))) == pytest.approx(3)
    assert effective_dimension(torch.diag(torch.tensor([2.0, 1.0]))) == pytest.approx(25 / 17)
    wide = torch.randn(5, 40)
    assert effective_dimension(wide) == pytest.approx(effective_dimension(wide.T))
    assert effective_dimension(torch.zeros(3, 2)) == 0


def test_what_is_no_angle_width_or_layer_is_refused():
    for angle in (0, 90, -5, float("nan"), "80"):
        with pytest.raises(InputError, match="above 0 and below 90"):
            fitting(576, angle)
    with pytest.raises(InputError, match="2 or more"):
        fitting(1, 60.0)
    model = tiny("gpt2")
    with pytest.raises(InputError, match="out of range"):
        geometry(model, [7])
    with torch.no_grad():
        model.down(0).weight.zero_()
    with pytest.raises(InputError, match="not zero"):
        geometry(model, [0])
