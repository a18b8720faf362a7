"""PreservedKeys keys move less, and a fact's own and its neighbours' are not among them."""

from dataclasses import replace

import pytest
import torch
from support.rounding import assert_near
from support.tiny import tiny

import knowedit.edit.preserved_keys as module
from knowedit.edit.covariance import Covariance
from knowedit.edit.preserved_keys import PreservedKeys, lookup_keys, preserved_keys
from knowedit.facts import Fact, Neighbour
from knowedit.models.passes.replay import record

FACTS = tuple(
    Fact("The capital of {} is", subject, "Paris", target_new="Rome")
    for subject in ("France", "Japan", "Italy", "São Tomé")
)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "gemma2"])
def test_keys_are_those_at_the_lookup_position(family):
    model = tiny(family)
    prompts = [model.encode(fact.prompt, fact.subject) for fact in FACTS]
    keys = lookup_keys(model, 1, prompts)
    for prompt, key in zip(prompts, keys, strict=True):
        wanted = record(model, prompt.ids).neurons[1][prompt.lookup]
        assert_near(key.float(), wanted)


def test_every_subject_is_there_in_its_prompt_and_alone():
    found = preserved_keys(tiny("llama"), 1, FACTS)
    assert found.subjects == tuple(f.subject for f in FACTS) * 2 and found.layer == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_with_the_hash_of_the_weights_they_are_kept_and_read_for_these_alone(dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    passes = []
    monkeypatch.setattr(module, "lookup_keys", lambda *args: passes.append(1) or lookup_keys(*args))
    model = tiny("llama", dtype)
    plain = preserved_keys(model, 1, FACTS)
    requests = [(1, FACTS, "one"), (2, FACTS, "one"), (1, FACTS[1:], "one"), (1, FACTS, "other")]
    first = [preserved_keys(model, layer, facts, weights_hash=name) for layer, facts, name in requests]
    assert len(passes) == 1 + len(requests)
    again = [preserved_keys(model, layer, facts, weights_hash=name) for layer, facts, name in requests]
    assert len(passes) == 1 + len(requests)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.keys, two.keys) and (one.layer, one.subjects) == (two.layer, two.subjects)
    assert torch.equal(first[0].keys, plain.keys)


def made(n=12, m=9):
    generator = torch.Generator().manual_seed(0)
    root, keys = torch.randn(n, n, generator=generator), torch.randn(m, n, generator=generator, dtype=torch.float64)
    return Covariance(0, root @ root.T / n, 100, {}), PreservedKeys(0, tuple("ABCDEFGHI"), keys)


def solve(C, preserved, k, fact, weight):
    return preserved.metric(C, weight, 1e-2, preserved.about(fact)).inverse(k[:, None])[:, 0]


def test_it_solves_with_all_keys_but_those_about_the_fact():
    C, preserved = made()
    fact = replace(
        FACTS[0], subject="B", neighbours=(Neighbour("about D, perhaps", "x", None), Neighbour("y", "x", "F"))
    )
    assert preserved.about(fact) == [1, 3, 5]
    k, weight = torch.ones(12, dtype=torch.float64), 5.0
    others = preserved.keys[[0, 2, 4, 6, 7, 8]]
    A = C.C.double() + weight / 9 * others.T @ others
    whole = C.C.double() + weight / 9 * preserved.keys.T @ preserved.keys
    A += 1e-2 * whole.diagonal().mean() * torch.eye(12)
    wanted = torch.linalg.solve(A, k)
    size = torch.linalg.cond(A) * wanted.abs().max()  # A is kept in float32, and solving multiplies its rounding
    assert_near(solve(C, preserved, k, fact, weight), wanted, size, operations=12, dtype=torch.float32)


def test_protected_keys_move_less():
    C, preserved = made()
    k = torch.randn(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fact = replace(FACTS[0], subject="nobody")

    def leak(weight):
        q = solve(C, preserved, k, fact, weight)
        return ((preserved.keys @ q) / (k @ q)).abs().mean()

    assert leak(100.0) < leak(1.0) < leak(0.0)
    assert torch.equal(solve(C, preserved, k, fact, 0.0), C.solve(k, 1e-2))
