"""Rows of a batch give what each gives alone, in every family."""

import pytest
import torch
from support.rounding import assert_near
from support.tiny import FAMILIES, tiny

from knowedit.hooks import hooked, on_input
from knowedit.models.passes.batch import record_batch
from knowedit.models.passes.sweep import sweep

LENGTHS, STARTS = (9, 6, 5, 12), (4, 0, 2, 5)


def rows_of(model):
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 60, (n,), generator=generator).tolist() for n in LENGTHS]
    if model.masked:
        for row in rows:
            row[-2] = model.tokenizer.mask_token_id
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_gives_what_it_gives_alone(family):
    model = tiny(family)
    rows = rows_of(model)
    batch = record_batch(model, rows, STARTS)
    hidden = batch.inputs[0]
    with torch.no_grad():
        for layer in range(model.n_layers):
            hidden = batch.block(layer, hidden)
        logits = model.logits(model.normed(hidden))
        for r, row in enumerate(rows):
            alone = model.hf(input_ids=torch.tensor([row])).logits[0, STARTS[r] :]
            columns = [t + int(batch.offsets[r]) for t in range(STARTS[r], len(row))]
            assert (logits[r, columns] - alone).abs().max() <= 5e-6 * alone.abs().max()
            assert columns[0] == batch.columns[r]


@pytest.mark.parametrize("family", FAMILIES)
def test_some_rows_of_a_batch_give_what_they_gave_in_it(family):
    model = tiny(family)
    batch = record_batch(model, rows_of(model), STARTS)
    for kept in ([1, 2], [0], [2, 3]):  # without the longest suffix, the longest prefix, from the other end
        part = batch.only(kept).only(range(len(kept)))
        assert part.output.shape[1] == (
            max(LENGTHS[r] for r in kept) if model.masked else max(LENGTHS[r] - STARTS[r] for r in kept)
        )
        hidden = part.inputs[0]
        with torch.no_grad():
            for layer in range(model.n_layers):
                hidden = part.block(layer, hidden)
        for r, row in enumerate(kept):
            columns = [t + int(batch.offsets[row]) for t in range(STARTS[row], LENGTHS[row])]
            assert part.columns[r] == batch.columns[row] and part.offsets[r] == batch.offsets[row]
            assert torch.allclose(hidden[r, columns], batch.output[row, columns], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_rows_are_altered_as_the_whole_model_is(family, doubled):
    """Copies join a sweep at different layers, each with neurons of its own at its row's first suffix token."""
    model = tiny(family, torch.float64)
    rows = rows_of(model)
    batch = record_batch(model, rows, STARTS)
    joining, of = [2, 3, *[0] * (model.n_layers - 2)], [3, 0, 1, 3, 2]
    altered = torch.randn(5, model.n_neurons)

    def patch(layer, neurons):
        part = slice(0, 2) if layer == 0 else slice(2, 5)
        if layer < 2:
            neurons = neurons.clone()
            for row, values in list(enumerate(altered))[part]:
                neurons[row, batch.columns[of[row]]] = values
        return neurons

    with torch.no_grad():
        logits = model.logits(model.normed(sweep(batch, joining, patch, of=torch.tensor(of))))
        for row, (source, values) in enumerate(zip(of, altered, strict=True)):

            def whole(x, source=source, values=values):
                flat = x.reshape(len(rows[source]), -1).clone()
                flat[STARTS[source]] = values
                return flat.reshape(x.shape)

            with hooked(on_input(model.down(0 if row < 2 else 1), whole)):
                alone = model.hf(input_ids=torch.tensor([rows[source]])).logits[0, STARTS[source] :]
            columns = [t + int(batch.offsets[source]) for t in range(STARTS[source], len(rows[source]))]
            assert_near(logits[row, columns], alone)


def test_the_bytes_of_a_row_grow_with_its_suffix():
    model = tiny("llama", torch.float64)
    ids = rows_of(model)[0]
    one, many = record_batch(model, [ids], [len(ids) - 1]), record_batch(model, [ids], [1])
    assert 0 < one.bytes_per_row() < many.bytes_per_row()


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_neurons_are_those_of_each_row_alone(family):
    model = tiny(family)
    rows = rows_of(model)
    batch = record_batch(model, rows, STARTS)
    for r, row in enumerate(rows):
        alone = record_batch(model, [row], [STARTS[r]])
        found = batch.neurons[1][r, batch.columns[r]]
        assert torch.allclose(found, alone.neurons[1][0, alone.columns[0]], rtol=1e-4, atol=1e-5)
