"""Claims about the real default model: exact against two references, bounded in memory, quick to answer."""

import os
import subprocess
import sys

import pytest
from support.rounding import assert_near, pass_operations
from support.tiny import double

import knowedit
from benchmarks.reference.attribution import integrated_gradients
from knowedit import AttributionConfig, attribute
from knowedit.models.adapter import frozen

PROMPT, TARGET = "The Eiffel Tower is located in the city of", "Paris"

pytestmark = pytest.mark.usefixtures("all_threads")


STEEP = 155
"""w·α·F″(α) of layer 0 at 4 nodes, at most: its steepest flank (F″ = 2,200 at α = 0.35) multiplies a relative error of
α by it. So layer 0 is compared in float64, the others in float32 too."""


@pytest.fixture(scope="module")
def exact_model():
    with double():
        return knowedit.load(dtype="float64")


def scores(model, **options):
    return attribute(model, model.query(PROMPT, TARGET), config=AttributionConfig(**options)).scores


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("quadrature", ["gauss-legendre", "eleuther"])
def test_the_sweep_equals_the_plain_loop(exact_model, quadrature):
    layers = [0, 14, 29]
    query = exact_model.query(PROMPT, TARGET)
    with frozen(exact_model):
        wanted = integrated_gradients(
            exact_model,
            query.prompt.ids,
            query.prompt.read,
            query.target_ids[0],
            quadrature=quadrature,
            nodes=4,
            layers=layers,
        )
    found = scores(exact_model, quadrature=quadrature, nodes=4)
    assert_near(found[layers], wanted, size=STEEP, operations=pass_operations(exact_model))


def test_the_sweep_in_float32_differs_from_captum_and_from_float64_by_rounding(default_model, exact_model):
    found = scores(default_model, nodes=2)
    operations = pass_operations(default_model)
    assert_near(found[1:], scores(default_model, nodes=2, engine="captum")[1:], operations=operations)
    with double():
        exact = scores(exact_model, nodes=2)
    assert_near(found[1:], exact[1:], operations=operations)


def test_the_row_limit_changes_nothing_but_memory(default_model):
    few, as_many_as_fit = (scores(default_model, nodes=4, row_limit=limit) for limit in (300, None))
    assert_near(few[1:], as_many_as_fit[1:], operations=pass_operations(default_model))


def test_auto_keeps_every_gap_small(default_model):
    found = attribute(default_model, PROMPT, TARGET)
    assert found.gap.max() <= 1e-3
    assert found.nodes[0] > max(found.nodes[2:])  # only the oscillating layers were refined


def test_bfloat16_gives_the_scores_of_float32(default_model):
    half = knowedit.load(dtype="bfloat16")
    found, wanted = (attribute(model, PROMPT, TARGET, AttributionConfig(nodes=8)) for model in (half, default_model))
    assert (found.scores - wanted.scores).abs().max() <= 1e-2 * wanted.scores.max()
    assert found.gap.max() <= 1.25 * wanted.gap.max()  # of rounded weights layer 0 oscillates otherwise


@pytest.mark.usefixtures("default_model")
def test_peak_memory_is_bounded_by_the_weights():
    code = """
import resource, torch, transformers, knowedit
import transformers.models.llama.modeling_llama  # what transformers imports late
from knowedit.locate.attribution import AttributionConfig, attribute
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
knowedit.load
bare = peak()
model = knowedit.load()
attribute(model, "The Eiffel Tower is located in the city of", "Paris", AttributionConfig(nodes=64))
print((peak() - bare) / (4 * sum(p.numel() for p in model.hf.parameters())))
"""
    alone = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # what threads take is not looked at
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=alone)
    assert float(done.stdout.splitlines()[-1]) <= 1.6
