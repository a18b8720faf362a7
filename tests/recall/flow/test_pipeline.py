"""The three stages of a fact, their words, and their means over many facts."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.tiny import DECODERS, MASKED, PROMPT, SUBJECT, tiny
from support.trained import facts, trained

from knowedit import Fact, InputError, ModelError
from knowedit.recall.flow.average import average_recall
from knowedit.recall.flow.extraction_events import extraction
from knowedit.recall.flow.knockout import attention_knockout, sublayer_knockout
from knowedit.recall.flow.pipeline import RecallConfig, recall_fact
from knowedit.recall.flow.subject_enrichment import attributes_in

ASKED = Fact(template=PROMPT.replace(SUBJECT, "{}"), subject=SUBJECT, target="Paris")


@pytest.fixture(scope="module")
def some():
    """The homes and works of four subjects of the trained model."""
    return [recall_fact(trained(), fact, facts=facts()) for fact in facts()[:8]]


def test_a_fact_is_what_the_single_analyses_say():
    model, fact = trained(), facts()[0]
    found = recall_fact(model, fact, facts=facts(), config=RecallConfig(window=2))
    query = model.query(fact.prompt, fact.target, fact.subject)
    assert found.edges == attention_knockout(model, query, window=2)
    assert found.sublayers == sublayer_knockout(model, query, window=2)
    assert found.extraction == extraction(model, query)
    assert found.known and found.probability > 0.5
    assert found.probability == found.edges.probability == pytest.approx(found.sublayers.probability, rel=1e-5)
    assert found.tokens[found.lookup].strip() == fact.subject
    assert found.enrichment.attributes == 2  # its home and its work
    assert found.enrichment.window == 2


def test_the_trained_model_needs_the_subject_to_reach_the_last_token(some):
    """It can only know who lives there from the subject, so hiding that everywhere must cost the answer."""
    model, fact = trained(), facts()[0]
    query = model.query(fact.prompt, fact.target, fact.subject)
    everywhere = attention_knockout(model, query, window=model.n_layers)
    middle = model.n_layers // 2  # the window around it is the whole model
    assert everywhere.change("subject")[middle] < -0.5
    told = recall_fact(model, fact, facts=facts(), config=RecallConfig(window=3)).stages[1].text
    assert "the subject costs most" in told and "%" in told


@pytest.mark.covered
@pytest.mark.parametrize("family", DECODERS)
def test_every_decoder_has_the_three_stages(family):
    found = recall_fact(tiny(family), ASKED)
    assert [stage.name for stage in found.stages] == ["enrichment", "propagation", "extraction"]
    record = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert record["probability"] == found.probability
    assert len(record["enrichment"]["rate"]) == len(record["propagation"]["sets"]["subject"]["change"])
    assert record["stages"][2]["text"]


@pytest.mark.covered
@pytest.mark.parametrize("family", MASKED)
def test_masked_models_are_refused(family):
    with pytest.raises(ModelError, match="masked"):
        recall_fact(tiny(family), ASKED)


def test_a_text_gives_the_attributes():
    found = recall_fact(trained(), facts()[0], attributes_in("Aldor has a baker and a mill"))
    assert found.enrichment.source == "text"
    assert found.enrichment.attributes == 3  # aldor, baker, mill
    assert found.enrichment.control == (None,) * 3


@pytest.mark.parametrize("words", ["Unheard", "Unheard Unspoken"])
def test_the_sentence_about_no_attribute_fits_one_and_many(words):
    found = recall_fact(trained(), facts()[0], attributes_in(words))
    n = len(words.split())
    assert found.enrichment.attributes == n and not any(found.enrichment.rate)
    assert found.stages[0].text.startswith(f"No attribute is among the first words after any layer ({n} known).")


def test_a_model_of_one_layer():
    found = recall_fact(tiny("llama", num_hidden_layers=1), ASKED)
    assert len(found.enrichment.rate) == len(found.extraction.mlp) == found.edges.window == 1


def test_the_mean_over_facts(some):
    found = average_recall(some)
    assert found.facts == tuple(fact.id for fact in facts()[:8])
    for name in ("subject", "relation", "last"):
        for layer in range(3):
            wanted = np.mean([one.edges.change(name)[layer] for one in some])
            assert found.edges[name][layer].value == pytest.approx(wanted)
            assert found.edges[name][layer].n == 8
    layer, worst = found.worst(found.edges["subject"])
    assert worst.value == min(e.value for e in found.edges["subject"]) == found.edges["subject"][layer].value
    assert worst.low <= worst.value <= worst.high
    events = [any(one.extraction.mlp) for one in some]
    assert found.any_event["mlp"].value == pytest.approx(np.mean(events))
    counted = {(layer, head): n for layer, head, n in found.heads}
    assert all(sum((layer, head) in one.extraction.heads for one in some) == n for (layer, head), n in counted.items())
    rates = [one.enrichment.without["mlp"][0] - one.enrichment.rate[found.enrichment_read] for one in some]
    assert found.without["mlp"][0].value == pytest.approx(np.mean(rates))
    json.dumps(found.as_dict(), allow_nan=False)


def test_the_mean_of_one_fact_has_no_interval(some):
    found = average_recall(some[:1])
    assert found.edges["subject"][0].low is None and found.edges["subject"][0].n == 1
    assert found.any_event["mlp"].low is None


def test_bad_input(some):
    model = trained()
    with pytest.raises(InputError, match="nothing follows the subject"):
        recall_fact(model, Fact(template="The home of {}", subject="Zarn", target="Aldor"))
    with pytest.raises(InputError, match="window of 4"):
        recall_fact(model, facts()[0], config=RecallConfig(window=4))
    with pytest.raises(InputError, match="first words"):
        RecallConfig(top=0)
    with pytest.raises(InputError, match="no recalls"):
        average_recall([])
    with pytest.raises(InputError, match="alike"):
        average_recall([some[0], replace(some[1], config=RecallConfig(top=3))])
    with pytest.raises(InputError, match="32|tokens"):
        recall_fact(model, Fact(template="Zarn lives in " * 20 + "{} lives in", subject="Zarn", target="Aldor"))
