"""Scores of many edits at once are those of each edit, applied, and each sequence by itself."""

import pytest
import torch
from support.edits import random_edit, same, weights
from support.rounding import LOGITS, near_probability, rounding
from support.tiny import DECODERS, FAMILIES, tiny

from knowedit.answers import Answer, ask
from knowedit.edit.apply import applied
from knowedit.errors import InputError, ModelError
from knowedit.evaluate.edits import scoring
from knowedit.evaluate.edits.scoring import score_edits
from knowedit.models.layouts import LAYOUTS

PROMPTS = (
    "The Eiffel Tower is located in the city of",
    "The Eiffel Tower's city is",
    "The Eiffel Tower is located in",
    "The capital of France is",
    "Paris is the capital of",
)
TARGETS = ("Paris", "Rome", "the capital of Japan")
PAIRS = [(prompt, target) for prompt in PROMPTS for target in TARGETS]


NEAR = rounding(LOGITS)


def edits_of(model):
    return [
        random_edit(model, 1, seed=1),
        None,
        random_edit(model, 0, 2, seed=2, rank=2),
        random_edit(model, 2, seed=3, rank=0),
    ]


def alone(model, edit, pairs):
    """Each sequence by itself, with the edit in the weights."""
    if edit is not None:
        with applied(model, edit):
            return alone(model, None, pairs)
    found = []
    for prompt, target in pairs:
        query = model.query(prompt, target)
        log_p, ranks = [], []
        for step, token in zip(query.steps, query.target_ids, strict=True):
            with torch.no_grad():
                row = model.hf(input_ids=torch.tensor([step.ids])).logits[0, step.read].float().log_softmax(-1)
            log_p.append(row[token].item())
            ranks.append([1 + (row > row[token] + margin).sum().item() for margin in (NEAR, -NEAR)])  # but for ties
        found.append(Answer(tuple(log_p), tuple(ranks)))
    return found


