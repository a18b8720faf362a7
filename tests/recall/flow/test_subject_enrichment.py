"""The attributes rate: which words count, and what the lens and knockouts give for a subject."""

import pytest
import torch
from support.tiny import FAMILIES, PROMPT, SUBJECT, tiny

from knowedit import Fact, InputError
from knowedit.hooks import hooked, on_output
from knowedit.recall.flow.subject_enrichment import (
    Attributes,
    EnrichmentConfig,
    attributes_in,
    attributes_of,
    content_vocabulary,
    content_words,
    enrichment,
)
from knowedit.recall.lens.projection import states


def fact(subject, target, relation, *aliases):
    return Fact(template="{} is", subject=subject, target=target, relation=relation, aliases=aliases)


FACTS = (
    fact("Zarn", "Aldor", "home", "Old Aldor"),
    fact("Zarn", "baker", "work"),
    fact("Quill", "Bexum", "home"),
    fact("Quill", "miner", "work"),
    fact("Tavo", "Aldor", "home"),
    fact("Osk", "weaver", "work"),
)


def test_content_words():
    assert content_words("The Tower of Paris, and 東京都 it was up. TOWER's Zürich") == {
        "tower",
        "paris",
        "東京都",
        "zürich",
    }
    assert content_words("of it up <b>") == frozenset()


def test_attributes_of_a_fact_are_all_that_is_known_of_its_subject():
    found = attributes_of(FACTS[0], FACTS)
    assert found.words == {"aldor", "old", "baker"}
    assert set(found.controls) == {frozenset({"bexum", "miner"}), frozenset({"aldor"})}
    lone = attributes_of(fact("Lirra", "Cirra", None), FACTS)
    assert (lone.words, lone.controls, lone.source) == ({"cirra"}, (), "facts")


def test_attributes_in_a_text():
    found = attributes_in("Paris is the capital of France.", ["Rome is a city."])
    assert found == Attributes(frozenset({"paris", "capital", "france"}), (frozenset({"rome", "city"}),), "text")
    for text in ("", "of it", "\x1b \n"):
        with pytest.raises(InputError, match="no words"):
            attributes_in(text)


def vocabulary_words(model):
    decoded = [model.tokenizer.decode([i]).strip().casefold() for i in range(model.vocabulary)]
    return [word if content_words(word) == {word} else None for word in decoded]


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_rates_are_those_of_a_plain_lens(family):
    model = tiny(family)
    prompt = model.encode(PROMPT, SUBJECT)
    words = vocabulary_words(model)
    known = [word for word in dict.fromkeys(words) if word]
    attributes = Attributes(frozenset(known[::3]), (frozenset(known[1::3]), frozenset(known[2::5])))
    found = enrichment(model, prompt, attributes, EnrichmentConfig(top=7))
    ids = prompt.ids if model.masked else prompt.ids[: prompt.lookup + 1]
    for layer, hidden in enumerate(states(model, ids)[1:, prompt.lookup]):
        with torch.no_grad():
            logits = model.logits(model.normed(hidden)).float()
        best = [words[i] for i in logits.argsort(descending=True, stable=True).tolist() if words[i]][:7]
        assert found.rate[layer] == pytest.approx(sum(w in attributes.words for w in best) / len(best))
        control = [sum(w in c for w in best) / len(best) for c in attributes.controls]
        assert found.control[layer] == pytest.approx(sum(control) / 2)
        assert set(found.found[layer]) == attributes.words & set(best)
        own = logits[[i for i, w in enumerate(words) if w in attributes.words]]
        rivals = frozenset().union(*attributes.controls) - attributes.words
        other = logits[[i for i, w in enumerate(words) if w in rivals]]
        wins = (own[:, None] > other).float().mean().item()
        assert found.separation[layer] == pytest.approx(wins, abs=2e-3)
    assert found.rate[found.peak] == max(found.rate)
    assert found.attributes == len(attributes.words)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "opt", "bert"])
def test_knockouts_are_read_at_one_later_layer(family):
    model = tiny(family)
    prompt = model.encode(PROMPT, SUBJECT)
    words = vocabulary_words(model)
    attributes = Attributes(frozenset(word for word in words[::2] if word))
    found = enrichment(model, prompt, attributes, EnrichmentConfig(top=9, window=1, layer=1), content_vocabulary(model))
    assert found.read == 1
    for name, module in (("mlp", model.down), ("attention", model.heads)):
        for layer in range(model.n_layers):

            def silent(x):
                rows = x.reshape(len(prompt.ids), -1).clone()
                rows[prompt.lookup] = 0
                return rows.reshape(x.shape)

            with hooked(on_output(module(layer), silent)):
                hidden = states(model, prompt.ids)[2, prompt.lookup]
            with torch.no_grad():
                logits = model.logits(model.normed(hidden))
            best = [words[i] for i in logits.argsort(descending=True).tolist() if words[i]][:9]
            wanted = sum(word in attributes.words for word in best) / len(best)
            assert found.without[name][layer] == pytest.approx(wanted)
            if layer > 1:
                assert found.without[name][layer] == found.rate[1]


def test_nothing_to_compare_with_is_null():
    model = tiny("gpt2")
    found = enrichment(model, model.encode(PROMPT, SUBJECT), Attributes(frozenset({"qqqq"})))
    assert found.rate == (0.0,) * model.n_layers
    assert found.control == found.separation == (None,) * model.n_layers
    assert found.as_dict()["peak"] == 0


def test_bad_input():
    model = tiny("gpt2")
    some = Attributes(frozenset({"paris"}))
    with pytest.raises(InputError, match="subject"):
        enrichment(model, model.encode(PROMPT), some)
    with pytest.raises(InputError, match="layer 9"):
        enrichment(model, model.encode(PROMPT, SUBJECT), some, EnrichmentConfig(layer=9))
    with pytest.raises(InputError, match="window"):
        enrichment(model, model.encode(PROMPT, SUBJECT), some, EnrichmentConfig(window=4))
    with pytest.raises(InputError, match="first words"):
        EnrichmentConfig(top=0)
    with pytest.raises(InputError, match="64"):
        enrichment(model, model.encode("a b c d e " * 30 + PROMPT, SUBJECT), some)
