"""The sweep gives the scores that captum and the field's plain loop give, on every family.

Errors are relative to the largest score of a prompt: 1e-4 in float32, 1e-9 in float64 (all of it in float64, what
transformers casts up to float32 inside included).
"""

from dataclasses import replace

import pytest
import torch
from support.tiny import DECODERS, FAMILIES, PROMPT, double, tiny

from benchmarks.reference.attribution import integrated_gradients
from knowedit import AttributionConfig, InputError, attribute
from knowedit.hooks import hooked, on_input
from knowedit.locate.quadrature import RULES, rule
from knowedit.prompts import Query

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
FINE = TOLERANCE[torch.float64]
NARROW = ("mistral", "qwen2", "gemma3_text")  # in their upper layers no token sees further back than four


@pytest.fixture(
    params=[pytest.param(torch.float32, marks=pytest.mark.covered), torch.float64], ids=["float32", "float64"]
)
def dtype(request):
    if request.param is torch.float32:
        yield request.param
        return
    with double():
        yield request.param


def error(found, wanted):
    """The largest difference, relative to the largest score."""
    return ((found.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()


def first_token(model, target="Paris"):
    """A query for the first token of a target."""
    query = model.query(PROMPT, target, "Eiffel Tower")
    return Query(query.steps[:1], query.target_ids[:1])


def both(model, query, **options):
    """The textbook rule, at the same points by both engines."""
    config = AttributionConfig(**{"nodes": 6, "quadrature": "gauss-legendre", **options})
    return attribute(model, query, config=config), attribute(model, query, config=replace(config, engine="captum"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_captum_the_plain_loop_and_itself_in_small_parts(family, dtype):
    model, allowed = tiny(family, dtype), TOLERANCE[dtype]
    query = first_token(model)
    sweep, captum = both(model, query)
    step = query.prompt
    plain = integrated_gradients(
        model, step.ids, step.read, query.target_ids[0], quadrature="gauss-legendre", nodes=6, batch=4
    )
    assert sweep.scores.abs().max() > 1e-3 * sweep.value > 0  # there is something to compare
    assert error(sweep.scores, captum.scores) <= allowed
    assert error(sweep.scores, plain) <= allowed
    assert error(sweep.span, captum.span) <= allowed
    for row_limit in (1, 7):
        parts = attribute(
            model, query, config=AttributionConfig(nodes=6, quadrature="gauss-legendre", row_limit=row_limit)
        )
        assert error(parts.scores, sweep.scores) <= allowed
        assert parts.rows == sweep.rows and parts.row_layers == sweep.row_layers


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "bert"])
@pytest.mark.parametrize("quadrature", [name for name in RULES if name != "auto"])  # which is a choice among them
def test_every_rule_equals_the_plain_loop_and_captum_where_it_has_it(family, quadrature, doubled):
    model = tiny(family, torch.float64)
    query = first_token(model)
    config = AttributionConfig(quadrature=quadrature, nodes=5)
    sweep = attribute(model, query, config=config)
    step = query.prompt
    plain = integrated_gradients(model, step.ids, step.read, query.target_ids[0], quadrature=quadrature, nodes=5)
    assert error(sweep.scores, plain) <= FINE
    config = replace(config, engine="captum")
    if quadrature in ("trapezoid", "eleuther"):
        with pytest.raises(
            InputError, match=f"engine 'captum' has no rule '{quadrature}'; it has auto, gauss-legendre, "
        ):
            attribute(model, query, config=config)
        return
    assert error(sweep.scores, attribute(model, query, config=config).scores) <= FINE


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "cohere", "granite", "gptj", "roberta"])
@pytest.mark.parametrize("of", ["probability", "log_probability", "logit", "logit_difference"])
def test_every_f_equals_captum_with_scaled_and_capped_logits(family, of, doubled):
    model = tiny(family, torch.float64)
    sweep, captum = both(model, first_token(model), of=of, foil="Rome" if of == "logit_difference" else None)
    assert error(sweep.scores, captum.scores) <= FINE
    assert sweep.value == pytest.approx(captum.value, rel=1e-12)
    assert error(sweep.span, captum.span) <= FINE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("position", ["lookup", 1, -3])
