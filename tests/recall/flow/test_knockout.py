"""Knockouts: what is blocked carries nothing, and rows of a sweep are what the altered model gives."""

import pytest
import torch
from support.rounding import near_probability
from support.tiny import DECODERS, FAMILIES, PROMPT, SUBJECT, TARGET, double, tiny

from knowedit import InputError, ModelError
from knowedit.hooks import hooked, on_output
from knowedit.models.passes.replay import record
from knowedit.recall.flow.attention_mask import on_blocked
from knowedit.recall.flow.knockout import (
    AttentionKnockout,
    SublayerKnockout,
    attention_knockout,
    knocked_out,
    source_sets,
    sublayer_knockout,
    windows,
)

ALIBI = "falcon with alibi"
EAGER = [f"{family}, eager" for family in ("llama", "mistral", "gpt_neox", "bert", "modernbert")]


def built(name, dtype=torch.float32):
    if name == ALIBI:
        return tiny("falcon", dtype, alibi=True)
    family, _, kernel = name.partition(", ")
    return tiny(family, dtype, **({"attn_implementation": kernel} if kernel else {}))


def asked(model):
    return model.query(PROMPT, TARGET, SUBJECT)


def plain(model, query, cut=None):
    """The target's probability by whole runs of the whole model, one a step, with the cut's hooks on every layer."""
    result = 1.0
    for step, target in zip(query.steps, query.target_ids, strict=True):
        length = len(step.ids)
        hooks = []
        if isinstance(cut, AttentionKnockout):
            blocked = torch.zeros(1, length, length, dtype=torch.bool)
            for q in (q for q in cut.queries if q < length):
                for s in (s for s in cut.sources if s < length):
                    blocked[0, q, s] = True
            hooks = [on_blocked(model, layer, blocked, []) for layer in cut.layers]
        elif cut is not None:
            places = [p for p in cut.positions if p < length]

            def silent(x, places=places, length=length):
                rows = x.reshape(length, -1).clone()
                rows[places] = 0
                return rows.reshape(x.shape)

            module = {"mlp": model.down, "attention": model.heads}[cut.sublayer]
            hooks = [on_output(module(layer), silent) for layer in cut.layers]
        tokens = torch.tensor([step.ids])
        with torch.no_grad(), hooked(*hooks):
            logits = model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
        result *= logits[0, step.read].double().softmax(-1)[target].item()
    return result


@pytest.mark.parametrize("name", [*FAMILIES, ALIBI, *EAGER])
def test_what_is_blocked_carries_nothing(name):
    """Change the tokens that one token may not see: its attention stays, bit by bit; seen, they change it."""
    model = built(name)
    ids = model.encode(PROMPT, SUBJECT).ids
    recording = record(model, ids)
    query, sources = len(ids) - 3, [len(ids) - 5, len(ids) - 4]  # within the sliding windows
    blocked = torch.zeros(1, len(ids), len(ids), dtype=torch.bool)
    blocked[0, query, sources] = True
    for layer in range(model.n_layers):
        rows = recording.inputs[layer].repeat(2, 1, 1)
        rows[1, sources] = torch.randn(2, model.d_model)
        with torch.no_grad():
            seen = recording.block(layer, rows)[:, query]
            with hooked(on_blocked(model, layer, blocked, [])):
                hidden = recording.block(layer, rows)
        assert (seen[0] - seen[1]).abs().max() > 1e-3
        assert (hidden[0, query] - hidden[1, query]).abs().max() <= 1e-6 * hidden.abs().max()
        assert (hidden[0, query] - seen[0]).abs().max() > 1e-4  # and not seeing them is something else
        others = [i for i in range(len(ids)) if i != query]
        with torch.no_grad():
            clean = recording.block(layer, rows[:1])[0]
        assert (hidden[0, others] - clean[others]).abs().max() <= 1e-5 * clean.abs().max()  # nobody else is touched


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bert"])
def test_weights_of_blocked_edges_are_zero(family):
    model = built(f"{family}, eager")
    ids = model.encode(PROMPT, SUBJECT).ids
    recording = record(model, ids)
    blocked = torch.zeros(1, len(ids), len(ids), dtype=torch.bool)
    blocked[0, -1, [len(ids) - 3, len(ids) - 2]] = True
    weights = []
    own = model.attention(1) if family != "bert" else model.attention(1).self
    handle = own.register_forward_hook(lambda _, __, output: weights.append(output[1]))
    with hooked(on_blocked(model, 1, blocked, [])), torch.no_grad():
        recording.block(1, recording.inputs[1])
    handle.remove()
    (found,) = weights
    assert found.shape[-2:] == (len(ids), len(ids))
    assert (found[..., -1, -3:-1] == 0).all()
    assert (found[..., -1, -1] > 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found.sum(-1)))


