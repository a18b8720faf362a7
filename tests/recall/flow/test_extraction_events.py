"""Extraction events: what a part adds is what the residual stream gains, and argmax finds the answer."""

import pytest
import torch
from support.tiny import DECODERS, MASKED, PROMPT, SUBJECT, TARGET, tiny

from knowedit import InputError, ModelError
from knowedit.models.passes.replay import record
from knowedit.recall.flow.extraction_events import extraction, updates

POST_NORMS = ("gemma2", "gemma3_text", "olmo2")


@pytest.mark.usefixtures("doubled")
@pytest.mark.covered
@pytest.mark.parametrize("family", DECODERS)
def test_updates_add_up_to_what_the_stream_gains(family):
    model = tiny(family, torch.float64)
    query = model.query(PROMPT, TARGET, SUBJECT)
    prompt = query.prompt
    added = updates(model, query)
    assert added.shape == (model.n_layers, 2 + model.n_heads, model.d_model)
    recording = record(model, prompt.ids, prompt.read)
    stream = torch.cat([*recording.inputs, recording.output])[:, 0]
    gained = stream[1:] - stream[:-1]
    for layer in range(model.n_layers):
        torch.testing.assert_close(added[layer, :2].sum(0), gained[layer], rtol=1e-8, atol=1e-9)
        if family not in POST_NORMS:  # behind a norm each head has its own length
            bias = getattr(model.heads(layer), "bias", None)
            attention = added[layer, 2:].sum(0) + (0 if bias is None else bias.detach())
            torch.testing.assert_close(attention, added[layer, 0], rtol=1e-8, atol=1e-9)


@pytest.mark.covered
@pytest.mark.parametrize("family", DECODERS)
def test_events_are_those_of_the_token_that_is_promoted_most(family):
    """Ask for the very token that one head promotes most: the head is an event, and asking for another it is not."""
    model = tiny(family)
    query = model.query(PROMPT, TARGET, SUBJECT)
    rows = updates(model, query)
    with torch.no_grad():
        weight = model.unembedding.weight
        seen = rows @ model.hf.model.decoder.project_out.weight.T if family == "opt" else rows
        tokens = (seen @ weight.T).argmax(-1)  # (layers, 2 + heads)
    for part in (0, 1, 2, 3):
        token = tokens[1, part].item()
        found = extraction(model, aimed(query, token))
        assert found.answer == model.token(token)
        assert found.attention == tuple((tokens[:, 0] == token).tolist())
        assert found.mlp == tuple((tokens[:, 1] == token).tolist())
        assert found.heads == tuple((layer, head) for layer, head in (tokens[:, 2:] == token).nonzero().tolist())
    never = next(t for t in range(model.vocabulary) if t not in tokens)
    nothing = extraction(model, aimed(query, never))
    assert not any(nothing.attention) and not any(nothing.mlp) and nothing.heads == ()


def aimed(query, token):
    return type(query)(query.steps[:1], (token,))


def test_the_final_norm_in_between():
    model = tiny("llama")
    query = model.query(PROMPT, TARGET, SUBJECT)
    with torch.no_grad():
        token = model.unembedding(model.normed(updates(model, query)))[2, 1].argmax().item()
    found = extraction(model, aimed(query, token), normed=True)
    assert found.mlp[2] and found.normed and 2 in found.layers("mlp")
    record = found.as_dict()
    assert record["mlp"] == list(found.layers("mlp"))
    assert (record["n_layers"], record["n_heads"]) == (3, 4)


@pytest.mark.covered
@pytest.mark.parametrize("family", MASKED)
def test_masked_models_are_refused(family):
    model = tiny(family)
    with pytest.raises(ModelError, match="masked"):
        extraction(model, model.query(PROMPT, TARGET, SUBJECT))


def test_a_prompt_longer_than_the_context():
    model = tiny("gpt2")
    with pytest.raises(InputError, match="64"):
        extraction(model, model.query("a b c d e " * 30 + PROMPT, TARGET, SUBJECT))
