"""Values: their first tokens and ranks as the whole vocabulary has them, agreement and composition on made models."""

import numpy as np
import pytest
import torch
from support.tiny import DECODERS, FAMILIES, tiny

from knowedit.errors import ModelError
from knowedit.locate.neurons import read_outputs, vocabulary
from knowedit.memory import values as module
from knowedit.memory.corpus_scan import scan
from knowedit.memory.values import Compositional, agreement, compositional, mean_agreement, mean_compositional
from knowedit.statistics import proportion


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_first_tokens_and_ranks_are_those_of_the_whole_vocabulary(family, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 50)  # several blocks, the last one shorter
    model = tiny(family)
    sign = torch.where(torch.arange(model.n_neurons) % 3 == 0, -1.0, 1.0)
    wanted = torch.arange(model.n_neurons) % model.vocabulary
    tokens, ranks = module._first_tokens(model, 1, sign, wanted)
    with torch.no_grad():
        directions = read_outputs(model, 1, model.down_weight(1).T) * sign[:, None]
        logits = directions @ model.unembedding.weight.T
    assert torch.equal(tokens, logits.argmax(1))
    assert torch.equal(torch.where(sign > 0, *module._both_tops(model, 1)), tokens)
    own = logits.gather(1, wanted[:, None])
    assert (ranks - (1 + (logits > own).sum(1))).abs().max() <= 1  # ties in the last bit
    assert vocabulary(model, 1, 4, sign[4].item(), 1)[0][0] == model.token(tokens[4].item())


@pytest.mark.covered
@pytest.mark.parametrize("family", DECODERS)
def test_agreement_counts_the_token_after_the_strongest_trigger(family):
    model = tiny(family)
    seen = scan(model, tokens=260, top=2)
    found = agreement(model, seen)[1]
    said = []
    for index in range(model.n_neurons):
        row, position, value = seen.triggers(1, index)[0]
        if position + 1 < len(seen.rows[row]):
            with torch.no_grad():
                direction = read_outputs(model, 1, model.down_weight(1)[None, :, index]) * (1.0 if value > 0 else -1.0)
                first = (direction @ model.unembedding.weight.T).argmax().item()
            said.append(first == seen.rows[row][position + 1])
    assert found.agree.n == len(said) and found.agree.value == pytest.approx(np.mean(said))
    assert 1 <= found.rank <= model.vocabulary and 0 <= found.chance <= 1


def test_values_that_say_what_follows_agree():
    """The value of each neuron is turned towards the token after its own trigger."""
    model = tiny("llama")
    seen = scan(model, tokens=260, top=1)
    before = agreement(model, seen)
    with torch.no_grad():
        for index in range(model.n_neurons):
            row, position, value = seen.triggers(2, index)[0]
            if position + 1 < len(seen.rows[row]):
                after = model.unembedding.weight[seen.rows[row][position + 1]]
                model.down_weight(2)[:, index] = (1.0 if value > 0 else -1.0) * after
    after = agreement(model, seen)
    assert after[2].agree.value > 0.9 > 0.3 > before[2].agree.value
    assert after[2].rank < before[2].rank and after[2].chance < 0.3
    assert after[0] == before[0]


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_composition_is_what_no_active_neuron_says(family):
    model = tiny(family)
    seen = scan(model, tokens=130)
    for found in compositional(model, seen, samples=16):
        assert 0 <= found.share.value <= 1 and found.tokens >= 8
        assert found.share.n <= len(seen.rows)


def test_a_layer_of_one_neuron_is_never_compositional():
    model = tiny("llama")
    with torch.no_grad():
        model.down_weight(1)[:, 1:] = 0
    seen = scan(model, tokens=200)
    found = compositional(model, seen, samples=200)
    active = seen.share(1, 0)
    # where the neuron is active, the layer says what it says; elsewhere no active neuron says it but by accident of 0
    assert found[1].share.value == pytest.approx(1 - active, abs=0.15)
    assert found[1].share.value < found[0].share.value or active < 0.3


def test_keys_are_for_decoders():
    with pytest.raises(ModelError, match="masked model"):
        agreement(tiny("roberta"), scan(tiny("roberta"), tokens=64))


def test_there_is_no_mean_of_nothing():
    assert mean_agreement([]) is None and mean_compositional([]).value is None


def test_the_mean_over_layers_has_the_interval_of_texts():
    parts = [Compositional(layer, np.array([0.25, 0.75, share]), 12) for layer, share in enumerate((0.0, 1.0))]
    assert mean_compositional(parts) == proportion([0.25, 0.75, 0.5])
