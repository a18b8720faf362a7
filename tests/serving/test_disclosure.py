"""The weights of an edit tell its subject, without a word of its record."""

from dataclasses import replace

import pytest
from support.edits import random_edit, strong
from support.tiny import tiny
from support.trained import facts, trained

from knowedit import InputError
from knowedit.serving.disclosure import ActsOn, Disclosure, acts_on


@pytest.mark.parametrize(("subject", "target_new"), [("Zarn", "Bexum"), ("Quill", "Dovath"), ("Osk", "Bexum")])
def test_the_edited_subject_is_moved_most(subject, target_new):
    edit = replace(strong(subject, target_new), facts=(), method="unknown")
    disclosure = acts_on(trained(), edit, facts())
    first, second, *_ = disclosure.subjects
    assert first.subject == subject and first.moved > second.moved
    assert len(disclosure.subjects) == len({fact.subject for fact in facts()})


def test_it_is_said_whether_a_subject_stands_out():
    def verdict(*moved):
        return Disclosure("m", tuple(ActsOn(f"s{i}", value, "p") for i, value in enumerate(moved))).verdict

    assert verdict(0.9, 0.3, 0.2) == "s0 stands out: it is moved 3.0 times as far as the next"
    assert verdict(0.078, 0.076).startswith("None stands out")
    assert verdict(0.9).startswith("One subject alone tells nothing")


def test_an_edit_of_another_shape_is_refused():
    with pytest.raises(InputError, match="is no down-projection of trained"):
        acts_on(trained(), random_edit(tiny("gpt2"), 1), facts())
