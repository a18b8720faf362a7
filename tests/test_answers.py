"""An answer is what the model itself gives, however many are asked at once."""

import pytest
import torch
from support.rounding import LOGITS, near_probability, rounding
from support.tiny import FAMILIES, tiny

from knowedit.answers import ask
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
        assert [word for word, _ in answer.top] == [model.tokenizer.decode([t]) for t in tokens]
        assert [p for _, p in answer.top] == near_probability(best.tolist())


def test_one_row_serves_targets_that_read_the_same_tokens(monkeypatch):
    from knowedit import answers as module

    model = tiny("llama")
    ran = []
    capture = module.capture
    monkeypatch.setattr(module, "capture", lambda m, tokens, **kw: ran.append(len(tokens)) or capture(m, tokens, **kw))
    prompt = model.encode("The capital of France is")
    same = [with_target_ids(prompt, (token,)) for token in (5, 6, 7)]
    answers = ask(model, same)
    assert sum(ran) == 1 and len({answer.probability for answer in answers}) == 3
