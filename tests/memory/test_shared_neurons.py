"""Polysemanticity: rotations that rotate, relations that are told apart, neurons made to be shared or not."""

import pytest
import torch
from support.tiny import FAMILIES, tiny
from support.trained import facts, trained

from knowedit import Fact
from knowedit.errors import InputError
from knowedit.hooks import hooked, on_input
from knowedit.memory.shared_neurons import PolysemanticityConfig, _independent, _rotation, polysemanticity
from knowedit.sources import builtin_facts


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family):
    model = tiny(family)
    some = [f for f in builtin_facts() if f.relation_name in ("capital", "official language")][:40] + list(facts())
    found = polysemanticity(model, some, PolysemanticityConfig(top=0.1, rotations=2))
    for part in (found.neurons, found.rotated):
        assert part.used > 0 and 1 <= part.relations <= len(found.relations)
        assert sum(part.histogram) == pytest.approx(part.used)
        assert part.polysemantic.n == round(part.used * (1 if part is found.neurons else 2))
        assert 0 <= part.polysemantic.value <= 1 and len(part.by_layer) == model.n_layers
    assert found == polysemanticity(model, some, PolysemanticityConfig(top=0.1, rotations=2))


def test_used_neurons_are_the_strongest_of_half_the_facts():
    model = trained()
    found = polysemanticity(model, facts(), PolysemanticityConfig(top=0.15, layers=(1,), rotations=1))
    chosen = {"home": [], "work": []}
    for fact in facts():
        kept, prompt = [], model.encode(fact.prompt, fact.subject)
        with torch.no_grad(), hooked(on_input(model.down(1), kept.append)):
            model.hf(input_ids=torch.tensor([prompt.ids]))
        c = kept[0][0, prompt.read].abs() * model.down_weight(1).norm(dim=0)
        chosen[fact.relation].append(c.topk(4).indices.tolist())  # 15 % of 24 neurons
    used = [{i for i in range(24) if sum(i in best for best in top) >= len(top) / 2} for top in chosen.values()]
    assert found.neurons.used == len(used[0] | used[1])
    assert len(used[0] | used[1]) > 0
    assert found.neurons.relations == pytest.approx(sum(map(len, used)) / len(used[0] | used[1]))


def test_relations_with_common_words_are_related():
    """Homes and jobs have all subjects in common, so nobody who uses both is polysemantic."""
    found = polysemanticity(trained(), facts(), PolysemanticityConfig(top=0.3))
    assert found.related == (("home", "work"),) and found.relations == {"home": 12, "work": 12}
    assert found.neurons.general.value > 0 and found.neurons.polysemantic.value == 0
    apart = [f for i, f in enumerate(facts()) if (i // 2 % 2 == 0) == (f.relation == "home")]
    found = polysemanticity(trained(), apart, PolysemanticityConfig(top=0.3))
    assert found.related == () and found.neurons.polysemantic.value == found.neurons.general.value > 0


def test_rotations_are_orthogonal_and_seeded():
    one = _rotation(50, 1)
    torch.testing.assert_close(one @ one.T, torch.eye(50), atol=1e-5, rtol=0)
    assert torch.equal(one, _rotation(50, 1)) and not torch.equal(one, _rotation(50, 2))


def test_most_unrelated_ones_of_a_set():
    largest = _independent([(0, 1), (1, 2), (2, 3), (3, 0), (4, 0)], 6)
    assert largest(0) == 0 and largest(0b000001) == 1
    assert largest(0b001111) == 2  # a circle of four
    assert largest(0b111111) == 4  # 1, 3, 4 and 5


def test_too_few_relations_are_refused():
    with pytest.raises(InputError, match="1 relations have 3 facts"):
        polysemanticity(trained(), [f for f in facts() if f.relation == "home"])
    with pytest.raises(InputError, match="0 relations"):
        polysemanticity(trained(), [Fact("{} lives in", "Zarn", "Aldor")] * 8)
    for wrong in ({"top": 0}, {"agreement": 1.5}, {"rotations": 0}):
        with pytest.raises(InputError):
            PolysemanticityConfig(**wrong)
