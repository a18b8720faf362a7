"""Functional groups: found where neurons are copies of each other, and nowhere once their activity is shifted."""

import numpy as np
import pytest
import torch
from support.tiny import FAMILIES, tiny

from knowedit.errors import InputError
from knowedit.memory.corpus_scan import scan
from knowedit.memory.functional_groups import GroupsConfig, groups
from knowedit.texts.rows import text_of


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_copies_are_a_group(family):
    """Neurons 3, 4, 5 and 6 are made by one key: they are active together, whatever the text."""
    model = tiny(family)
    block = model.blocks[1]
    with torch.no_grad():
        for name, module in block.named_modules():
            weight = getattr(module, "weight", None)
            if weight is None or module is model.down(1) or weight.dim() < 2 or name.startswith(model.layout.attention):
                continue
            rows = weight if weight.shape[0] == model.n_neurons else weight.T  # (n_neurons, d_model), Conv1D turned
            rows[4:7] = rows[3]
            if getattr(module, "bias", None) is not None:
                module.bias[4:7] = module.bias[3]
    seen = scan(model, tokens=400)
    found = groups(model, seen, 1)
    (group,) = [g for g in found.groups if 3 in g.neurons]
    assert {3, 4, 5, 6} <= set(group.neurons)
    assert group.together > 0.5 and found.grouped >= 4 > found.grouped_control
    assert group.share == pytest.approx(seen.share(1, 3), abs=0.25)
    row, position = group.texts[0]
    assert 1 <= position < len(seen.rows[row])
    assert len(group.promotes) == 8
    assert found == groups(model, seen, 1)


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_tree(family):
    model = tiny(family)
    seen = scan(model, tokens=130)
    found = groups(model, seen, 0, GroupsConfig(distance=0.9, smallest=2))
    assert found.tokens == sum(len(row[text_of(model)]) for row in seen.rows)
    members = [index for group in found.groups for index in group.neurons]
    assert len(members) == len(set(members)) == found.grouped <= found.neurons <= model.n_neurons
    sizes = [len(group.neurons) for group in found.groups]
    assert sizes == sorted(sizes, reverse=True)
    assert all(np.isfinite(group.together) for group in found.groups)


def test_limits_and_bad_settings():
    model = tiny("gpt2")
    seen = scan(model, tokens=130)
    few = groups(model, seen, 0, GroupsConfig(neurons=10, tokens=40))
    assert few.neurons == 10 and few.tokens == 40
    for wrong in ({"distance": 0}, {"distance": 1.0}, {"smallest": 1}, {"neurons": 1}, {"tokens": 1}):
        with pytest.raises(InputError):
            GroupsConfig(**wrong)
    with pytest.raises(InputError, match="layer 9"):
        groups(model, seen, 9)
    with pytest.raises(InputError, match="1 tokens"):
        groups(model, scan(model, tokens=1), 0)