@pytest.mark.usefixtures("doubled")
@pytest.mark.parametrize("name", [*FAMILIES, ALIBI])
def test_rows_equal_the_altered_model(name):
    """Every kind of knockout in one sweep, each equal to whole runs of the whole model with it."""
    model = built(name, torch.float64)
    query = asked(model)
    sets = source_sets(query)
    reads = tuple(step.read for step in query.steps)
    lookup, top = query.prompt.lookup, model.n_layers - 1
    window = (0, 1)
    cuts = [
        AttentionKnockout((1,), reads, (reads[0] - 1,)),
        AttentionKnockout((), reads, sets["subject"]),
        AttentionKnockout((top,), reads, sets["subject"]),
        AttentionKnockout((0, 1), reads, sets["relation"])
        if not sliding(model)
        else AttentionKnockout((0,), reads, sets["subject"]),
        AttentionKnockout((0,), (lookup,), (lookup - 1,)),
        AttentionKnockout((1, top), (reads[0] - 1, reads[0]), (lookup, reads[0] - 2)),
        SublayerKnockout(window, "mlp", (lookup,)),
        SublayerKnockout(window, "attention", (lookup,)),
        SublayerKnockout((top,), "mlp", reads),
        SublayerKnockout((1,), "attention", (lookup, reads[0])),
    ]
    clean, after = knocked_out(model, query, cuts)
    assert clean == pytest.approx(plain(model, query), rel=1e-8)
    assert after[1] == clean
    for cut, found in zip(cuts, after, strict=True):
        assert found == pytest.approx(plain(model, query, cut), rel=1e-8), cut
    different = len({round(p / clean, 6) for p in after})
    assert different > (4 if sliding(model) else 7)  # they do something; a window may hide the subject


def sliding(model):
    return getattr(model.hf.config, "sliding_window", None) is not None or model.hf.config.model_type == "gpt_neo"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_knockout_changes_nothing(family):
    model = tiny(family)
    query = asked(model)
    clean, after = knocked_out(
        model, query, [AttentionKnockout((), (query.prompt.read,), (0,)), SublayerKnockout((), "mlp", (1,))]
    )
    assert after.tolist() == [clean, clean]
    later = AttentionKnockout(
        (1,), (query.prompt.lookup,), (query.prompt.lookup + 1,)
    )  # a decoder never sees what comes after
    if not model.masked:
        assert knocked_out(model, query, [later])[1][0] == near_probability(clean)


def test_all_windows_and_sets_at_once_agree_with_the_plain_loop():
    model = tiny("llama")
    query = asked(model)
    found = attention_knockout(model, query, window=2)
    assert list(found.after) == ["subject", "relation", "last", "first"]
    reads = tuple(step.read for step in query.steps)
    for name, tokens in source_sets(query).items():
        assert found.tokens[name] == tokens
        for layer, layers in enumerate(windows(model.n_layers, 2)):
            wanted = plain(model, query, AttentionKnockout(layers, reads, tokens))
            assert found.after[name][layer] == near_probability(wanted)
            assert 1 + found.change(name)[layer] == near_probability(wanted / found.probability)
    layer, change = found.worst("subject")
    assert change == min(found.change("subject")) == found.change("subject")[layer]
    silent = sublayer_knockout(model, query, window=1)
    for name in ("mlp", "attention"):
        for layer in range(model.n_layers):
            wanted = plain(model, query, SublayerKnockout((layer,), name, (query.prompt.lookup,)))
            assert silent.after[name][layer] == near_probability(wanted)


def test_other_queries_and_sources():
    model = tiny("qwen3")
    query = asked(model)
    lookup = query.prompt.lookup
    found = attention_knockout(model, query, sources={"before": [lookup - 1]}, queries=[lookup], window=1)
    wanted = [
        plain(model, query, AttentionKnockout((layer,), (lookup,), (lookup - 1,))) for layer in range(model.n_layers)
    ]
    assert found.after["before"] == near_probability(wanted)
    assert found.as_dict()["sets"]["before"]["tokens"] == [lookup - 1]


