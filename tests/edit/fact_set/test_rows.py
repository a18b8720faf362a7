"""Rows in the cache: what one set found another one need not search for, and nothing else is taken for it."""

from dataclasses import replace

import pytest
import torch
from support.fact_sets import config, covariances, fact_set, requests
from support.trained import trained

from knowedit import FactSet
from knowedit.edit.fact_set import fact_set as module
from knowedit.edit.fact_set.rows import KeptRows

FACTS = requests()[:3]


@pytest.fixture
def searched(monkeypatch, tmp_path):
    """An empty cache, and the numbers of facts that were searched for, a call each."""
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))
    numbers, find = [], module.find_in_buckets

    def found(model, requests, *args):
        numbers.append(len(requests))
        return find(model, requests, *args)

    monkeypatch.setattr(module, "find_in_buckets", found)
    return numbers


def test_another_set_takes_the_rows_that_were_found_to_the_bit(searched):
    first, second = fact_set(), fact_set()
    first.add(FACTS[:2])
    added = second.add(FACTS)
    assert len(added.added) == 3 and searched == [2, 1]
    for name, row in first._store.rows.items():
        other = second._store.rows[name]
        assert torch.equal(other.key, row.key) and torch.equal(other.delta, row.delta)
        assert (other.probability, other.steps) == (row.probability, row.steps)


def test_solver_layers_and_text_of_C_have_no_part_in_a_row(searched):
    fact_set().add(FACTS)
    fact_set(layers=(0, 1)).add(FACTS)
    assert searched == [3]


@pytest.mark.parametrize(
    "changed",
    [
        {"layers": (1,)},
        {"key_contexts": 0},
        {"rows": {"contexts": ("Then", "But")}},
        {"rows": {"search": {"steps": 2}}},
    ],
    ids=str,
)
def test_rows_of_other_settings_are_others(searched, changed):
    fact_set().add(FACTS[:1])
    settings = config()
    rows = changed.pop("rows", {})
    rows = {**rows, "search": replace(settings.rows.search, **rows["search"])} if "search" in rows else rows
    other = replace(settings, **changed, **({"rows": replace(settings.rows, **rows)} if rows else {}))
    FactSet(trained(), other, covariance=covariances(trained())).add(FACTS[:1])
    assert searched == [1, 1]


def test_a_damaged_row_is_searched_for_again_and_a_cache_that_cannot_be_written_keeps_nothing(
    searched, tmp_path, monkeypatch
):
    fact_set().add(FACTS[:1])
    (path,) = (tmp_path / "cache" / "rows").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    fact_set().add(FACTS[:1])
    assert searched == [1, 1]
    monkeypatch.setenv("KNOWEDIT_CACHE", str(path / "no folder"))
    assert len(fact_set().add(FACTS[:1]).added) == 1 and searched == [1, 1, 1]


def test_a_row_of_another_tokenizer_is_another(searched, monkeypatch):
    model, settings = trained(), config()
    one = KeptRows(model, settings, "weights")._key("name")
    monkeypatch.setattr("knowedit.edit.fact_set.rows.tokenization", lambda model: {"tokenizer": "other"})
    assert one != KeptRows(model, settings, "weights")._key("name")


def test_a_row_of_other_weights_is_another():
    keys = {KeptRows(trained(), config(), weights)._key("name") for weights in ("weights", "others")}
    assert len(keys) == 2
