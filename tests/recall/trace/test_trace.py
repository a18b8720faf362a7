"""Causal tracing equals the paper's plain loop in every family, and says what a trained model does."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from support.tiny import FAMILIES, SUBJECT, TARGET, tiny
from support.trained import facts, trained

from benchmarks.reference.trace import tables
from knowedit import InputError
from knowedit.models.length import positions
from knowedit.prompts import Query
from knowedit.recall.trace import (
    Trace,
    TraceConfig,
    average_traces,
    exact as tracing,
    restore as restoring,
    trace,
    trace_facts,
)
from knowedit.recall.trace.average import token_classes
from knowedit.recall.trace.exact import KINDS, window_size, windows
from knowedit.recall.trace.noise import draw_noise, embedding_spread
from knowedit.recall.trace.restore import Window

PROMPT = "The Eiffel Tower is in"  # short: the plain loop takes its time
BLIND = ("mistral", "gemma3_text")  # with a window of four tokens the answer sees nothing of the subject
SEVERED = ("mlp", "attention")


def plainly(model, found: Trace):
    """The same trace by the plain loop: P clean, P corrupted, and the tables by kind."""
    query, config = model.query(found.prompt, found.target, found.subject), found.config
    if not config.whole:
        query = Query(query.steps[:1], query.target_ids[:1])
    start, end = found.subject_tokens
    noise = draw_noise(model, found.level, config.draws, end - start, config.seed)
    shape = (query.steps[-1].ids, [s.read for s in query.steps], query.target_ids, noise, start, found.window)
    if model.masked:
        assert len(query.steps) == 1
    tokens = range(len(found.tokens))
    clean, low, wanted = tables(model, *shape, config.kinds, tokens=tokens)
    for severed in config.severed:
        wanted[f"state without {severed}"] = tables(model, *shape, ["state"], severed, tokens)[2]["state"]
    return clean, low, wanted


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_tables_of_the_plain_loop(family):
    model = tiny(family)
    target = "." if model.masked else TARGET  # of one token, or in some decoders of several
    found = trace(
        model,
        PROMPT,
        target,
        SUBJECT,
        TraceConfig(draws=2, window=2, noise=0.6, severed=SEVERED, whole=not model.masked),
    )
    clean, low, wanted = plainly(model, found)
    allowed = 1e-5 * max(clean, low)
    assert found.high == pytest.approx(clean, abs=allowed) and found.low == pytest.approx(low, abs=allowed)
    assert list(found.effects) == [*KINDS, "state without mlp", "state without attention"]
    for kind, table in wanted.items():
        assert found.scores(kind).shape == (len(found.tokens), model.n_layers)
        np.testing.assert_allclose(found.scores(kind), table, rtol=0, atol=allowed + 1e-5 * table.max().item())
        if family not in BLIND:
            assert np.abs(found.indirect(kind)).max() > 1e-4 * clean  # there is something to compare


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bert"])
def test_the_last_state_at_the_read_position_brings_all_back(family):
    model = tiny(family)
    found = trace(model, PROMPT, "." if model.masked else "c", SUBJECT, TraceConfig(kinds=("state",), draws=2))
    assert found.scores("state")[found.read, -1] == pytest.approx(found.high, rel=1e-4)
    others = np.delete(found.indirect("state")[:, -1], found.read)
    np.testing.assert_allclose(others, 0, atol=1e-5 * found.high)  # nothing else is read after the last layer


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_without_noise_nothing_changes(family, fast):
    model = tiny(family)
    found = trace(model, PROMPT, "." if model.masked else TARGET, SUBJECT, TraceConfig(draws=2, noise=0.0, fast=fast))
    assert found.low == pytest.approx(found.high, rel=1e-4)
    for kind in KINDS:
        np.testing.assert_allclose(found.effects[kind], 0, atol=1e-4 * found.high)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "olmo2", "roberta"])
def test_a_model_of_one_layer_is_traced_too(family):
    model = tiny(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 1})
    found = trace(model, PROMPT, "." if model.masked else TARGET, SUBJECT, TraceConfig(draws=2, noise=0.6))
    clean, low, wanted = plainly(model, found)
    for kind in KINDS:
        np.testing.assert_allclose(found.scores(kind), wanted[kind], rtol=0, atol=1e-5 * max(clean, low))
    trace(model, PROMPT, "." if model.masked else TARGET, SUBJECT, TraceConfig(draws=2, fast=True))


def test_how_rows_are_cut_into_sweeps_does_not_matter(monkeypatch):
    model, config = tiny("llama"), TraceConfig(draws=5, window=2)
    wanted = trace(model, PROMPT, TARGET, SUBJECT, config)
    monkeypatch.setattr(restoring, "SWEEP_TOKENS", 1)
    monkeypatch.setattr(restoring, "READ_ROWS", 3)
    monkeypatch.setattr(tracing, "DRAWS", 2)
    found = trace(model, PROMPT, TARGET, SUBJECT, config)
    np.testing.assert_allclose(found.corrupted, wanted.corrupted, rtol=1e-5)
    for kind in KINDS:
        np.testing.assert_allclose(
            found.effects[kind], wanted.effects[kind], rtol=0, atol=1e-5 * wanted.scores(kind).max()
        )


def test_windows_are_those_of_the_paper():
    assert windows(48, 10)[0] == Window(0, 5) and windows(48, 10)[20] == Window(15, 25)
    assert windows(48, 10)[47] == Window(42, 48) and windows(3, 1) == [Window(0, 1), Window(1, 2), Window(2, 3)]
    assert windows(3, 9) == [Window(0, 3)] * 3
    assert window_size(tiny("gpt2", n_layer=4)) == 1 and window_size(tiny("gpt2"), 2) == 2


def test_the_seed_decides_and_more_draws_begin_with_the_same():
    model = trained()
    few, more, other = (
        trace(model, "Zarn lives in", "Aldor", "Zarn", TraceConfig(kinds=("state",), draws=n, seed=seed))
        for n, seed in ((3, 0), (6, 0), (3, 1))
    )
    np.testing.assert_allclose(few.effects["state"], more.effects["state"][:3], atol=1e-6)
    assert np.abs(few.effects["state"] - other.effects["state"]).max() > 1e-3


def test_a_trained_model_looks_its_answer_up_at_the_subject_and_reads_it_at_the_end():
    model = trained()
    traces = trace_facts(model, facts()[:8], TraceConfig(draws=5, noise=6))
    found = average_traces(traces)
    assert (
        found.total_effect.value == pytest.approx(np.mean([t.high - t.low for t in traces]))
        and found.total_effect.n == 8
    )
    assert found.total_effect.value > 0.1
    rows = found.effects["state"]
    assert set(rows) == {"last subject", "first after", "last"}  # subjects of one token, prompts of three
    early, late = rows["last subject"], rows["last"]
    assert early[0].value > 0.2 * found.total_effect.value and abs(early[-1].value) < 1e-4
    assert late[-1].value == pytest.approx(found.total_effect.value, abs=1e-4)
    by_hand = [t.indirect("mlp")[0, 1] for t in traces]
    estimate = found.effects["mlp"]["last subject"][1]
    assert estimate.value == pytest.approx(np.mean(by_hand)) and estimate.n == 8 and estimate.low <= estimate.high
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert record["facts"][0] == "home/zarn" and record["maps"]["state"]["peak"]["class"] in rows


def test_tokens_are_put_into_one_class_each():
    model = tiny("bert")
    found = trace(model, "The city of [MASK] is the capital", ".", "city of", TraceConfig(draws=1, kinds=("state",)))
    names = token_classes(found)
    start, end = found.subject_tokens
    assert (
        set(names[:start]) == {"before subject"}
        and names[start] == "first subject"
        and names[end - 1] == "last subject"
    )
    assert names[found.read] == "last" and names[-1] == "further"
    assert "before subject" in average_traces([found]).effects["state"]  # a masked model looks both ways


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_the_fast_mode_is_exact_for_little_noise(family):
    model = tiny(family)
    target = "." if model.masked else TARGET
    fast, exact = (
        trace(model, PROMPT, target, SUBJECT, TraceConfig(kinds=KINDS, window=1, draws=3, noise=1e-3, fast=fast))
        for fast in (True, False)
    )
    assert fast.high == exact.high and fast.low == exact.low
    for kind in () if family in BLIND else KINDS:
        largest = np.abs(exact.effects[kind]).max()
        np.testing.assert_allclose(fast.effects[kind], exact.effects[kind], rtol=0, atol=0.05 * largest)


def test_the_fast_mode_ranks_the_states_of_a_trained_model():
    model = trained()
    found = []
    for fact in facts()[:6]:
        fast, exact = (
            trace(model, fact.prompt, fact.target, fact.subject, TraceConfig(kinds=("state",), fast=fast))
            for fast in (True, False)
        )
        found.append(spearmanr(fast.indirect("state").ravel(), exact.indirect("state").ravel())[0])
    assert np.median(found) > 0.85


def test_an_answer_that_the_model_does_not_give_is_said_to_be_none():
    model, fact = trained(), facts()[0]
    other = next(f.target for f in facts() if f.relation == fact.relation and f.target != fact.target)
    right, wrong = (trace(model, fact.prompt, t, fact.subject, TraceConfig(draws=1)) for t in (fact.target, other))
    first = model.tokenizer.decode(model.query(fact.prompt, fact.target).target_ids[0])
    assert right.says is None and not any("does not say" in line for line in right.table() if isinstance(line, str))
    assert wrong.says == first and f"it says {first!r}" in [line for line in wrong.table() if isinstance(line, str)][1]


def test_a_result_is_json_without_nan():
    found = trace(trained(), "Zarn lives in", "Aldor", "Zarn", TraceConfig(draws=1, severed=("mlp",)), fact="home/zarn")
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (
        record["tokens"] == ["Zarn", "lives", "in"]
        and record["subject_tokens"] == [0, 1]
        and record["fact"] == "home/zarn"
    )
    assert record["low"] == {"value": found.low, "low": None, "high": None, "n": 1}
    assert set(record["maps"]) == {*KINDS, "state without mlp"}
    peak = record["maps"]["state"]["peak"]
    assert record["maps"]["state"]["scores"][peak["token"]][peak["layer"]] == np.max(record["maps"]["state"]["scores"])
    with pytest.raises(InputError, match=r"no 'attension' \(did you mean 'attention'\?\)"):
        found.indirect("attension")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"kinds": ("states",)}, "did you mean 'state'"),
        ({"kinds": ()}, "nothing"),
        ({"severed": ("heads",)}, "severed"),
        ({"severed": ("mlp",), "fast": True}, "no fast mode"),
        ({"draws": 0}, "draws"),
        ({"window": 0}, "window"),
        ({"window": True}, "window"),
        ({"seed": -1}, "seed"),
        ({"noise": -1.0}, "noise"),
        ({"noise": float("nan")}, "noise"),
    ],
)
def test_a_wrong_setting_is_refused(settings, words):
    with pytest.raises(InputError, match=words):
        TraceConfig(**settings)


@pytest.mark.parametrize(
    "prompt, subject, words",
    [
        ("Zarn lives in", None, "name it with --subject"),
        ("Zarn", "Zarn", "whole prompt"),
        ("Zarn lives in", "Quill", "not in the prompt"),
        ("Zarn " * 40, "Zarn", "40 tokens, trained takes at most 32"),
        ("", "Zarn", "empty"),
    ],
)
def test_a_wrong_prompt_is_refused(prompt, subject, words):
    with pytest.raises(InputError, match=words):
        trace(trained(), prompt, "Aldor", subject)


@pytest.mark.parametrize("family", ["roberta", "bert", "opt", "mpt"])
def test_a_prompt_that_just_fits_is_traced_and_one_that_does_not_is_refused(family):
    model, config = tiny(family), TraceConfig(draws=1, kinds=("state",), fast=True)
    limit, prompts = positions(model), ["Paris " * words + "is" for words in range(1, 90)]
    lengths = [len(model.encode(prompt, "Paris").ids) for prompt in prompts]
    longest = max(i for i, length in enumerate(lengths) if length <= limit)
    found = trace(model, prompts[longest], "." if model.masked else "c", "Paris", config)
    assert lengths[longest] == limit and found.read == limit - (3 if model.masked else 1)
    with pytest.raises(InputError, match=f"at most {limit}; shorten it"):
        trace(model, prompts[longest + 1], "." if model.masked else "c", "Paris", config)


def test_traces_that_differ_have_no_average():
    model = trained()
    one, other = (trace(model, "Zarn lives in", "Aldor", "Zarn", TraceConfig(draws=n)) for n in (1, 2))
    with pytest.raises(InputError, match="different models or settings"):
        average_traces([one, other])
    with pytest.raises(InputError, match="no traces"):
        average_traces([])


def test_a_masked_target_of_several_tokens_is_exact_or_refused():
    model = tiny("bert")
    query = model.query(PROMPT, "Parisi", SUBJECT)
    assert len(query.steps) > 1
    found = trace(model, PROMPT, "Parisi", SUBJECT, TraceConfig(draws=2, kinds=("state",), whole=True))
    parts = []
    for step, token in zip(query.steps, query.target_ids, strict=True):
        noise = draw_noise(model, found.level, 2, 1 + step.lookup - step.subject[0], 0)
        for draw in range(2):
            shape = (step.ids, [step.read], [token], noise[draw : draw + 1], step.subject[0], 1)
            parts.append(tables(model, *shape, ["state"])[2]["state"])
    wanted = np.prod([torch.stack(parts[i : i + 2]).numpy() for i in range(0, len(parts), 2)], axis=0).mean(0)
    np.testing.assert_allclose(found.scores("state"), wanted, rtol=1e-3)
    with pytest.raises(InputError, match="one token of a target"):
        trace(model, PROMPT, "Parisi", SUBJECT, TraceConfig(fast=True, whole=True))
    first = TraceConfig(draws=2, kinds=("state",))
    assert trace(model, PROMPT, "Parisi", SUBJECT, first).high > found.high  # of the first token alone


def test_the_spread_is_that_of_the_embeddings_of_subjects():
    model = tiny("gpt2")
    ids = [i for s in ("Paris", "Rome") for i in model.tokenizer(s)["input_ids"]]
    wanted = model.hf.get_input_embeddings().weight[ids].detach().numpy().astype(np.float64).std()
    assert embedding_spread(model, ["Rome", "Paris", "Rome"]) == pytest.approx(wanted)
    assert embedding_spread(model) > 0
    with pytest.raises(InputError, match="no subjects"):
        embedding_spread(model, [])