def gap(found, wanted):
    return max(abs(a - b) for f, w in zip(found, wanted, strict=True) for a, b in zip(f.log_p, w.log_p, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [scoring.BATCH_TOKENS, pytest.param(30, marks=pytest.mark.covered)])
def test_scores_are_those_of_each_sequence_by_itself(family, tokens):
    model = tiny(family)
    before, edits = weights(model), edits_of(model)
    asked = [PAIRS, PAIRS[::-1], PAIRS[3:], PAIRS[:7]]
    found = score_edits(model, edits, asked, tokens=tokens)
    for edit, pairs, scores in zip(edits, asked, found, strict=True):
        wanted = alone(model, edit, pairs)
        assert gap(scores, wanted) < NEAR
        for score, plain in zip(scores, wanted, strict=True):
            assert all(low <= rank <= high for rank, (low, high) in zip(score.ranks, plain.ranks, strict=True))
    assert max(len(score.log_p) for score in found[0]) > 1
    assert gap(found[0], found[1][::-1]) > 0.01  # the edit does something
    assert same(weights(model), before)


def test_trees_are_for_decoders_that_were_tried_here():
    trees = {family for family in FAMILIES if LAYOUTS[family].trees}
    assert trees <= DECODERS.keys()
    assert {family for family in FAMILIES if scoring._takes_trees(tiny(family), 4)} == trees


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2", "gemma3_text"])
def test_windows_that_hold_all_tokens_take_trees(family):
    model = tiny(family, sliding_window=32)
    assert scoring._takes_trees(model, 32) and not scoring._takes_trees(model, 33)
    assert gap(score_edits(model, [None], [PAIRS])[0], alone(model, None, PAIRS)) < NEAR


def test_eager_attention_takes_trees_too():
    model = tiny("llama", attn_implementation="eager")
    assert model.hf.config._attn_implementation == "eager"
    edit = random_edit(model, 1)
    assert gap(score_edits(model, [edit], [PAIRS])[0], alone(model, edit, PAIRS)) < NEAR


def test_a_prompt_is_run_once_for_its_targets_and_shared_beginnings_once(monkeypatch):
    model = tiny("llama")
    ran = []
    run = scoring._last_hidden
    monkeypatch.setattr(scoring, "_last_hidden", lambda m, ids, **kw: ran.append(ids.numel()) or run(m, ids, **kw))
    edit = random_edit(model, 1)
    prompt = model.encode("The capital of France is").ids
    pairs = [("The capital of France is", t) for t in ("Paris", "Rome")]
    first = sum(len(model.query(*pair).target_ids) - 1 for pair in pairs)
    score_edits(model, [edit], [pairs])
    assert ran == [len(prompt) + first]
    ran.clear()
    score_edits(model, [None, None, None], [pairs] * 3)  # identical rows once
    assert ran == [len(prompt) + first]
    ran.clear()
    score_edits(model, [edit] * 3, [pairs] * 3)  # an edit that is given twice is one
    assert ran == [len(prompt) + first]


def test_what_is_asked_without_an_edit_and_with_it_is_tokenized_once(monkeypatch):
    model = tiny("llama")
    asked = []
    query = type(model).query
    monkeypatch.setattr(
        type(model), "query", lambda self, *pair, **kw: asked.append((pair, kw)) or query(self, *pair, **kw)
    )
    score_edits(model, [None, random_edit(model, 1)], [PAIRS, [*PAIRS, (*PAIRS[0], "")]])
    assert len(asked) == len(PAIRS) + 1  # a separator makes another question


@pytest.mark.parametrize("records, tokens", [(12, 100), (12, 384), (40, 40), (3, 512)])
def test_trees_fill_batches_of_about_one_size(records, tokens):
    model = tiny("llama")
    queries = [[model.query(*pair) for pair in PAIRS[i % 10 : i % 10 + 5]] for i in range(records)]
    trees = [t for e in range(records) for t in scoring._trees(model, e, scoring._sequences(model, queries, [e]), 64)]
    batches = scoring._packed(trees, tokens)
    assert sorted(id(t) for rows in batches for row in rows for t in row) == sorted(map(id, trees))
    cells = [len(rows) * max(sum(map(len, row)) for row in rows) for rows in batches]
    assert all(c <= 1.65 * max(tokens, max(map(len, trees))) for c in cells)
    assert sum(map(len, trees)) / sum(cells) > 0.8


def test_scores_do_not_hang_on_what_is_asked_beside():
    model = tiny("llama")
    edits = edits_of(model)
    together = score_edits(model, edits, [PAIRS] * 4)
    for edit, scores in zip(edits, together, strict=True):
        assert gap(score_edits(model, [edit], [PAIRS])[0], scores) < NEAR


def test_applied_edits_stay_below():
    model = tiny("gpt2")
    below, above = random_edit(model, 1, seed=1), random_edit(model, 1, seed=2)
    with applied(model, below):
        wanted = alone(model, above, PAIRS)
        assert gap(score_edits(model, [above], [PAIRS])[0], wanted) < NEAR


def test_they_agree_with_answers():
    model = tiny("bert")
    found = ask(model, [model.query(*pair) for pair in PAIRS])
    for i, score in enumerate(score_edits(model, [None], [PAIRS])[0]):
        assert score.per_token == near_probability(found[i].per_token)
        assert score.ranks[0] == found[i].rank and score.greedy == found[i].greedy


def test_a_score_by_hand():
    score = Answer((-1.0, -3.0), (1, 2))
    assert score.nll == 2.0 and score.per_token == pytest.approx(0.1353352832) and not score.greedy
    assert Answer((-1.0,), (1,)).greedy


def test_nothing_asked_gives_nothing():
    model = tiny("gpt2")
    assert score_edits(model, [], []) == []
    assert score_edits(model, [None, random_edit(model, 0)], [[], []]) == [[], []]


def test_bad_input_is_refused():
    model = tiny("gpt2")
    with pytest.raises(InputError, match="2 edits and 1 lists"):
        score_edits(model, [None, None], [PAIRS])
    with pytest.raises(ModelError, match="not the one that this edit"):
        score_edits(model, [random_edit(tiny("gpt2", seed=1), 0)], [PAIRS])
    with pytest.raises(InputError, match="prompt is empty"):
        score_edits(model, [None], [[(" ", "Paris")]])
    with pytest.raises(InputError, match="tokens"):
        score_edits(model, [None], [[("the " * 80, "Paris")]])
    assert not model.down(0)._forward_hooks