def test_other_positions_equal_captum(family, position, doubled):
    model = tiny(family, torch.float64)
    sweep, captum = both(model, first_token(model), position=position)
    if family in NARROW and position != -3:  # the windows of all layers together do not reach that far
        assert not captum.scores.any() and not sweep.scores.any()
        return
    assert captum.scores.abs().max() > 1e-6 * captum.value
    assert error(sweep.scores, captum.scores) <= FINE


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("of", ["probability", "log_probability"])
def test_joint_targets_equal_captum(family, of, doubled):
    model = tiny(family, torch.float64)
    query = model.query(PROMPT, "Zurichq")
    assert len(query.target_ids) > 2
    sweep, captum = both(model, query, of=of, joint=True, nodes=4)
    assert error(sweep.scores, captum.scores) <= FINE
    assert sweep.value == pytest.approx(captum.value, rel=1e-12)


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_joint_targets_equal_a_plain_loop_over_the_product(family, doubled):
    model = tiny(family, torch.float64)
    query = model.query(PROMPT, "Zurichq")
    found = attribute(model, query, config=AttributionConfig(joint=True, nodes=4))
    tokens = torch.tensor([query.steps[-1].ids])
    reads = [step.read for step in query.steps]
    for layer in range(model.n_layers):
        kept = []
        with hooked(on_input(model.down(layer), kept.append)), torch.no_grad():
            model.hf(input_ids=tokens)
        clean = kept[0].reshape(tokens.shape[1], -1)[reads].clone()
        total = torch.zeros_like(clean)
        for alpha, weight in zip(*rule("gauss-legendre", 4), strict=True):
            point = (float(alpha) * clean).requires_grad_()

            def patch(x, point=point):
                rows = x.reshape(tokens.shape[1], -1).clone()
                rows[reads] = point
                return rows.reshape(x.shape)

            with hooked(on_input(model.down(layer), patch)):
                p = model.hf(input_ids=tokens).logits[0].softmax(-1)
            joint = torch.stack([p[r, t] for r, t in zip(reads, query.target_ids, strict=True)]).prod()
            total += float(weight) * torch.autograd.grad(joint, point)[0]
        assert error(found.scores[layer], (total * clean).sum(0)) <= FINE


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_of_several_tokens_equal_captum_token_by_token(family, doubled):
    model = tiny(family, torch.float64)
    query = model.query(PROMPT, "Bordeauxs")
    sweep, captum = both(model, query, nodes=4)
    assert len(sweep.by_token) == len(query.target_ids) > 1
    for ours, theirs in zip(sweep.by_token, captum.by_token, strict=True):
        assert error(ours, theirs) <= FINE


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bert"])
def test_a_baseline_other_than_zero_equals_captum(family, dtype):
    model = tiny(family, dtype)
    baseline = torch.randn(model.n_layers, model.n_neurons)
    sweep, captum = both(model, first_token(model), baseline=baseline)
    zero = attribute(model, first_token(model), config=AttributionConfig(nodes=6))
    assert error(sweep.scores, captum.scores) <= TOLERANCE[dtype]
    assert error(sweep.scores, zero.scores) > 0.01


def test_captum_says_what_it_cannot_do():
    model = tiny("gpt2")
    query = first_token(model)
    with pytest.raises(InputError, match="was given 'auto' nodes, expected a number of at least 1 .* such as nodes=20"):
        attribute(model, query, config=AttributionConfig(engine="captum"))
    with pytest.raises(InputError, match="was given 1 nodes, expected a number of at least 2 for left"):
        attribute(model, query, config=AttributionConfig(engine="captum", quadrature="left", nodes=1))


def test_captum_leaves_the_model_as_it_was():
    model = tiny("gpt2")
    before = model.weights_hash()
    attribute(model, first_token(model), config=AttributionConfig(engine="captum", nodes=2))
    assert model.weights_hash() == before
    assert all(p.requires_grad and p.grad is None for p in model.hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
