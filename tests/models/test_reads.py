"""No pass waits for its device in a layer: as many results are read of a deep model as of a shallow one."""

import pytest
from support.counts import counted
from support.tiny import tiny

from knowedit import covariance
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.models.passes.scaled_answers import ScaledAnswers
from knowedit.recall.flow.knockout import attention_knockout, sublayer_knockout
from knowedit.recall.trace.exact import TraceConfig, trace

FACT = ("The Eiffel Tower is located in the city of", "Paris", "The Eiffel Tower")


def traced(**config):
    return lambda model: trace(model, *FACT, TraceConfig(draws=2, **config))


PASSES = {
    "trace": traced(),
    "trace with severed paths": traced(kinds=(), severed=("mlp",)),
    "trace by gradients": traced(fast=True),
    "attention knockout": lambda model: attention_knockout(model, model.query(*FACT)),
    "sublayer knockout": lambda model: sublayer_knockout(model, model.query(*FACT)),
    "scaled answers": lambda model: ScaledAnswers(model, [model.query(*FACT)]).scaled(
        [[(0, 1), (2, 3)], [(1, 3)]], 0.0
    ),
    "scores of edits": lambda model: score_edits(model, [None], [[FACT[:2], ("The capital of Japan is", "Tokyo")]]),
}


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """What a model says instead of an answer is read on by as many passes as that word has tokens: not counted."""
    monkeypatch.setattr("knowedit.recall.trace.exact.says", lambda model, query: ("", 0.0))


def reads(work, layers: int) -> int:
    model = tiny("llama", num_hidden_layers=layers)
    with counted() as counts:
        work(model)
    return counts.reads


@pytest.mark.parametrize("name", PASSES)
def test_no_layer_is_waited_for(name):
    shallow, deep = (reads(PASSES[name], layers) for layers in (3, 6))
    assert 0 < shallow == deep


def test_a_trace_reads_as_seldom_of_a_long_prompt():
    model = tiny("llama")
    prompts = [f"{FACT[0]}", f"{FACT[0]} love and light, where"]
    totals = []
    for prompt in prompts:
        with counted() as counts:
            trace(model, prompt, *FACT[1:], TraceConfig(draws=2))
        totals.append(counts.reads)
    assert totals[0] == totals[1]


def test_a_covariance_of_many_batches_reads_once_at_the_end(tmp_path):
    model = tiny("llama")
    totals = []
    for tokens in (300, 2000):
        with counted() as counts:
            covariance(model, [1], source="builtin", tokens=tokens, cache=tmp_path / str(tokens))
        totals.append(counts.reads)
    assert totals[0] == totals[1]
