"""Batches hold rows of about one length within a budget, every row once."""

import random
from types import SimpleNamespace

import pytest
import torch

from knowedit.models.passes.batches import (
    DEVICE_ROWS,
    DEVICE_TOKENS,
    batches,
    fitting_logits,
    fitting_tokens,
    padded,
)

LENGTHS = [random.Random(0).randrange(1, 30) for _ in range(200)]


@pytest.mark.parametrize(
    "budget", [{"tokens": 64}, {"rows": 7}, {"tokens": 100, "rows": 5}, {"rows": 7, "equal": True}]
)
def test_every_row_is_in_one_batch_within_the_budget(budget):
    found = list(batches(LENGTHS, **budget))
    assert sorted(i for batch in found for i in batch) == list(range(len(LENGTHS)))
    for batch in found:
        longest = max(LENGTHS[i] for i in batch)
        assert len(batch) <= budget.get("rows", len(LENGTHS))
        assert len(batch) * longest <= budget.get("tokens", len(LENGTHS) * longest)
        assert not budget.get("equal") or {LENGTHS[i] for i in batch} == {longest}


def test_a_batch_is_filled_before_the_next_one_is_begun():
    assert list(batches([3, 1, 2, 2, 9], tokens=6)) == [[1, 2, 3], [0], [4]]
    assert list(batches([3, 1, 2, 2, 9], rows=2)) == [[1, 2], [3, 0], [4]]
    assert list(batches([3, 1, 2, 2, 9], equal=True)) == [[1], [2, 3], [0], [4]]
    assert list(batches([5, 1], tokens=4)) == [[1], [0]], "a row that alone is over the budget is a batch"
    assert list(batches([], tokens=4)) == []


def test_rows_are_padded_on_the_side_that_is_asked_for():
    tokens, seen = padded([(5, 6, 7), [8]])
    assert torch.equal(tokens, torch.tensor([[5, 6, 7], [8, 0, 0]]))
    assert torch.equal(seen, torch.tensor([[1, 1, 1], [1, 0, 0]]))
    tokens, seen = padded([(5, 6, 7), [8]], left=True)
    assert torch.equal(tokens, torch.tensor([[5, 6, 7], [0, 0, 8]]))
    assert torch.equal(seen, torch.tensor([[1, 1, 1], [0, 0, 1]]))


def test_a_batch_takes_half_of_a_cards_free_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6000, 10000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    card, processor = (SimpleNamespace(device=torch.device(name), vocabulary=1) for name in ("cuda", "cpu"))
    assert fitting_tokens(card, 384, 10) == 400
    assert fitting_tokens(card, 384, 100) == 384
    assert fitting_tokens(processor, 384, 10) == 384
    assert fitting_logits(card, 64) == 4000 // 12
    assert fitting_logits(processor, 64) == 64


def test_a_batch_is_no_larger_than_keeps_a_card_busy(monkeypatch):
    monkeypatch.setattr("knowedit.models.passes.batches.room", lambda device: 1 << 40)
    card = SimpleNamespace(device=torch.device("cuda"), vocabulary=1)
    assert fitting_tokens(card, 384, 10) == DEVICE_TOKENS
    assert fitting_logits(card, 64) == DEVICE_ROWS
