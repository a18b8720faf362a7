"""One pass over a corpus: the same as looking at every token, in every family, whatever active means there."""

import pytest
import torch
from support.tiny import FAMILIES, tiny
from torch.nn.functional import gelu, relu, silu

from knowedit.errors import DataError, InputError
from knowedit.hooks import hooked, on_input
from knowedit.memory import corpus_scan as module
from knowedit.memory.corpus_scan import alike, definition, is_active, neurons_at, rectifies, scan, watch
from knowedit.models.expansion import Expansion, Seen
from knowedit.texts.rows import text_of


def looked_at(model, ids):
    """(layers, text tokens, n_neurons) of one row."""
    kept = []
    with torch.no_grad(), hooked(*(on_input(model.down(layer), kept.append) for layer in range(model.n_layers))):
        tokens = torch.tensor([ids])
        model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    return torch.stack([neurons.reshape(len(ids), -1)[text_of(model)] for neurons in kept])


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_a_scan_is_what_every_token_shows(family):
    model = tiny(family)
    found = scan(model, tokens=260, top=3)
    neurons = torch.cat([looked_at(model, row) for row in found.rows], 1)
    first = text_of(model).start
    places = [(r, p) for r, row in enumerate(found.rows) for p in range(first, first + len(row[text_of(model)]))]
    assert found.tokens == neurons.shape[1] == len(places) >= 260
    torch.testing.assert_close(found.mean.float(), neurons.mean(1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.deviation.float(), neurons.std(1, correction=0), rtol=1e-3, atol=1e-3)
    best = neurons.abs().topk(3, dim=1)
    torch.testing.assert_close(found.values.abs(), best.values.transpose(1, 2), rtol=1e-3, atol=1e-4)
    for layer in found.layers:
        row, position, value = found.triggers(layer, 5)[0]
        assert neurons[layer, places.index((row, position)), 5].item() == pytest.approx(value, rel=1e-3)
    assert (found.active > 0).any() and (found.active <= found.tokens).all()
    assert ((found.row_effective > 0) & (found.row_effective <= 1)).all()
    counted = (found.active.double().mean(1) / found.tokens).float()
    weights = torch.tensor([float(len(row[text_of(model)])) for row in found.rows])
    torch.testing.assert_close((found.row_active * weights).sum(1) / weights.sum(), counted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "phi3", "bert", "gemma2"])
def test_active_is_what_the_nonlinearity_lets_through(family):
    """In a plain MLP the neuron's own sign tells; in a gated one the gate's, so that active neurons have both signs."""
    model = tiny(family)
    found = scan(model, tokens=130)
    neurons = torch.cat([looked_at(model, row) for row in found.rows], 1)
    above = (neurons > 0).sum(1)
    if family in ("gpt2", "opt", "bert"):
        assert torch.equal(found.active, above)
    else:
        assert not torch.equal(found.active, above)
        assert "gate" in found.definition


def test_active_by_nonlinearity():
    up, gate = torch.tensor([[-3.0, -1.0, 0.0, 2.0]]), torch.tensor([[1.0, -1.0, 2.0, -2.0]])

    def active(act, gated):
        one = Expansion("up", "gate" if gated else None, act)
        seen = Seen(up, up, gate if gated else None, one.neurons(up, gate if gated else None), up)
        return is_active(one, seen).tolist()[0]

    for act in (gelu, relu, silu):
        assert rectifies(act)
        assert active(act, False) == [False, False, False, True]
        assert active(act, True) == [True, False, True, False]
    for act in (torch.tanh, lambda x: x):
        assert not rectifies(act)
        assert active(act, False) == [True, True, False, True]
    assert "exactly 0" in definition(Expansion("up", None, relu))
    assert "0.17" in definition(Expansion("up", None, gelu)) and "0.28" in definition(Expansion("up", "gate", silu))
    assert "switches nothing off" in definition(Expansion("up", None, torch.tanh))


def test_layers_are_those_that_are_asked_for():
    model = tiny("llama")
    every, some = scan(model, tokens=130), scan(model, layers=[2, 0, 2], tokens=130)
    assert some.layers == (0, 2)
    torch.testing.assert_close(some.values, every.values[[0, 2]])
    assert some.share(2, 7) == every.share(2, 7)
    with pytest.raises(InputError, match="layer 1 was not looked at"):
        some.share(1, 0)


