"""Claims about the real default model: exact against two references, bounded in memory, quick to answer."""

import subprocess
import sys

import pytest

import knowedit
from benchmarks.reference.attribution import integrated_gradients
from knowedit import AttributionConfig, attribute
from knowedit.models.adapter import frozen

PROMPT, TARGET = "The Eiffel Tower is located in the city of", "Paris"

pytestmark = pytest.mark.usefixtures("all_threads")


@pytest.fixture(scope="module")
def query(default_model):
    return default_model.query(PROMPT, TARGET)


def worst(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("rule", [("gauss-legendre", 8), ("eleuther", 20)])
def test_the_sweep_equals_the_plain_loop(default_model, query, rule):
    layers = [0, 1, 14, 29]  # layer 0 oscillates and is the hardest
    found = attribute(default_model, query, config=AttributionConfig(quadrature=rule[0], nodes=rule[1]))
    with frozen(default_model):
        wanted = integrated_gradients(
            default_model, query.prompt.ids, query.prompt.read, query.target_ids[0],
            quadrature=rule[0], nodes=rule[1], layers=layers,
        )  # fmt: skip
    assert worst(found.scores[layers], wanted) < 1e-4


def test_the_sweep_equals_captum(default_model, query):
    """At 8 nodes. Where a node falls on a steep flank of layer 0, the references themselves only repeat to 2e-4."""
    wanted = attribute(default_model, query, config=AttributionConfig(nodes=8, engine="captum")).scores
    assert worst(attribute(default_model, query, config=AttributionConfig(nodes=8)).scores, wanted) < 1e-4


@pytest.mark.usefixtures("doubled")
def test_what_differs_in_float32_is_rounding():
    """The same comparison in float64, at the nodes that repeat worst in float32."""
    model = knowedit.load(dtype="float64")
    query = model.query(PROMPT, TARGET)
    found = attribute(model, query, config=AttributionConfig(nodes=4)).scores
    with frozen(model):
        wanted = integrated_gradients(
            model, query.prompt.ids, query.prompt.read, query.target_ids[0],
            quadrature="gauss-legendre", nodes=4, layers=[0, 29],
        )  # fmt: skip
    assert worst(found[[0, 29]], wanted) < 1e-9


def test_the_row_limit_changes_nothing_but_memory(default_model, query):
    config = AttributionConfig(nodes=4)
    few = AttributionConfig(nodes=4, row_limit=300)
    wanted = attribute(default_model, query, config=config).scores
    assert worst(attribute(default_model, query, config=few).scores, wanted) < 1e-4


def test_auto_keeps_every_gap_small(default_model, query):
    found = attribute(default_model, query)
    assert found.gap.max() <= 1e-3
    assert found.nodes[0] > max(found.nodes[2:])  # only the oscillating layers were refined


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
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout.splitlines()[-1]) <= 1.6
