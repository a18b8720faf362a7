"""Facts are chosen by relation, by what the model knows, evenly or at random; limits count what is left by then."""

from dataclasses import replace

import pytest
from support.studies import source
from support.trained import facts, trained

from knowedit.errors import InputError
from knowedit.evaluate.edits.config import EditStudyConfig
from knowedit.evaluate.edits.study import EditStudy
from knowedit.evaluate.neurons.study import NeuronStudy, NeuronStudyConfig
from knowedit.selection import (
    AT_ONCE,
    choose,
    evenly,
    evenly_spaced,
    known,
    of_relations,
    per_relation,
)
from knowedit.sources import Source, builtin_facts


def ids(found):
    return [fact.id for fact in found]


def test_limit_and_sample_are_in_the_order_of_the_source():
    some = builtin_facts()[:50]
    assert choose(some) == list(some)
    assert choose(some, limit=3) == list(some[:3])
    drawn = choose(some, sample=10, seed=1)
    assert len(drawn) == 10 and drawn == sorted(drawn, key=some.index)
    assert drawn == choose(some, sample=10, seed=1) != choose(some, sample=10, seed=2)
    assert set(choose(some[::-1], sample=10, seed=1)) == set(drawn)
    assert set(choose(some, limit=20, sample=5, seed=1)) == set(choose(some[:20], sample=5, seed=1))
    assert choose(some, skip=40, limit=3) == list(some[40:43])
    with pytest.raises(InputError, match="50 records are to be skipped of 50, so none is left; skip fewer"):
        choose(some, skip=50)
    assert choose(some, skip=10, sample=5, seed=1) == choose(some[10:], sample=5, seed=1)


def test_limits_count_known_facts_and_no_more_are_asked():
    some, asked = builtin_facts(), []

    def keep(part):
        asked.extend(part)
        return [fact for fact in part if len(fact.subject) % 3 == 0]

    wanted = [fact for fact in some if len(fact.subject) % 3 == 0]
    assert choose(some, limit=10, keep=keep) == wanted[:10] and len(asked) == AT_ONCE
    asked.clear()
    assert choose(some, keep=keep) == wanted and len(asked) == len(some)
    drawn = choose(some, sample=10, seed=1, keep=keep)
    assert len(drawn) == 10 and set(drawn) < set(wanted) and drawn == sorted(drawn, key=wanted.index)
    assert drawn != choose(some, sample=10, seed=2, keep=keep)
    both = choose(some, limit=20, sample=5, keep=keep)
    assert len(both) == 5 and set(both) < set(wanted[:20])
    assert choose(some, limit=5, keep=lambda part: []) == []


def test_evenly_gives_each_relation_its_share():
    some = [f for f in builtin_facts() if f.relation in ("P36", "P37", "P30")]
    sizes = {name: len(of_relations(some, [name])) for name in ("P36", "P37", "P30")}
    chosen = evenly(some, 20)
    assert sorted(len(of_relations(chosen, [name])) for name in sizes) == [6, 7, 7] and min(sizes.values()) >= 7
    assert chosen == [f for f in some if f in chosen] and evenly(some, None) == evenly(some, len(some)) == some
    assert max(i for i, f in enumerate(of_relations(some, ["P36"])) if f in chosen) > sizes["P36"] / 2, (
        "spread, no head"
    )


def test_relations_are_chosen_by_name_or_id_and_at_most_so_many_of_each():
    assert {f.relation for f in of_relations(builtin_facts(), ("P36", "continent"))} == {"P36", "P30"}
    assert of_relations(facts(), ()) == list(facts())
    with pytest.raises(InputError, match="no relation is called 'hom'.*did you mean 'home'.*; there are home, work"):
        of_relations(facts(), ("hom",))
    some = per_relation(facts(), 3)
    assert ids(some) == ["home/zarn", "work/zarn", "home/osk", "work/osk", "home/dask", "work/dask"]
    assert evenly_spaced(range(10), 4) == [0, 2, 5, 7] and evenly_spaced("ab", 4) == ["a", "b"]


def test_studies_run_as_many_known_facts_as_are_asked_for():
    model = trained()
    wrong = [replace(f, target=f.target_new, target_new=f.target, id=f"wrong/{f.id}") for f in source().facts]
    made = Source("made", "facts", (*wrong, *source().facts), (), "0" * 64)
    options = {"known_only": True, "limit": 2}
    wanted = ids(source().facts[:2])
    assert list(EditStudy(EditStudyConfig(method="none", **options), model, made).facts) == wanted
    assert list(NeuronStudy(NeuronStudyConfig(**options), model, made).facts) == wanted
    work = NeuronStudy(NeuronStudyConfig(relations=("work",), limit=2), model, Source("m", "facts", facts(), (), "0"))
    assert list(work.facts) == ["work/zarn", "work/quill"]


def test_what_a_model_knows_is_its_first_choice():
    right, wrong = facts()[0], replace(facts()[0], target=facts()[2].target)
    assert known(trained(), [right, wrong]) == [right]


@pytest.mark.parametrize("options", [{"limit": 0}, {"sample": -1}, {"limit": 1.5}, {"sample": True}])
def test_numbers_that_are_none(options):
    with pytest.raises(InputError, match="expected a number of records from 1 on"):
        choose(facts(), **options)


@pytest.mark.parametrize("skip", [-1, 1.5, True, "a"])
def test_numbers_to_skip_that_are_none(skip):
    with pytest.raises(InputError, match="are to be skipped, expected a number from 0 on"):
        choose(facts(), skip=skip)
