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
from knowedit.models.length import positions
from knowedit.prompts import Prompt, with_target_ids

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


def going_on(monkeypatch, model, ids):
    """Let the model say the tokens `ids`, whatever is asked; the rows that were run."""
    ran = []

    def log_p(_, rows, places):
        ran.extend(rows[row] for row, _ in places)
        out = torch.full((len(places), model.vocabulary), -9.0)
        for i, (row, _) in enumerate(places):
            said = max(n for n in range(len(ids)) if n == 0 or list(rows[row][-n:]) == ids[:n])
            out[i, ids[said]] = -0.5
        return out

    monkeypatch.setattr(module, "_log_p", log_p)
    return ran


def ids_of(model, text):
    return model.tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("text", "tail", "length"),
    [
        (" Parisian", " is", None),  # a word ends where the next begins
        (" Madrid", ".", None),
        (" 1945", ",", None),
        (" Ки", " -", None),  # whose letters are two tokens each
        (" Rome", " is", 1),
        ("'The", " is", 1),  # a mark has no word that goes on
        ("日本", "の", 3),  # nor has a character of a script without spaces; this one has three bytes
    ],
)
def test_a_first_choice_is_read_on_to_the_end_of_its_word(monkeypatch, text, tail, length):
    model = tiny("llama")
    ids = ids_of(model, text)
    going_on(monkeypatch, model, [*ids, *ids_of(model, tail)])
    (answer,) = ask(model, [with_target_ids(model.encode("The capital of France is"), (7,))], top=1)
    assert length is not None or 1 < len(ids) <= module.LONGEST
    assert answer.top_ids == (tuple(ids[:length]),)
    assert answer.top == ((model.tokenizer.decode(ids[:length]), pytest.approx(exp(-0.5))),)  # of its first token


def test_a_word_without_an_end_is_read_as_far_as_choices_go(monkeypatch):
    model = tiny("llama")
    ids = ids_of(model, " Llanfairpwllgwyngyll")
    ran = going_on(monkeypatch, model, ids)
    (answer,) = ask(model, [with_target_ids(model.encode("The capital of France is"), (7,))], top=1)
    assert answer.top_ids == (tuple(ids[: module.LONGEST]),) and len(ids) > module.LONGEST == len(ran)


@pytest.mark.parametrize("family", ["opt", "mpt"])
def test_choices_are_read_on_as_far_as_the_model_has_positions(family):
    model = tiny(family)
    limit = positions(model)
    for length in (limit - 1, limit):
        prompt = Prompt("x", (*model.encode("x").ids, *[7] * limit)[:length], length - 1)
        (answer,) = ask(model, [with_target_ids(prompt, (7,))], top=9)
        assert all(length + len(ids) - 1 <= limit for ids in answer.top_ids)


def test_choices_after_the_first_are_words_where_few_are_asked_for(monkeypatch):
    model = tiny("llama")
    query = with_target_ids(model.encode("The capital of France is"), (7,))
    (few,) = ask(model, [query], top=9)
    monkeypatch.setattr(module, "BATCH_TOKENS", len(query.prompt.ids) + 1)
    (many,) = ask(model, [query], top=9)
    assert many.top_ids[0] == few.top_ids[0] and many.top[0] == (few.top[0][0], near_probability(few.top[0][1]))
    assert [ids[0] for ids in few.top_ids] == [ids[0] for ids in many.top_ids]
    assert any(len(ids) > 1 for ids in few.top_ids[1:])
    assert all(len(ids) == 1 for ids in many.top_ids[1:] if "\ufffd" not in model.tokenizer.decode(ids[:1]))


def test_an_own_answer_whose_word_has_other_tokens_as_a_target_is_its_first_token(monkeypatch):
    model = tiny("llama")
    fact = Fact("The capital of {} is", "Mongolia", "x")
    texts = {i: model.tokenizer.decode([i]) for i in range(model.vocabulary)}
    first, rest = next(
        (a, b)
        for a, one in texts.items()
        for b, two in texts.items()
        if one[:1] == " " and one.strip().isalpha() and two.isalpha() and [a] == ids_of(model, one)
        and [a, b] != ids_of(model, one + two)
    )  # fmt: skip
    going_on(monkeypatch, model, [first, rest, *ids_of(model, " is")])
    (answer,) = ask(model, [model.query_of(fact)], top=1)
    assert answer.top_ids == ((first, rest),) and first_choice(model, fact) == texts[first].strip()


def test_a_model_that_goes_on_with_the_rest_of_a_word_is_said_to(monkeypatch):
    model = tiny("llama")
    fact = Fact("The capital of {} is", "Mongolia", "x")
    a, rome = (ids_of(model, text)[0] for text in ("a", " Rome"))
    said = torch.full((model.vocabulary,), -9.0)
    said[a], said[rome] = -0.7, -0.9
    monkeypatch.setattr(module, "_log_p", lambda _, rows, places: said.expand(len(places), -1))
    with pytest.warns(KnoweditWarning, match="goes on with '.*' behind 'The capital of Mongolia is', with which no"):
        assert first_choice(model, fact).strip().startswith("R")


def test_a_prompt_that_is_too_long_is_said_before_the_model_is_run(monkeypatch):
    model = trained()
    monkeypatch.setattr(type(model), "run", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(InputError, match="the prompt has .* tokens, .* takes at most 32"):
        first_choice(model, replace(facts()[0], template="Zarn " * 40 + "and {} live in"))


@pytest.mark.filterwarnings("ignore:the model goes on with")
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
