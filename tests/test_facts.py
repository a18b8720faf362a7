"""Facts and templates: validated when made, filled by replacement only."""

import pytest
from hypothesis import given, strategies as st

from knowedit.errors import InputError, KnoweditWarning
from knowedit.facts import Fact, Neighbour, Probe, check_template, fill, templated
from knowedit.writing.mentions import mention

texts = st.text(max_size=30).filter(lambda t: "{}" not in t and "{" not in t and "}" not in t)
subjects = texts.filter(str.strip)


@given(head=texts, tail=texts, subject=st.text(max_size=20))
def test_fill_puts_the_subject_where_the_slot_was_and_nothing_else(head, tail, subject):
    assert fill(head + "{}" + tail, subject) == head + subject + tail


@given(head=texts, tail=texts, subject=subjects)
def test_templated_then_filled_is_the_text(head, tail, subject):
    text = head + subject + tail
    assert fill(templated(text, subject), subject) == text


@given(head=texts, tail=texts, subject=subjects)
def test_the_last_mention_becomes_the_slot(head, tail, subject):
    text = head + subject + tail
    before, _, after = templated(text, subject).partition("{}")
    place = mention(text, subject)
    assert (len(before), len(text) - len(after)) == place[:2]
    assert place.whole or subject not in after


def test_a_text_with_a_slot_is_a_template_already():
    assert templated("The capital of {} is", "France") == "The capital of {} is"
    with pytest.raises(InputError, match="2 slots"):
        templated("{} and {}", "France")


@pytest.mark.parametrize("subject", ["Spain", ""])
def test_templated_needs_the_subject(subject):
    with pytest.raises(InputError, match="is not in the prompt"):
        templated("The capital of France is", subject)


@pytest.mark.parametrize(
    ("template", "found"), [("no slot", 0), ("{} and {}", 2), ("{0}", 0), ("", 0), (None, 0), (3, 0)]
)
def test_templates_have_exactly_one_slot(template, found):
    with pytest.raises(InputError, match=rf"has {found} slots, expected exactly one \{{\}}"):
        check_template(template)


@pytest.mark.parametrize("inert", ["{0.__class__}", "{0}", "{subject}", "%s", "{{", "$x$", "{0!r:>10}"])
def test_what_looks_like_a_format_is_text(inert):
    assert fill(f"{inert} {{}}", "France") == f"{inert} France"
    assert fill("The capital of {} is", inert) == f"The capital of {inert} is"
    fact = Fact(f"{inert} {{}} is", "France", "Paris")
    assert fact.prompt == f"{inert} France is"


def test_a_subject_may_hold_a_slot():
    assert fill("The capital of {} is", "{}") == "The capital of {} is"


@pytest.mark.parametrize("name", ["subject", "target"])
@pytest.mark.parametrize("empty", ["", " ", 7])
def test_empty_texts_are_refused(name, empty):
    with pytest.raises(InputError, match=f"the {name} of a fact is"):
        Fact(**{"template": "{} is", "subject": "a", "target": "b", name: empty})


@pytest.mark.parametrize("name", ["paraphrases", "heldout"])
def test_all_templates_are_checked(name):
    with pytest.raises(InputError, match="'no slot' has 0 slots"):
        Fact("{} is", "a", "b", **{name: ("fine {}", "no slot")})


RECORD = {
    "template": "The capital of {} is",
    "subject": "France",
    "target": "Paris",
    "paraphrases": ["{}'s capital is"],
    "neighbours": [{"prompt": "The capital of Spain is", "target": "Madrid"}],
    "id": "capital/france",
}


def test_from_dict_reads_all_fields():
    fact = Fact.from_dict(RECORD)
    assert fact.prompt == "The capital of France is"
    assert fact.paraphrases == ("{}'s capital is",)
    assert fact.neighbours == (Neighbour("The capital of Spain is", "Madrid"),)
    assert hash(fact) == hash(Fact.from_dict(RECORD))


def test_as_dict_holds_what_was_said_and_no_more():
    assert Fact.from_dict(Fact.from_dict(RECORD).as_dict()) == Fact.from_dict(RECORD)
    assert Fact("{} is", "A", "b").as_dict() == {"template": "{} is", "subject": "A", "target": "b"}


def test_from_dict_names_what_is_wrong():
    with pytest.warns(KnoweditWarning, match=r"no field 'targt' \(did you mean 'target'"):
        Fact.from_dict({**RECORD, "targt": "x"})
    with pytest.raises(InputError, match="'capital/france' has no 'target'"):
        Fact.from_dict({k: v for k, v in RECORD.items() if k != "target"})
    with pytest.raises(InputError, match="expected a list of texts"):
        Fact.from_dict({**RECORD, "paraphrases": ["{} is", None]})
    with pytest.raises(InputError, match="expected a list of texts"):
        Fact.from_dict({**RECORD, "aliases": [[1]]})
    with pytest.raises(InputError, match="a neighbour is an object with prompt and target"):
        Fact.from_dict({**RECORD, "neighbours": [{"text": "x"}]})
    with pytest.raises(InputError, match="found list"):
        Fact.from_dict([1])


@pytest.mark.parametrize("name", ["aliases", "paraphrases", "heldout", "neighbours"])
@pytest.mark.parametrize("wrong", [None, 3, "text", {"a": 1}])
def test_lists_of_the_wrong_type_are_input_errors(name, wrong):
    with pytest.raises(InputError):
        Fact.from_dict({**RECORD, name: wrong})


@pytest.mark.parametrize("name", ["target_new", "relation", "relation_name", "id"])
def test_optional_texts_of_the_wrong_type_are_input_errors(name):
    with pytest.raises(InputError, match=name):
        Fact.from_dict({**RECORD, name: [3]})


@pytest.mark.parametrize("wrong", [{"prompt": None, "target": "x"}, {"prompt": "x", "target": ""}])
def test_neighbours_hold_texts(wrong):
    with pytest.raises(InputError, match="neighbour"):
        Fact.from_dict({**RECORD, "neighbours": [wrong]})


def test_prompts_that_are_complete_and_probes_are_read_and_checked():
    record = {
        "template": "{} is in", "subject": "Rome", "target": "Italy", "rephrasings": ["It lies in"],
        "generation": ["Rome is"], "probes": [{"kind": "two-hop", "prompt": "They speak", "answers": ["Italian"]}],
    }  # fmt: skip
    fact = Fact.from_dict(record)
    assert fact.rephrasings == ("It lies in",) and fact.generation == ("Rome is",)
    assert fact.probes == (Probe("two-hop", "They speak", ("Italian",)),)
    for wrong, said in (
        ({"rephrasings": "It lies in"}, "rephrasings of a fact"),
        (
            {"probes": [{"kind": "two-hop", "prompt": "They speak"}]},
            "a probe is an object with kind, prompt and answers",
        ),
        ({"probes": [{"kind": "two-hop", "prompt": "They speak", "answers": []}]}, "answers of the probe"),
        ({"probes": [{"kind": "", "prompt": "They speak", "answers": ["x"]}]}, "the kind of a probe is ''"),
    ):
        with pytest.raises(InputError, match=said):
            Fact.from_dict(record | wrong)
