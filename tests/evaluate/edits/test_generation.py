"""Free text under many edits at once is the text under each edit by itself; answers and entropies by hand."""

from dataclasses import replace

import pytest
from support import tiny
from support.edits import FACT, random_edit

from knowedit.edit.apply import applied
from knowedit.errors import InputError
from knowedit.evaluate.edits.generation import generate, writings
from knowedit.evaluate.edits.metrics import Observation, measure, metrics_of
from knowedit.evaluate.edits.text_metrics import begins_with, generation_entropy, holds, words
from knowedit.facts import Probe

PROMPTS = ["The capital of France is", "Zürich is", "The Eiffel Tower is located in the city of", "Rome"]


def written_metrics(model, fact, references=None):
    """The metrics of what the model writes about a fact as it is."""
    (writing,) = writings(model, [fact], [None])
    written = [metric for metric in metrics_of("facts") if metric.needs in ("writing", "references")]
    return measure(Observation(fact, {}, writing, references), written)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2", "bloom", "gptj", "qwen3", "opt"])
def test_text_under_many_edits_is_that_under_each_applied(family):
    model = tiny.tiny(family)
    edits = [random_edit(model, 1, seed=1), None, random_edit(model, 0, seed=2), random_edit(model, 2, seed=3, rank=0)]
    together = generate(model, PROMPTS, tokens=6, edits=edits)
    for prompt, edit, text in zip(PROMPTS, edits, together, strict=True):
        if edit is None:
            assert generate(model, [prompt], tokens=6) == [text]
        else:
            with applied(model, edit):
                assert generate(model, [prompt], tokens=6) == [text]


def test_draws_depend_on_seed_and_prompt_and_not_on_the_batch():
    model = tiny.tiny("llama")
    together = generate(model, PROMPTS, tokens=8, top_k=5, seed=1)
    assert together == [generate(model, [prompt], tokens=8, top_k=5, seed=1)[0] for prompt in PROMPTS]
    assert together != generate(model, PROMPTS, tokens=8, top_k=5, seed=2)
    assert generate(model, PROMPTS, tokens=8, top_k=1) == generate(model, PROMPTS, tokens=8)


def test_total_counts_the_prompt():
    model = tiny.tiny("gpt2")
    length = len(model.encode(PROMPTS[0]).ids)
    assert generate(model, PROMPTS[:1], tokens=length + 3, total=True) == generate(model, PROMPTS[:1], tokens=3)


def test_metrics_of_a_fact(monkeypatch):
    from knowedit.evaluate.edits import generation

    said = {
        FACT.prompt: " Rome, Italy.", "People go there": " Paris", "Where?": " It is in ROME.", "What else?": " Paris",
        "The tower": " is a tower is a tower",
        f'Complete the sentence with a few words: "{FACT.prompt}"': "In Rome",
    }  # fmt: skip
    monkeypatch.setattr(generation, "generate", lambda model, prompts, **_: [said[prompt] for prompt in prompts])
    fact = replace(
        FACT, rephrasings=("People go there",), generation=("The tower",),
        probes=(Probe("two-hop", "Where?", ("Athens", "Rome")), Probe("locality", "What else?", ("Madrid",))),
    )  # fmt: skip
    found = written_metrics(tiny.tiny("qwen3"), fact)
    entropy = found.pop("GE")
    assert found == {
        "free_ES": 1.0, "free_PS": 0.0, "chat_ES": 1.0, "portability": 1.0, "probe:two-hop": 1.0, "probe:locality": 0.0,
    }  # fmt: skip
    assert entropy == pytest.approx(generation_entropy(["The tower is a tower is a tower"]))
    found = written_metrics(tiny.tiny("gpt2"), FACT)
    assert found["chat_ES"] is None and found["GE"] is None and found["portability"] is None


def test_metrics_of_a_model_without_a_chat_template_are_measured():
    found = written_metrics(tiny.tiny("gpt2"), FACT)
    assert found["free_ES"] in (0.0, 1.0) and found["chat_ES"] is None and found["GE"] is None


def test_a_masked_model_and_a_missing_template_are_refused():
    with pytest.raises(InputError, match="masked model"):
        generate(tiny.tiny("bert"), PROMPTS, tokens=3)
    with pytest.raises(InputError, match="no chat template"):
        generate(tiny.tiny("gpt2"), PROMPTS, tokens=3, chat=True)


@pytest.mark.parametrize(
    ("text", "answer", "begins", "is_in"),
    [
        (" the Netherlands.", "The Netherlands", True, True),
        ("Rome, Italy", "Rome", True, True),
        ("Romeo", "Rome", False, False),
        ("in Rome", "Rome", False, True),
        ("SÃO Tomé", "Sao Tome", True, True),
        ("", "Rome", False, False),
        ("New", "New York", False, False),
        ("anything", "?!", False, False),
    ],
)
def test_answers_are_compared_by_words(text, answer, begins, is_in):
    assert (begins_with(text, answer), holds(text, answer)) == (begins, is_in)


def test_entropy_by_hand():
    assert words("Don't stop, now.") == ["Don't", "stop", ",", "now", "."]
    # a b a b: bigrams ab 2/3, ba 1/3; trigrams aba, bab 1/2 each
    h2 = -(2 / 3) * -0.5849625007 + (1 / 3) * 1.5849625007
    assert generation_entropy(["a b a b"]) == pytest.approx((2 / 3 * h2 + 4 / 3 * 1.0) / 2)
    assert generation_entropy(["a b", ""]) is None
    assert generation_entropy(["a a a a a"]) == 0.0
