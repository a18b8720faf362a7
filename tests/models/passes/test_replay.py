"""A block called again with more rows gives what the whole model gives."""

import pytest
import torch
from support.tiny import DECODERS, FAMILIES, PROMPT, tiny

from knowedit.hooks import hooked, on_input
from knowedit.models.passes.replay import is_cache, leaves, map_leaves, record
from knowedit.models.passes.sweep import chunks, counts, sweep

pytestmark = pytest.mark.usefixtures("doubled")  # 1e-10 leaves no room for a wrong mask, position or window


def own_logits(model, ids):
    tokens = torch.tensor([ids])
    with torch.no_grad():
        return model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]


def replayed(recording, rows):
    with torch.no_grad():
        hidden = recording.inputs[0].repeat(rows, 1, 1)
        for layer in range(recording.model.n_layers):
            hidden = recording.block(layer, hidden)
        return recording.model.logits(recording.model.normed(hidden))


def close(found, wanted):
    return (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_chain_to_the_models_logits_from_every_start(family):
    model = tiny(family, torch.float64)
    ids = model.encode("The capital of France is", "France").ids
    wanted = own_logits(model, ids)
    assert len(ids) > 4  # the windows of the sliding families are shorter
    for start in range(len(ids)):
        recording = record(model, ids, start)
        assert recording.start == (0 if model.masked else start)
        found = replayed(recording, rows=3)
        assert found.shape[:2] == (3, len(ids) - recording.start)
        assert close(found, wanted[recording.start :].expand_as(found))


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_independent_and_each_is_the_altered_model(family):
    """Three rows with different neurons in layer 1 equal three runs of the whole model with those neurons."""
    model = tiny(family, torch.float64)
    ids = model.encode(PROMPT, "Eiffel Tower").ids
    recording = record(model, ids, len(ids) - 3)
    at = recording.length - 2
    new = torch.randn(3, model.n_neurons)

    def patch(_, neurons):
        return torch.cat([neurons[:, :at], new[:, None], neurons[:, at + 1 :]], dim=1)

    with torch.no_grad():
        rows = model.logits(model.normed(sweep(recording, [0, 3, *[0] * (model.n_layers - 2)], _only(1, patch))))
    for row, values in zip(rows, new, strict=True):

        def whole(x, values=values):
            x = x.reshape(len(ids), -1).clone()
            x[recording.start + at] = values
            return x

        def reshaped(x, whole=whole):
            return whole(x).reshape(x.shape)

        with hooked(on_input(model.down(1), reshaped)):
            assert close(row, own_logits(model, ids)[recording.start :])


def _only(layer, patch):
    return lambda at, neurons: patch(at, neurons) if at == layer else neurons


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_neurons_are_those_of_a_plain_run(family):
    model = tiny(family, torch.float64)
    ids = model.encode(PROMPT, "Eiffel Tower").ids
    recording = record(model, ids, len(ids) - 2)
    kept = {}
    hooks = [
        on_input(model.down(n), lambda x, n=n: kept.__setitem__(n, x.reshape(len(ids), -1)))
        for n in range(model.n_layers)
    ]
    with hooked(*hooks):
        own_logits(model, ids)
    for layer, neurons in enumerate(recording.neurons):
        assert close(neurons, kept[layer][recording.start :])
    assert recording.output.shape == (1, len(ids) - recording.start, model.d_model)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "gpt_neo", "qwen2", "modernbert"])
def test_the_windows_of_the_tests_matter(family):
    """What stands before a window does change full attention: these families are tested beyond their windows."""
    wide = {"gpt_neo": {"window_size": 64}, "modernbert": {"local_attention": 128}}.get(family, {"sliding_window": 64})
    narrow, full = tiny(family, torch.float64), tiny(family, torch.float64, **wide)
    ids = narrow.encode(PROMPT, "Eiffel Tower").ids
    assert not close(own_logits(narrow, ids)[-1], own_logits(full, ids)[-1])


@pytest.mark.parametrize("family", [*DECODERS, "bert"])
def test_a_sweep_in_parts_is_the_sweep_in_one(family):
    model = tiny(family, torch.float64)
    ids = model.encode(PROMPT, "Eiffel Tower").ids
    recording = record(model, ids, len(ids) - 1)
    entries = sorted(n for n in range(model.n_layers) for _ in range(3))
    values = torch.randn(len(entries), model.n_neurons)

    def run(part):
        joining = counts(entries[part], model.n_layers)
        first = [sum(joining[:n]) for n in range(model.n_layers)]

        def patch(layer, neurons):
            neurons = neurons.clone()
            own = values[part][first[layer] : first[layer] + joining[layer]]
            if len(own):
                neurons[-len(own) :, -1] = own
            return neurons

        with torch.no_grad():
            return sweep(recording, joining, patch)

    whole = run(slice(0, len(entries)))
    for budget in (1, 5, 100):
        parts = [run(part) for part in chunks(entries, model.n_layers, budget)]
        assert len(parts) > 1 or budget == 100
        assert close(torch.cat(parts), whole)


def test_chunks_cover_all_rows_once_within_the_budget():
    entries = [0, 0, 0, 1, 1, 2, 2, 2, 2]
    parts = list(chunks(entries, 3, budget=6))
    assert [i for p in parts for i in range(p.start, p.stop)] == list(range(len(entries)))
    assert all(sum(3 - e for e in entries[p]) <= 6 for p in parts)
    assert list(chunks([], 3, budget=6)) == []
    assert [p.stop - p.start for p in chunks([0, 0], 3, budget=1)] == [1, 1]  # a row is never cut


def test_leaves_and_maps_agree():
    tree = ([1, {"a": 2}], (3,))
    assert list(leaves(tree)) == [((0, 0), 1), ((0, 1, "a"), 2), ((1, 0), 3)]
    assert map_leaves(lambda path, leaf: leaf + len(path), tree) == ([3, {"a": 5}], (5,))
    assert not is_cache(torch.zeros(1)) and not is_cache(None)
