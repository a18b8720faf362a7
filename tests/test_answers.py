"""An answer is what the model itself gives, however many are asked at once."""

from dataclasses import replace
from math import exp

import pytest
import torch
from support.rounding import LOGITS, near_probability, rounding
from support.tiny import FAMILIES, tiny
from support.trained import facts, trained

from knowedit import answers as module
from knowedit.answers import ask, first_choice
from knowedit.errors import InputError, KnoweditWarning
from knowedit.facts import Fact
from knowedit.models.adapter import _bytes_of
from knowedit.prompts import with_target_ids

PROMPTS = ("The capital of France is", "The Eiffel Tower is located in the city of", "Paris is the capital of")
TARGETS = ("Paris", "Rome", "the capital of Japan")


def asked(model):
    return [model.query(prompt, target) for prompt in PROMPTS for target in TARGETS]


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_models_own(family):
    model = tiny(family)
    queries = asked(model)
    answers = ask(model, queries, top=3)
    assert len(answers) == len(queries)
    assert max(len(query.target_ids) for query in queries) > 1
    for query, answer in zip(queries, answers, strict=True):
        with torch.no_grad():
            rows = [
                model.hf(input_ids=torch.tensor([step.ids])).logits[0, step.read].float().softmax(-1)
                for step in query.steps
            ]
        expected = torch.stack([row[token] for row, token in zip(rows, query.target_ids, strict=True)]).double()
        assert answer.probability == near_probability(expected.prod().item())
        assert answer.per_token == near_probability(expected.log().mean().exp().item())
        first = rows[0]
        assert answer.rank == 1 + (first > first[query.target_ids[0]] * (1 + rounding(LOGITS))).sum().item()
        assert answer.greedy == all(row.argmax() == token for row, token in zip(rows, query.target_ids, strict=True))
        best, tokens = first.topk(3)
        assert [ids[0] for ids in answer.top_ids] == tokens.tolist()
        assert answer.tokens == tuple(map(model.token, query.target_ids))
        assert [p for _, p in answer.top] == near_probability(best.tolist())


def test_one_row_serves_targets_that_read_the_same_tokens(monkeypatch):
    model = tiny("llama")
    ran = []
    capture = module.capture
    monkeypatch.setattr(module, "capture", lambda m, tokens, **kw: ran.append(len(tokens)) or capture(m, tokens, **kw))
    prompt = model.encode("The capital of France is")
    same = [with_target_ids(prompt, (token,)) for token in (5, 6, 7)]
    answers = ask(model, same, top=0)
    assert sum(ran) == 1 and len({answer.probability for answer in answers}) == 3


def test_a_first_choice_that_is_part_of_a_character_is_shown_as_the_whole_one(monkeypatch):
    model = tiny("llama")
    e4, b8, ad = (model.tokenizer.convert_tokens_to_ids(byte) for byte in "ä¸Ń")  # 中, byte by byte
    prompt = model.encode("The capital of France is")
    after = {len(prompt.ids): e4, len(prompt.ids) + 1: b8, len(prompt.ids) + 2: ad}

    def goes_on(model, rows, places):
        log_p = torch.full((len(places), model.vocabulary), -9.0)
        for i, (row, _) in enumerate(places):
            log_p[i, after[len(rows[row])]] = -0.5
        return log_p

    monkeypatch.setattr(module, "_log_p", goes_on)
    (answer,) = ask(model, [with_target_ids(prompt, (e4,))], top=1)
    assert answer.top == (("中", pytest.approx(exp(-0.5))),) and answer.top_ids == ((e4, b8, ad),)
    assert answer.tokens == ("\\xe4",)  # what was scored is that byte alone


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_own_answer_is_a_target_of_the_very_tokens(family):
    model, checked = tiny(family), 0
    for prompt in PROMPTS:
        fact = Fact(prompt.replace("France", "{}").replace("Eiffel Tower", "{}").replace("Paris", "{}"), "Rome", "x")
        try:
            answer = first_choice(model, fact)
        except InputError:
            continue
        query = model.query_of(fact, answer)
        (said,) = ask(model, [query], top=20)
        assert "\ufffd" not in answer and query.target_ids in said.top_ids
        at = said.top_ids.index(query.target_ids)
        assert exp(said.log_p[0]) == near_probability(said.top[at][1])
        checked += 1
    assert checked


def test_a_separator_that_makes_a_target_far_less_likely_is_said():
    model = trained()
    fact = facts()[0]
    right = model.query_of(fact)
    other = replace(model.query_of(fact, "Bexum"), separator="", other_start=right.target_ids[0])
    with pytest.warns(KnoweditWarning, match='with no space: its first token has p .* with separator " "'):
        ask(model, [other])
    ask(model, [replace(right, other_start=other.target_ids[0])])  # and nothing where it is the likelier one


@pytest.mark.parametrize(
    ("spelled", "shown"), [("<0xE4>", "\\xe4"), ("ä¸", "\\xe4\\xb8"), ("Ġä", " \\xe4"), ("é", "\\xe9")]
)
def test_bytes_of_a_part_of_a_character_are_spelled_out(spelled, shown):
    assert _bytes_of(spelled) == shown
