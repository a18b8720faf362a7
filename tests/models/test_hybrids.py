"""Families whose blocks mix tokens in different ways: MLPs are looked into, attention is said to be missing."""

import numpy as np
import pytest
import torch
import transformers as T
from support.edits import random_edit
from support.rounding import rounding
from support.tiny import HYBRIDS, PROMPT, SUBJECT, TARGET, tiny, tokenizer

import knowedit
from benchmarks.reference.attribution import integrated_gradients
from benchmarks.reference.trace import tables
from knowedit import AttributionConfig, Fact, ModelError, RomeConfig, attribute, wrap
from knowedit.answers import ask
from knowedit.edit.apply import applied
from knowedit.edit.covariance import Covariance
from knowedit.edit.methods.v_star import VStarSearch
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.models.layouts import LAYOUTS
from knowedit.prompts import Query
from knowedit.recall.trace import Site, TraceConfig
from knowedit.recall.trace.noise import draw_noise

FACT = Fact("The {} is in", SUBJECT, "P", target_new="R")


def first_token(model):
    query = model.query("The Eiffel Tower is in", TARGET, SUBJECT)
    return Query(query.steps[:1], query.target_ids[:1])


@pytest.mark.parametrize("family", HYBRIDS)
def test_neurons_are_attributed_as_by_the_plain_loop(family):
    model, query = tiny(family), first_token(tiny(family))
    found = attribute(model, query, config=AttributionConfig(nodes=6, quadrature="gauss-legendre"))
    step = query.prompt
    plain = integrated_gradients(
        model, step.ids, step.read, query.target_ids[0], quadrature="gauss-legendre", nodes=6, batch=4
    )
    assert not model.cached
    assert found.scores.abs().max() > 1e-3 * found.value > 0
    assert (found.scores - plain).abs().max() <= 1e-4 * plain.abs().max()


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("family", HYBRIDS)
def test_states_and_mlps_are_traced_as_by_the_plain_loop(family):
    model = tiny(family, torch.float64)
    query = first_token(model)
    config = TraceConfig(("state", "mlp"), draws=2, window=2, noise=0.6)
    found = knowedit.trace.trace(model, query.prompt.text, TARGET, SUBJECT, config)
    start, end = found.subject_tokens
    noise = draw_noise(model, found.level, config.draws, end - start, config.seed)
    clean, low, wanted = tables(
        model, query.prompt.ids, [query.prompt.read], query.target_ids, noise, start, found.window, config.kinds,
        tokens=range(len(found.tokens)),
    )  # fmt: skip
    allowed = 1e-9 * max(clean, low)
    assert found.high == pytest.approx(clean, abs=allowed) and found.low == pytest.approx(low, abs=allowed)
    for kind, table in wanted.items():
        np.testing.assert_allclose(found.scores(kind), table, rtol=0, atol=allowed + 1e-9 * table.max().item())
        assert np.abs(found.indirect(kind)).max() > 1e-4 * clean


@pytest.mark.parametrize("family", HYBRIDS)
def test_facts_are_edited_and_edits_are_asked_in_batches(family):
    model = tiny(family)
    config = RomeConfig(layer=1, contexts=(), search=VStarSearch(steps=2, lr=0.1), preserve=0.0)
    edit = knowedit.rome(model, FACT, config, covariance=Covariance(1, torch.eye(model.n_neurons), 1000, {}))
    query = model.query(FACT.prompt, FACT.target_new, SUBJECT)
    (before,) = ask(model, [query])
    with applied(model, edit):
        (after,) = ask(model, [query])
    assert after.probability > before.probability
    other = random_edit(model, 2)
    pairs = [(FACT.prompt, "R"), (PROMPT, TARGET), ("a b c", "d")]
    together = score_edits(model, [edit, None, other], [pairs] * 3)
    for some, one in zip(together, (edit, None, other), strict=True):
        (alone,) = score_edits(model, [one], [pairs])
        for a, b in zip(some, alone, strict=True):
            np.testing.assert_allclose(a.log_p, b.log_p, rtol=0, atol=rounding(10.0))
    np.testing.assert_allclose(together[0][0].log_p, after.log_p, rtol=0, atol=rounding(10.0))