def test_windows():
    assert windows(5, 1) == [(0,), (1,), (2,), (3,), (4,)]
    assert windows(5, 3) == [(0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4)]
    assert windows(4, 2) == [(0,), (0, 1), (1, 2), (2, 3)]
    assert windows(1, 1) == [(0,)]


def test_a_model_of_one_layer():
    model = tiny("llama", num_hidden_layers=1)
    query = asked(model)
    found = attention_knockout(model, query)
    reads = tuple(step.read for step in query.steps)
    assert found.window == 1
    wanted = plain(model, query, AttentionKnockout((0,), reads, found.tokens["subject"]))
    assert found.after["subject"] == near_probability((wanted,))


def test_a_subject_that_ends_the_prompt_has_no_edges_of_its_last_token():
    model = tiny("gpt2")
    query = model.query("In France", TARGET, "France")
    sets = source_sets(query)
    assert query.prompt.read not in sets.get("subject", ())
    assert sorted({i for name in ("subject", "relation", "last") for i in sets.get(name, ())}) == list(
        range(len(query.steps[-1].ids))
    )


def test_bad_input():
    model = tiny("llama")
    query = asked(model)
    with pytest.raises(InputError, match="needs a subject"):
        attention_knockout(model, model.query(PROMPT, TARGET))
    with pytest.raises(InputError, match="needs a subject"):
        sublayer_knockout(model, model.query(PROMPT, TARGET))
    for window in (0, 4, 1.5):
        with pytest.raises(InputError, match="window"):
            attention_knockout(model, query, window=window)
    for tokens in ([], [99], ["a"]):
        with pytest.raises(InputError, match="indices"):
            attention_knockout(model, query, sources={"x": tokens})
    with pytest.raises(InputError, match="nothing to attend to"):
        attention_knockout(model, query, sources={"all": range(len(query.steps[-1].ids))})
    with pytest.raises(InputError, match="did you mean 'subject'"):
        attention_knockout(model, query).change("subjct")
    with pytest.raises(InputError, match="at most 64|more than the 64"):
        attention_knockout(model, model.query("a b c d e " * 30 + PROMPT, TARGET, SUBJECT))
    with pytest.raises(InputError, match="sublayer"):
        SublayerKnockout((0,), "norm", (0,))


def test_a_model_whose_attention_cannot_be_blocked_is_said(monkeypatch):
    model = tiny("llama")
    query = asked(model)
    kind = type(model.attention(0))
    forward = kind.forward

    def deaf(self, hidden_states, *args, attention_mask=None, **kwargs):
        return forward(self, hidden_states, *args, attention_mask=None, **kwargs)

    monkeypatch.setattr(kind, "forward", deaf)
    with pytest.raises(ModelError, match="cannot be blocked"):
        attention_knockout(model, query)
    sublayer_knockout(model, query)  # which needs no mask
    monkeypatch.undo()
    monkeypatch.setattr(model.hf.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(ModelError, match="flash_attention_2.*sdpa"):
        on_blocked(model, 0, torch.zeros(1, 1, 1, dtype=torch.bool), [])


def test_a_block_without_a_mask_is_said():
    model = tiny("llama")

    class Bare(torch.nn.Module):
        def forward(self, hidden_states):
            return hidden_states

    model.blocks[0] = Bare()
    with pytest.raises(ModelError, match="no attention_mask"):
        on_blocked(model, 0, torch.zeros(1, 1, 1, dtype=torch.bool), [])


@pytest.mark.parametrize("family", DECODERS)
def test_half_precision(family):
    model = tiny(family, torch.bfloat16)
    found = attention_knockout(model, asked(model), sources={"one": [2]})
    assert all(0 <= p <= 1 for p in found.after["one"])


def test_double_is_no_other_result():
    with double():
        exact = attention_knockout(tiny("phi", torch.float64), asked(tiny("phi", torch.float64)))
    model = tiny("phi")
    found = attention_knockout(model, asked(model))
    for name in exact.after:
        assert found.after[name] == pytest.approx(exact.after[name], rel=1e-4)
