"""Rows of a batch give what each gives alone, in every family."""

import pytest
import torch
from support.tiny import FAMILIES, tiny

from knowedit.models.passes.batch import record_batch

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


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_neurons_are_those_of_each_row_alone(family):
    model = tiny(family)
    rows = rows_of(model)
    batch = record_batch(model, rows, STARTS)
    for r, row in enumerate(rows):
        alone = record_batch(model, [row], [STARTS[r]])
        found = batch.neurons[1][r, batch.columns[r]]
        assert torch.allclose(found, alone.neurons[1][0, alone.columns[0]], rtol=1e-4, atol=1e-5)
