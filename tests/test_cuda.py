"""A CUDA device computes what the CPU computes: of every family the sweeps, the captured steps, the edits.

Only where there is such a device; `pytest tests/test_cuda.py --all-families` there takes all families.
"""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.rounding import ADAM, LAMBDA, LOGITS, PASS, assert_near
from support.tiny import DECODERS, FAMILIES, double, tiny

import knowedit
from knowedit.edit.covariance import covariance
from knowedit.edit.methods.rome import RomeConfig, rome_many
from knowedit.edit.methods.v_star import VStarSearch, find_v_star, request
from knowedit.edit.preserved_keys import PreservedKeys
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.facts import Fact
from knowedit.locate.attribution import AttributionConfig, attribute_many
from knowedit.models.arithmetic import split_product
from knowedit.models.arithmetic.split_product import product
from knowedit.models.passes import captured as captures
from knowedit.models.passes.decoding import _Captured, decoding
from knowedit.recall.trace.exact import TraceConfig, trace

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),  # of torch's own modules
]

FACTS = (
    Fact("{} is located in the city of", "The Eiffel Tower", "Paris", target_new="Rome"),
    Fact("The capital of {} is", "Japan", "Tokyo", target_new="Paris"),
    Fact("{} is the capital of", "Rome", "Italy", target_new="France"),
)
CONTEXTS = ("The capital", "a b c d e f")
SEARCH = VStarSearch(steps=12, lr=0.1, stop_loss=None)


@pytest.fixture
def on_both(request):
    """A family's model in float64 on the CPU and on the device."""
    with double():
        model = tiny(request.getfixturevalue("family"), torch.float64)
        yield model, knowedit.wrap(deepcopy(model.hf).cuda(), model.tokenizer, name=model.name)


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_searches_find_what_they_find_on_the_cpu(family, on_both, monkeypatch):
    replayed = []
    original = captures.captured
    monkeypatch.setattr(
        "knowedit.edit.methods.v_star.captured",
        lambda work: replayed.append(original(work)) or replayed[-1],
    )
    for search in (SEARCH, replace(SEARCH, steps=30, stop_probability=0.2, stop_loss=0.05)):
        found = [
            find_v_star(model, [request(model, fact, fact.target_new, CONTEXTS) for fact in FACTS], 0, search)
            for model in on_both
        ]
        for plain, value in zip(*found, strict=True):
            assert value.steps == plain.steps and value.reaches == plain.reaches
            assert_near(value.delta, plain.delta, size=ADAM, operations=2 * search.steps * PASS)
            assert_near(value.keys, plain.keys)
    assert replayed and all(isinstance(getattr(one, "__self__", None), torch.cuda.CUDAGraph) for one in replayed)


@pytest.mark.covered
@pytest.mark.parametrize("family", DECODERS)
def test_decoding_gives_what_it_gives_on_the_cpu(family, on_both):
    tokens = torch.tensor([[5, 9, 11, 7, 3, 8], [6, 9, 2, 7, 30, 8]])
    steps = []
    for model in on_both:
        following = decoding(model, rows=2, tokens=6)
        with torch.no_grad():
            steps.append([following(tokens[:, i : i + 1].to(model.device)).clone() for i in range(6)])
        if family in ("gpt2", "llama") and model.device.type == "cuda":
            assert isinstance(following, _Captured) and isinstance(following.replay.__self__, torch.cuda.CUDAGraph)
    for plain, one in zip(*steps, strict=True):
        assert_near(one, plain)


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_and_traces_are_those_of_the_cpu(family, on_both):
    config = AttributionConfig(nodes=4)
    found = [list(attribute_many(model, [model.query_of(fact) for fact in FACTS], config)) for model in on_both]
    for plain, one in zip(*found, strict=True):
        assert_near(one.scores, plain.scores, size=LOGITS, operations=2 * PASS)
        assert one.value == pytest.approx(plain.value, rel=1e-9)
    fact = FACTS[0]
    traces = [
        trace(model, fact.prompt, fact.target, fact.subject, TraceConfig(kinds=("state", "mlp"), draws=2))
        for model in on_both
    ]
    for kind in traces[0].effects:
        np.testing.assert_allclose(traces[1].effects[kind], traces[0].effects[kind], rtol=0, atol=1e-9)


@pytest.mark.covered
@pytest.mark.parametrize("family", DECODERS)
def test_edits_made_there_answer_as_those_made_here_and_leave_no_bit(family, on_both, tmp_path):
    answers = []
    for model in on_both:
        C = covariance(model, [0], source="builtin", tokens=300, cache=tmp_path / model.device.type)[0]
        before = model.weights_hash()
        edits = rome_many(
            model,
            FACTS[1:2],  # with the subject near enough to the end for the shortest windows of attention
            RomeConfig(layer=0, search=SEARCH, contexts=CONTEXTS),
            covariance=C,
            preserved=PreservedKeys(0, (), torch.zeros(0, model.n_neurons, dtype=torch.float64)),
        )
        pairs = [[(fact.prompt, fact.target), (fact.prompt, fact.target_new)] for fact in FACTS[1:2]]
        scores = score_edits(model, [None, *edits], [pairs[0], *pairs])
        with edits[0].applied(model):
            assert model.weights_hash() != before
            applied = knowedit.ask(model, [model.query(*pair) for pair in pairs[0]])
        assert model.weights_hash() == before
        found = [*(answer for part in scores for answer in part), *applied]
        answers.append([log_p for answer in found for log_p in answer.log_p])
    # an edit's factors are float32
    assert_near(np.array(answers[1]), np.array(answers[0]), size=LOGITS, operations=4 * PASS, dtype=torch.float32)


@pytest.mark.parametrize("rows, width, columns", [(1, 48, 32), (9, 1536, 576), (70, 200, 130), (300, 4096, 1024)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("in_parts", [False, True])
def test_products_with_weights_in_bfloat16_are_right_to_17_bits(
    rows, width, columns, transposed, in_parts, monkeypatch
):
    if in_parts:  # as where there is no Triton
        monkeypatch.setattr(split_product, "_by_rows", lambda device: split_product._in_parts)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator).cuda().requires_grad_()
    matrix = torch.randn(width, columns, generator=generator).bfloat16().cuda()
    matrix = matrix.T.contiguous().T if transposed else matrix
    slope = torch.randn(rows, columns, generator=generator).cuda()
    y = product(x, matrix)
    (gradient,) = torch.autograd.grad(y, x, slope)
    for found, left, right in ((y, x, matrix), (gradient, slope, matrix.T)):
        wanted = left.detach().double() @ right.double()
        assert (found.detach() - wanted).norm() <= 2**-16 * wanted.norm()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_attributions_of_weights_in_bfloat16_are_those_of_float32(family):
    model = tiny(family, torch.bfloat16)
    there = knowedit.wrap(deepcopy(model.hf).cuda(), model.tokenizer, name=model.name)
    config = AttributionConfig(nodes=4)
    found = [list(attribute_many(one, [one.query_of(fact) for fact in FACTS], config)) for one in (model, there)]
    for plain, one in zip(*found, strict=True):
        products = 3 * 7 + 1  # in a row; each rounds its input to 17 bits
        size = LAMBDA * 2**-16 * products**0.5 * LOGITS
        assert one.value == pytest.approx(plain.value, rel=size)
        np.testing.assert_allclose(one.scores, plain.scores, rtol=0, atol=size * plain.scores.abs().max())
