"""The lens: the last row is the model itself, every row what its own head makes of that layer's output."""

import math

import pytest
import torch
from support.tiny import DECODERS, FAMILIES, MASKED, PROMPT, SUBJECT, TARGET, tiny
from support.trained import facts, trained

from knowedit.errors import InputError
from knowedit.hooks import hooked, on_input, on_output
from knowedit.recall.lens.projection import Aim, aim, logit_lens, parting, states

CLOZE = "The city of [MASK] is in France."
LONG = "a b " * 60


def text_of(family):
    return CLOZE if family in MASKED else PROMPT


def own_logits(model, ids):
    with torch.no_grad():
        tokens = torch.tensor([ids])
        return model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_after_the_last_layer_it_is_the_model(family):
    model = tiny(family)
    asked = aim(model, text_of(family), TARGET)
    found = logit_lens(model, asked, positions="all", top=3)
    logits = own_logits(model, asked.prompt.ids).float()
    p = logits.softmax(-1)
    torch.testing.assert_close(found.probability[-1], p[:, asked.target], rtol=1e-3, atol=1e-6)
    assert found.rank[-1].tolist() == (1 + (logits > logits[:, asked.target, None]).sum(1)).tolist()
    assert found.positions == tuple(range(len(asked.prompt.ids)))
    best, tokens = p.topk(3)
    assert [[word for word, _ in choices] for choices in found.top[-1]] == [
        [model.token(t) for t in row] for row in tokens.tolist()
    ]
    assert [[p for _, p in choices] for choices in found.top[-1]] == pytest.approx(best.numpy(), rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_the_head_on_that_layers_output(family):
    model = tiny(family)
    asked = aim(model, text_of(family), TARGET)
    found = logit_lens(model, asked)
    outputs = []
    with hooked(*(on_output(block, lambda out: outputs.append(out.detach().clone())) for block in model.blocks)):
        own_logits(model, asked.prompt.ids)
    for layer, output in enumerate(outputs):
        with torch.no_grad():
            p = model.logits(model.normed(output[:1, asked.prompt.read])).softmax(-1)[0]
        assert found.probability[layer + 1, 0].item() == pytest.approx(p[asked.target].item(), rel=1e-3)
    assert found.rank.shape == (model.n_layers + 1, 1)


def test_a_model_of_one_layer():
    model = tiny("llama", num_hidden_layers=1)
    assert logit_lens(model, PROMPT, TARGET).probability.shape == (2, 1)


def test_positions_by_name_and_index():
    model = tiny("llama")
    prompt = model.encode(PROMPT, SUBJECT)
    found = logit_lens(model, PROMPT, TARGET, subject=SUBJECT, positions=["read", "lookup", 0, -1])
    assert found.positions == (0, prompt.lookup, prompt.read)
    assert found.tokens[0] == "<s>"
    everywhere = logit_lens(model, PROMPT, TARGET, positions="all")
    torch.testing.assert_close(everywhere.probability[:, list(found.positions)], found.probability)
    with pytest.raises(InputError, match="needs a subject"):
        logit_lens(model, PROMPT, TARGET, positions="lookup")
    with pytest.raises(InputError, match="not 'read', 'lookup' or one of the prompt's"):
        logit_lens(model, PROMPT, TARGET, positions=99)
    with pytest.raises(InputError, match="no position"):
        logit_lens(model, PROMPT, TARGET, positions=[])
    with pytest.raises(InputError, match="position 1 was not looked at"):
        found.settled(1)
    with pytest.raises(InputError, match="expected 1 or more"):
        logit_lens(model, PROMPT, TARGET, top=0)


def test_the_trained_facts_settle_and_the_foil_does_not():
    model = trained()
    for fact in facts()[:6]:
        foil = next(f.target for f in facts() if f.relation == fact.relation and f.target != fact.target)
        found = logit_lens(model, fact.prompt, fact.target, foil, subject=fact.subject)
        assert found.target == fact.target and found.foil == foil
        assert found.settled() is not None and (found.rank[found.settled() + 1 :] == 1).all()
        assert found.settled() == -1 or found.rank[found.settled(), 0] > 1
        assert found.probability[-1, 0] > found.foil_probability[-1, 0]
        assert logit_lens(model, fact.prompt, foil).settled() is None
        assert logit_lens(model, fact.prompt).target == fact.target  # without a target: the model's own first choice


def test_answers_that_begin_alike_are_compared_where_they_part():
    model = tiny("llama")
    one, other = (model.query(PROMPT, word).target_ids for word in ("Paa", "Pab"))
    at = parting(one, other)
    assert at > 0
    asked = aim(model, PROMPT, "Paa", "Pab")
    assert asked == Aim(model.query(PROMPT, "Paa").steps[at], one[at], other[at])
    assert logit_lens(model, asked).read == len(model.encode(PROMPT).ids) - 1 + at
    for foil in ("Paa", "Pa"):
        with pytest.raises(InputError, match="same token as the target"):
            aim(model, PROMPT, "Paa", foil)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "bloom"])
def test_a_prompt_longer_than_the_context_is_refused(family):
    with pytest.raises(InputError, match="tokens, tiny-.* takes at most .*; shorten it"):
        logit_lens(tiny(family), LONG + CLOZE if family in MASKED else LONG)


def test_bloom_takes_prompts_of_any_length():
    assert len(logit_lens(tiny("bloom"), LONG).top) == 4


def test_empty_and_strange_prompts():
    model = tiny("gpt2")
    with pytest.raises(InputError, match="prompt is empty"):
        logit_lens(model, " ")
    with pytest.raises(InputError, match="is not in the prompt"):
        logit_lens(model, PROMPT, TARGET, subject="Colosseum")
    assert logit_lens(model, SUBJECT, TARGET, subject=SUBJECT).settled() is None  # a lens needs no more than text


@pytest.mark.parametrize("family", [*DECODERS][:3])
def test_states_begin_with_the_embeddings(family):
    model = tiny(family)
    ids = model.encode(PROMPT).ids
    hidden = states(model, ids)
    assert hidden.shape == (model.n_layers + 1, len(ids), model.d_model)
    received = []
    with hooked(on_input(model.blocks[0], received.append)):
        own_logits(model, ids)
    torch.testing.assert_close(hidden[0], received[0][0].detach())


def test_it_is_json_without_nan():
    found = logit_lens(
        trained(), facts()[0].prompt, facts()[0].target, facts()[2].target, positions="all", top=2
    ).as_dict()
    assert [p["position"] for p in found["positions"]] == list(range(len(found["positions"])))
    layers = found["positions"][found["read"]]["layers"]
    assert [row["layer"] for row in layers] == [-1, 0, 1, 2]
    assert layers[-1]["rank"] == 1 and layers[-1]["top"][0][0] == facts()[0].target
    assert all(math.isfinite(row["foil_probability"]) for row in layers)
