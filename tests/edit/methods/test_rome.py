"""ROME's algebra, in every family, and the checks of a request."""

from dataclasses import replace

import pytest
import torch
from support.rounding import ADAM, PASS, assert_near, near, rounding
from support.tiny import FAMILIES, tiny
from support.trained import facts, trained

from knowedit.answers import ask
from knowedit.edit.apply import applied
from knowedit.edit.covariance import Covariance
from knowedit.edit.methods.rome import (
    PUBLISHED,
    KeyText,
    RomeConfig,
    rome,
    rome_config,
    rome_many,
    with_contexts,
)
from knowedit.edit.methods.v_star import VStarSearch
from knowedit.edit.rewrite_quality import rewrite_quality
from knowedit.errors import InputError
from knowedit.facts import Fact
from knowedit.models.passes.replay import record

FACT = Fact("{} is located in the city of", "The Eiffel Tower", "Paris", target_new="Rome")
NEAR = replace(FACT, template="{} is")  # so near that also windows of a few tokens reach from the subject to the answer
OTHER = Fact("The capital of {} is", "Japan", "Tokyo", target_new="Paris")
CONFIG = RomeConfig(layer=1, contexts=("The capital", "a b c d"), search=VStarSearch(steps=5, lr=0.1), preserve=0.0)


def covariance(model, layer=1):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(model.n_neurons, model.n_neurons, generator=generator)
    return Covariance(layer, root @ root.T / model.n_neurons, 1000, {})


def delta_of(edit):
    ((_, delta),) = edit.deltas.items()
    return delta


def key_and_output(model, fact, layer=1):
    """The key at the lookup position of the plain prompt, and what the down-projection gives there."""
    prompt = model.encode(fact.prompt, fact.subject)
    seen = {}

    def hook(_, args, output):
        flat = args[0].reshape(-1, args[0].shape[-1])
        seen["k"], seen["v"] = flat[prompt.lookup], output.reshape(-1, output.shape[-1])[prompt.lookup]

    handle = model.down(layer).register_forward_hook(hook)
    with torch.no_grad():
        model.hf.base_model(input_ids=torch.tensor([prompt.ids]))
    handle.remove()
    return seen["k"], seen["v"]


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_the_algebra(family, doubled):
    model = tiny(family, torch.float64)
    C = covariance(model)
    k, v0 = key_and_output(model, NEAR)
    edit = rome(model, NEAR, CONFIG, covariance=C)
    delta = delta_of(edit)
    singular = torch.linalg.svdvals(delta.matrix().double())
    assert singular[1] <= rounding(singular[0])
    q = C.solve(k.double(), CONFIG.shrinkage)
    assert torch.cosine_similarity(delta.v[:, 0].double(), q, dim=0).abs() > 1 - rounding()
    (before,) = ask(model, [model.query(NEAR.prompt, NEAR.target_new)])
    with applied(model, edit):
        (after,) = ask(model, [model.query(NEAR.prompt, NEAR.target_new)])
        same, v_star = key_and_output(model, NEAR)
    assert_near(same, k)
    found = v_star - v0  # W'k* = v* exactly where δ was asked for
    assert (
        abs(after.per_token / before.per_token - 1) > 1e-6
    )  # δ reached the answer, it is not what Adam makes of rounding
    size = v_star.abs().max()
    assert found.norm().item() == near(edit.notes["delta_norm"], size=size)
    assert_near(found, delta.matrix() @ k, size=size)


@pytest.mark.parametrize("key", ["plain", "mean", "mixed"])
def test_each_key_is_mapped_as_its_name_says(key, doubled):
    model = tiny("llama", torch.float64)
    C = covariance(model)
    plain = key_and_output(model, FACT)[0].double()
    texts = [FACT.prompt, *(f"{c}. {FACT.prompt}" for c in CONFIG.contexts)]
    keys = [key_and_output(model, replace(FACT, template=t.replace(FACT.subject, "{}")))[0].double() for t in texts]
    mean = torch.stack(keys).mean(0)
    edit = rome(model, FACT, replace(CONFIG, key=key), covariance=C)
    delta = delta_of(edit).matrix().double()
    k_star = mean if key == "mean" else plain
    assert (delta @ k_star).norm().item() == near(edit.notes["delta_norm"])
    q = C.solve(plain if key == "plain" else mean, CONFIG.shrinkage)
    assert torch.cosine_similarity(delta_of(edit).v[:, 0].double(), q, dim=0) > 1 - rounding()


def test_an_edit_teaches_the_model():
    model = trained()
    known = facts()[0]
    fact = replace(
        known, target_new=next(f.target for f in facts() if f.relation == "home" and f.target != known.target)
    )
    config = RomeConfig(layer=0, contexts=(), search=VStarSearch(steps=40, lr=0.2, clamp=80.0, decay=0.0), preserve=0.0)
    keys = torch.cat([record(model, model.encode(f.prompt).ids).neurons[0] for f in facts()])
    edit = rome(model, fact, config, covariance=Covariance(0, keys.T @ keys / len(keys), len(keys), {}))
    (before,) = rewrite_quality(model, [fact])
    with edit.applied(model):
        (after,) = rewrite_quality(model, [fact])
    assert before.prompt.says_true and after.prompt.says_new and after.prompt.p_new > 0.8
    assert rewrite_quality(model, [fact]) == [before]