def test_running_top_does_not_depend_on_the_batches(monkeypatch):
    model = tiny("gpt2")
    whole = scan(model, tokens=500, top=7)
    monkeypatch.setattr("knowedit.memory.corpus_scan.BATCH_TOKENS", 70)
    counted = []
    parts = scan(model, tokens=500, top=7, progress=counted.append)
    torch.testing.assert_close(whole.values, parts.values)
    assert torch.equal(whole.places[..., 0], parts.places[..., 0])
    assert len(counted) > 4 and counted == sorted(counted) and counted[-1] == parts.tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_a_scan_are_kept_and_only_others_are_read_anew(dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    model, read = tiny("llama", dtype), []
    monkeypatch.setattr(module, "watch", lambda *args: read.append([*args[2]]) or watch(*args))

    def scanned(layers, weights_hash="a hash", **more):
        read.clear()
        return scan(model, tokens=300, top=3, layers=layers, weights_hash=weights_hash, **more), list(read)

    plain, _ = scanned([0, 2], None)
    first, batches = scanned([0, 2])
    again, none = scanned([0, 2])
    assert batches and not none
    for found in (first, again):
        for name, value in vars(plain).items():
            kept = getattr(found, name)
            same = torch.equal(kept, value) and kept.dtype == value.dtype if torch.is_tensor(value) else kept == value
            assert same, name
    _, others = scanned([0, 1, 2])
    assert others == [[1]] * len(batches)
    for more in ({"weights_hash": "another"}, {"layers": [2], "weights_hash": None}):
        assert scanned(**{"layers": [0, 2], **more})[1]
    assert scan(model, tokens=300, top=4, layers=[0], weights_hash="a hash").values.shape[-1] == 4
    assert not scanned([1])[1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "bert", "modernbert"])
def test_neurons_at_one_position_of_rows_of_any_length(family):
    model = tiny(family)
    rows = [list(model.encode(text).ids) for text in ("Paris is", "The capital of Japan is Tokyo and", "a b c d")]
    reads = [1, len(rows[1]) - 2, len(rows[2]) - 1]
    seen = {}
    for chosen, neurons in neurons_at(model, rows, reads):
        seen |= dict(zip(chosen, neurons, strict=True))
    kept = []
    for i, row in enumerate(rows):
        kept.clear()
        with torch.no_grad(), hooked(*(on_input(model.down(layer), kept.append) for layer in range(model.n_layers))):
            model.hf(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row), dtype=torch.long))
        wanted = torch.stack([neurons.reshape(len(row), -1)[reads[i]] for neurons in kept])
        torch.testing.assert_close(seen[i], wanted, rtol=1e-3, atol=1e-4)


def test_rows_of_one_length_go_together():
    rows = [(1, 2, 3)] * 4 + [(1, 2)] * 2
    found = [(start, ids.tolist()) for start, ids in alike(rows, 1000)]
    assert found == [(0, [[1, 2, 3]] * 4), (4, [[1, 2]] * 2)]
    assert [start for start, _ in alike(rows, 4)] == [0, 1]


def test_a_corpus_that_is_empty_or_no_text_is_refused(tmp_path):
    model = tiny("gpt2")
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe\x00\x81" * 20)
    with pytest.raises(InputError, match="holds no text"):
        scan(model, str(empty))
    with pytest.raises(DataError, match="not UTF-8"):
        scan(model, str(binary))
    with pytest.raises(InputError, match="expected samples, builtin"):
        scan(model, str(tmp_path / "image.png"))
    for wrong in ({"tokens": 0}, {"top": 0}, {"layers": []}, {"layers": [9]}):
        with pytest.raises(InputError):
            scan(model, **wrong)


def test_samples_are_for_decoders():
    one, same, other = (scan(tiny("llama"), "samples", tokens=64, seed=seed) for seed in (3, 3, 4))
    assert one.rows == same.rows != other.rows and one.source["kind"] == "samples"
    with pytest.raises(InputError, match="cannot sample"):
        scan(tiny("bert"), "samples", tokens=64)