@pytest.mark.parametrize("family", HYBRIDS)
def test_the_lens_reads_and_neurons_are_suppressed(family):
    model = tiny(family)
    lens = knowedit.lens.logit_lens(model, PROMPT, TARGET)
    assert lens.n_layers == model.n_layers
    ids = torch.tensor([model.encode(PROMPT).ids])
    with torch.no_grad():
        clean = model.hf(input_ids=ids).logits
        with knowedit.suppress(model, [(1, index) for index in range(model.n_neurons)]):
            assert not torch.equal(model.hf(input_ids=ids).logits, clean)


NEEDS_ATTENTION = {
    "trace": lambda m: knowedit.trace.trace(m, PROMPT, TARGET, SUBJECT),
    "trace by gradients": lambda m: knowedit.trace.trace(m, PROMPT, TARGET, SUBJECT, TraceConfig(fast=True)),
    "severed": lambda m: knowedit.trace.trace(
        m, PROMPT, TARGET, SUBJECT, TraceConfig(("state",), severed=("attention",))
    ),
    "patch": lambda m: knowedit.trace.patch(m, PROMPT, PROMPT, [Site("attention", 1)], target=TARGET),
    "patch of a head": lambda m: knowedit.trace.patch(m, PROMPT, PROMPT, [Site("head", 1, None, 0)], target=TARGET),
    "logit attribution": lambda m: knowedit.lens.logit_attribution(m, PROMPT, TARGET),
    "recall": lambda m: knowedit.flow.recall_fact(m, FACT),
    "anatomy": lambda m: m.heads_weight(0),
}


@pytest.mark.parametrize("what", NEEDS_ATTENTION)
@pytest.mark.parametrize("family", ["lfm2", "qwen3_next", "bamba"])
def test_what_needs_attention_is_refused_by_name(family, what):
    with pytest.raises(ModelError, match=rf"tiny-{family} \({family}\) has no attention in layers? 0.*; look at MLPs"):
        NEEDS_ATTENTION[what](tiny(family))


@pytest.mark.parametrize("family", [f for f in HYBRIDS if f in LAYOUTS and f != "recurrent_gemma"])
def test_a_hybrid_wraps_by_structure_too(family, monkeypatch):
    known = tiny(family).layout
    monkeypatch.delitem(LAYOUTS, family)
    found = tiny(family).layout
    assert (found.blocks, found.down, found.attention) == (known.blocks, known.down, known.attention)


def build(name, **settings):
    config = getattr(T, f"{name}Config")(vocab_size=len(tokenizer("bpe")), hidden_size=32, **settings)
    return T.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("Mamba", dict(num_hidden_layers=2, state_size=8)),
        ("Mamba2", dict(num_hidden_layers=2, num_heads=8, head_dim=8, state_size=8, n_groups=1)),
        ("FalconMamba", dict(num_hidden_layers=2, state_size=8)),
        ("Rwkv", dict(num_hidden_layers=2, attention_hidden_size=32, intermediate_size=48)),
        (
            "Zamba2",
            dict(
                intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, mamba_headdim=8, n_mamba_heads=8,
                mamba_d_state=8, layer_types=["mamba", "hybrid"],
            ),
        ),
        (
            "NemotronH",
            dict(
                intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
                hybrid_override_pattern="M-*-", mamba_num_heads=4, mamba_head_dim=8, ssm_state_size=8, n_groups=1,
            ),
        ),
    ],
)  # fmt: skip
def test_models_without_an_mlp_in_each_block_are_refused_by_name(model, settings):
    hf_model = build(model, **settings)
    with pytest.raises(
        ModelError, match=rf"{hf_model.config.model_type} (is|has|shares) .*; knowedit takes models with one"
    ):
        wrap(hf_model, tokenizer("bpe"))
