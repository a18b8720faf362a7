"""Limits are of what is left: of known facts as many as are asked for, and the model is asked no further."""

from dataclasses import replace

import pytest
from support.studies import source
from support.trained import facts, trained

from knowedit.errors import InputError
from knowedit.evaluate.edits.study import EditStudy, EditStudyConfig
from knowedit.evaluate.neurons.study import NeuronStudy, NeuronStudyConfig
from knowedit.selection import ASKED, choose, known_to
from knowedit.sources import Source, builtin_facts, load_source


def ids(found):
    return [fact.id for fact in found]


def test_without_knowing_it_is_what_the_source_gives():
    some = builtin_facts()
    for options in ({}, {"limit": 7}, {"sample": 9, "seed": 3}, {"limit": 40, "sample": 5, "seed": 1}):
        assert ids(choose(some, **options)) == ids(load_source("builtin", **options).facts)


def test_limits_count_known_facts_and_no_more_are_asked():
    some, asked = builtin_facts(), []

    def known(part):
        asked.extend(part)
        return [len(fact.subject) % 3 == 0 for fact in part]

    wanted = [fact for fact in some if len(fact.subject) % 3 == 0]
    assert choose(some, limit=10, known=known) == wanted[:10] and len(asked) == ASKED
    asked.clear()
    assert choose(some, known=known) == wanted and len(asked) == len(some)
    drawn = choose(some, sample=10, seed=1, known=known)
    assert len(drawn) == 10 and set(drawn) < set(wanted) and drawn == sorted(drawn, key=wanted.index)
    assert drawn != choose(some, sample=10, seed=2, known=known)
    both = choose(some, limit=20, sample=5, known=known)
    assert len(both) == 5 and set(both) < set(wanted[:20])
    assert choose(some, limit=5, known=lambda part: [False] * len(part)) == []


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
    known = known_to(trained())
    right, wrong = facts()[0], replace(facts()[0], target=facts()[2].target)
    assert known([right, wrong]) == [True, False]


@pytest.mark.parametrize("options", [{"limit": 0}, {"sample": -1}, {"limit": 1.5}, {"sample": True}])
def test_numbers_that_are_none(options):
    with pytest.raises(InputError, match="expected a number of records from 1 on"):
        choose(facts(), **options)
