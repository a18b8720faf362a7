"""Keys: what a plain loop over their triggers sees, and models of which it is known what their keys match."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tiny import DECODERS, tiny
from support.trained import trained

from knowedit.errors import InputError, ModelError
from knowedit.memory.corpus_scan import neurons_at, scan
from knowedit.memory.triggers import CUTS, KeysConfig, _cuts, _prefixes, keys


def alone(model, ids, layer, index):
    """A neuron on the last token of a row that is run by itself."""
    ((_, neurons),) = neurons_at(model, [ids], [len(ids) - 1])
    return neurons[0, layer, index].item()


@pytest.mark.covered
@pytest.mark.parametrize("family", DECODERS)
def test_changes_are_those_of_each_trigger_by_itself(family):
    model = tiny(family)
    seen = scan(model, tokens=130, top=3)
    found = keys(model, seen, KeysConfig(prefixes=6))
    codes = _prefixes(seen, KeysConfig(prefixes=6))
    rng = np.random.default_rng(0)
    cuts = [_cuts(seen.rows[row][: position + 1], 1, rng) for row, position in map(seen.place, codes)]
    at = max(range(model.n_layers), key=lambda layer: found[layer].keys)
    changes = {cut: [] for cut in CUTS}
    for code, rows in zip(codes, cuts, strict=True):
        here = (seen.places[at] == code).nonzero().tolist()
        for cut, ids in zip(CUTS, rows, strict=True):
            if here:
                changes[cut].append(np.mean([alone(model, ids, at, i) / seen.values[at, i, r] - 1 for i, r in here]))
    assert found[at].keys == sum(int((seen.places[at] == code).sum()) for code in codes) > 0
    for cut in CUTS:
        assert found[at].change[cut].value == pytest.approx(np.mean(changes[cut]), rel=1e-3, abs=1e-4)
        assert found[at].change[cut].n == len(changes[cut])
    assert [k.layer for k in found] == list(range(model.n_layers))


def test_cuts_leave_the_special_token_and_the_order():
    ids = tuple(range(100, 110))
    first, last, inner = _cuts(ids, 2, np.random.default_rng(0))
    assert first == (100, *range(103, 110)) and last == tuple(range(100, 108))
    assert len(inner) == 8 and inner[0] == 100 and inner[1:3] == (101, 102) and inner[-2:] == (108, 109)
    assert list(inner) == sorted(inner)


def test_keys_of_the_last_token_are_shallow():
    """Without attention and positions a token's neurons depend on the token alone: only the last one can kill a key."""
    model = tiny("llama")
    with torch.no_grad():
        for layer in range(model.n_layers):
            model.heads_weight(layer).zero_()
    for found in keys(model, scan(model, tokens=300), KeysConfig(prefixes=24)):
        for cut in ("first", "random"):
            assert found.change[cut].value == pytest.approx(0, abs=1e-4) and found.dead[cut].value == 0
        assert found.dead["last"].value > 0.5 and found.shallow == found.dead["last"].value
        assert found.dead["first"].high > 0  # nobody knows that none ever dies


def test_more_tokens_in_front_kill_more_keys():
    model = trained()
    seen = scan(model, tokens=400)
    one, four = (keys(model, seen, KeysConfig(prefixes=40, removed=removed)) for removed in (1, 4))
    for k, more in zip(one, four, strict=True):
        assert k.keys and more.keys
        assert more.dead["first"].value >= k.dead["first"].value
        assert k.change["last"].n <= 40


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ModelError, match="masked model"):
        keys(tiny("bert"), scan(tiny("bert"), tokens=64))
    model = tiny("gpt2")
    seen = scan(model, tokens=64)
    with pytest.raises(InputError, match="more than 300 tokens"):
        keys(model, seen, KeysConfig(removed=100))
    short = replace(seen, places=seen.places % 3 + 1)
    with pytest.raises(InputError, match="longer texts"):
        keys(model, short)
    for wrong in ({"prefixes": 0}, {"removed": 0}, {"removed": 1.5}):
        with pytest.raises(InputError):
            KeysConfig(**wrong)