def test_what_edits_share_is_made_once_a_model(tmp_path, monkeypatch):
    """Another process reads contexts, C, preserved keys and the factor of both: it makes none, and the same edit."""
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    model, few = tiny("llama"), KeyText(tokens=300)
    config = replace(CONFIG, contexts=2, covariance=few, preserve=3.0)
    first = rome(model, FACT, config)

    def never(*args, **kwargs):
        raise AssertionError("this is in the cache")

    for name in ("preserved_keys.lookup_keys", "covariance._computed", "methods.rome.sample_contexts"):
        monkeypatch.setattr(f"knowedit.edit.{name}", never)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", never)
    again = rome(model, FACT, config)
    assert torch.equal(delta_of(first).u, delta_of(again).u) and torch.equal(delta_of(first).v, delta_of(again).v)
    assert first.content_hash == again.content_hash


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]"])
def test_contexts_that_are_damaged_in_the_cache_are_sampled_again(content, tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    model, config = tiny("gpt2"), replace(CONFIG, contexts=2)
    wanted = with_contexts(model, config, "a hash")
    (path,) = (tmp_path / "contexts").glob("*.json")
    path.write_text(content)
    assert with_contexts(model, config, "a hash") == wanted == with_contexts(model, config)


def test_same_request_same_edit():
    model = tiny("gpt2")
    one, two = (rome(model, FACT, replace(CONFIG, contexts=2), covariance=covariance(model)) for _ in range(2))
    assert one.content_hash == two.content_hash
    assert torch.equal(delta_of(one).u, delta_of(two).u) and torch.equal(delta_of(one).v, delta_of(two).v)
    assert one.content_hash != rome(model, OTHER, CONFIG, covariance=covariance(model)).content_hash


def test_the_number_of_threads_makes_no_other_edit():
    model = tiny("llama", hidden_size=256, intermediate_size=1024)  # as large as work is spread from
    before, edits = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            edits.append(rome(model, FACT, CONFIG, covariance=covariance(model)))
    finally:
        torch.set_num_threads(before)
    assert [edit.made["threads"] for edit in edits] == [1, 2]
    assert edits[0].content_hash == edits[1].content_hash


def test_many_edits_are_as_each_alone(doubled):
    model = tiny("llama", torch.float64)
    C = covariance(model)
    both = rome_many(model, [FACT, OTHER], CONFIG, covariance=C)
    for fact, edit in zip((FACT, OTHER), both, strict=True):
        alone = delta_of(rome(model, fact, CONFIG, covariance=C)).matrix()
        assert_near(delta_of(edit).matrix(), alone, size=ADAM, operations=2 * PASS * CONFIG.search.steps)


@pytest.mark.parametrize(
    "target_new, words",
    [
        (None, "has no target_new"),
        ("Paris", "the new answer 'Paris' is the fact's own target"),
        ("  ", "target_new is '  '"),
    ],
)
def test_requests_that_change_nothing_are_refused(target_new, words):
    with pytest.raises(InputError, match=words):
        rome(tiny("llama"), replace(FACT, target_new=target_new), CONFIG, covariance=covariance(tiny("llama")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"contexts": "The man"},
        {"contexts": True},
        {"contexts": (1, 2)},
        {"contexts": -1},
        {"lengths": 5},
        {"lengths": (0,)},
    ],
)
def test_settings_of_a_wrong_kind_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"{name} are .*, expected"):
        RomeConfig(**wrong)


def test_a_layer_out_of_range_a_wrong_covariance_and_unknown_keys_are_refused():
    model = tiny("llama")
    with pytest.raises(InputError, match="out of range"):
        rome(model, FACT, replace(CONFIG, layer=99), covariance=covariance(model))
    with pytest.raises(InputError, match="layer 2"):
        rome(model, FACT, CONFIG, covariance=covariance(model, 2))
    with pytest.raises(InputError, match="did you mean 'mean'"):
        RomeConfig(key="meen")
    with pytest.raises(InputError, match="no table"):
        rome_config(model)


def test_published_settings_are_romes():
    xl = PUBLISHED["gpt2-xl"]
    assert (xl.layer, xl.search.steps, xl.search.lr, xl.search.clamp, xl.search.kl) == (17, 20, 0.5, 4.0, 0.0625)
    assert PUBLISHED["gpt2-medium"].search.clamp == 3.0 and PUBLISHED["gpt2-medium"].layer == 8
    assert (PUBLISHED["gpt2-large"].layer, PUBLISHED["gpt-j-6b"].layer, PUBLISHED["llama-2-7b"].layer) == (12, 5, 5)
