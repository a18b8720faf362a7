"""F and its gradient by blocks of the vocabulary equal autograd through all logits."""

import pytest
import torch
from support.tiny import tiny

from knowedit.models.passes import objective as objective
from knowedit.models.passes.objective import KINDS, Objective, evaluate

FAMILIES = ["gpt2", "gptj", "gemma2", "cohere", "granite", "bert"]  # plain, head bias, softcap, both scales, masked


def plain(model, normed, how):
    """F and dF/dnormed, by all logits and autograd."""
    normed = normed.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.logits(normed)
        value = {
            "probability": lambda: logits.softmax(-1)[:, how.target],
            "log_probability": lambda: logits.log_softmax(-1)[:, how.target],
            "logit": lambda: logits[:, how.target],
            "logit_difference": lambda: logits[:, how.target] - logits[:, how.foil],
        }[how.kind]()
        (gradient,) = torch.autograd.grad(value.sum(), normed)
    return value.detach(), gradient


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 64, 2048])
def test_value_and_gradient_equal_autograd(family, kind, block, monkeypatch, doubled):
    monkeypatch.setattr(objective, "BLOCK", block)
    model = tiny(family, torch.float64)
    normed = torch.randn(4, model.unembedding.weight.shape[1])
    for target in (0, 63, 64, model.vocabulary - 1):
        how = Objective(kind, target, foil=7 if kind == "logit_difference" else None)
        value, gradient = evaluate(model, normed, how, gradient=True)
        wanted, slope = plain(model, normed, how)
        assert torch.allclose(value, wanted, rtol=1e-11, atol=0)
        assert (gradient - slope).abs().max() <= 1e-11 * slope.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_is_the_same_without_a_gradient(kind):
    model = tiny("gemma2")
    normed = torch.randn(4, 32)
    how = Objective(kind, 9, 3 if kind == "logit_difference" else None)
    assert torch.equal(evaluate(model, normed, how)[0], evaluate(model, normed, how, gradient=True)[0])


@pytest.mark.parametrize("block", [16, 2048])
def test_a_probability_next_to_one_keeps_its_gradient(block, monkeypatch):
    """In float32, 1 − p is 0 here: the gradient must come from the sum over the other tokens."""
    monkeypatch.setattr(objective, "BLOCK", block)
    model = tiny("llama")
    target = 40
    with torch.no_grad():
        normed = 80 * model.unembedding.weight[target][None] / model.unembedding.weight[target].square().sum()
    how = Objective("probability", target)
    value, gradient = evaluate(model, normed, how, gradient=True)
    rows = model.unembedding.weight.double()
    logits = (normed.double() @ rows.T).detach()
    p = logits.softmax(-1)
    others = p.clone()
    others[:, target] = 0
    wanted = p[:, target : target + 1] * (others.sum(1, keepdim=True) * rows[target] - others @ rows)
    assert value.item() == 1.0
    assert wanted.abs().max() > 0
    assert (gradient.double() - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def test_logits_of_any_size_do_not_overflow():
    model = tiny("llama")
    normed = 1e4 * torch.randn(3, 32)
    for kind in ("probability", "log_probability"):
        value, gradient = evaluate(model, normed, Objective(kind, 5), gradient=True)
        assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
        torch.testing.assert_close(value, plain(model, normed, Objective(kind, 5))[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_float32(dtype):
    model = tiny("llama", dtype)
    normed = torch.randn(4, 32, dtype=dtype)
    value, gradient = evaluate(model, normed, Objective("log_probability", 5), gradient=True)
    assert value.dtype is torch.float32
    assert gradient.dtype is dtype
    wanted, slope = plain(model.hf.float() and model, normed.float(), Objective("log_probability", 5))
    assert (value - wanted).abs().max() < 0.05
    assert (gradient.float() - slope).abs().max() < 0.05 * slope.abs().max()
