"""Public data sets as facts: one record of each shape, and what is refused, skipped or drawn."""

import json
import sys
from types import SimpleNamespace

import pytest

from knowedit.errors import DataError, InputError
from knowedit.facts import Probe
from knowedit.sources import load_source

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Shayna does this. Danielle Darrieux, a native", "Danielle Darrieux spoke the language"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is", "The native language of Montesquieu is"],
    "attribute_prompts": ["J. R. R. Tolkien is a native speaker of"],
    "generation_prompts": ["Danielle Darrieux's mother tongue is"],
}
LITE = {
    "case_id": 16, "prompt": "Lyon is a twin city of", "target_new": "Lisbon", "subject": "Lyon",
    "ground_truth": "Warsaw", "rephrase_prompt": "Its twin city has", "locality_prompt": "Taipei is a twin city of",
    "locality_ground_truth": "Warsaw",
}  # fmt: skip
ZSRE = {
    "subject": "Watts Humphrey", "src": "What university did Watts Humphrey attend?", "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?", "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"], "loc": "nq question: who played desmond doss father",
    "loc_ans": "Hugo Weaving", "cond": "Trinity College >> University of Michigan",
}  # fmt: skip
RELATION = {
    "name": "country currency",
    "prompt_templates": ["The official currency of {} is the", "{}'s official currency is the"],
    "prompt_templates_zs": ["The name of {}'s currency is the"],
    "samples": [
        {"subject": "Japan", "object": "Yen"}, {"subject": "Spain", "object": "Euro"},
        {"subject": "India", "object": "Rupee"}, {"subject": "Spain", "object": "Peseta"},
        {"subject": "Spain", "object": "Euro"},
    ],
}  # fmt: skip
KNOWEDIT = {
    "subject": "Leo", "prompt": "The sister of Leo is", "target_new": "Ann", "ground_truth": ["Mia"],
    "portability": {"Reasoning": [{"prompt": "The father of Leo's sister is", "ground_truth": [["Bob", "Rob"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": "Leo's mother is", "ground_truth": [["Eve"]]}]},
}  # fmt: skip
MQUAKE = {
    "case_id": 3,
    "requested_rewrite": [
        {
            "prompt": "{} is a citizen of", "relation_id": "P27", "target_new": {"str": "Italy"},
            "target_true": {"str": "Ireland"}, "subject": "Ellie Kemper", "question": "Where is Ellie Kemper from?",
        }
    ],
    "questions": ["What is the capital of the country of which Ellie Kemper is a citizen?"],
    "answer": "Dublin", "new_answer": "Rome", "new_answer_alias": ["Roma"],
}  # fmt: skip
RIPPLE = {
    "edit": {
        "prompt": "The name of the country of citizenship of Leonardo DiCaprio is Syria.",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "original_fact": {
            "prompt": "The name of the country of citizenship of Leonardo DiCaprio is United States of America."
        },
    },
    "Relation_Specificity": [],
    "Logical_Generalization": [
        {"test_queries": [{"prompt": "DiCaprio votes in", "answers": [{"value": "Syria", "aliases": ["SY"]}]}]}
    ],
}
BAGS = {
    "P36(capital)": [
        [["The capital of France is [MASK].", "Paris", "P36"], ["[MASK] is the capital of France.", "Paris", "P36"]],
        [["[MASK] is where Rome lies.", "Italy", "P36"], ["[MASK] has Rome.", "Italy", "P36"]],
    ]
}


@pytest.fixture
def write(tmp_path):
    def make(content, name="data.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return make


def one(write, record, format):
    source = load_source(write([record]))
    assert source.format == format and len(source.facts) == 1 and len(source.sha256) == 64
    return source.facts[0]


def test_counterfact(write):
    fact = one(write, COUNTERFACT, "counterfact")
    assert (fact.prompt, fact.target, fact.target_new) == (
        "The mother tongue of Danielle Darrieux is", "French", "English",
    )  # fmt: skip
    assert fact.id == "counterfact/7" and fact.relation == "P103"
    assert fact.rephrasings[0].startswith("Shayna") and fact.generation == ("Danielle Darrieux's mother tongue is",)
    assert [(n.prompt, n.target) for n in fact.neighbours][1] == ("The native language of Montesquieu is", "French")


def test_counterfact_lite(write):
    fact = one(write, LITE, "counterfact-lite")
    assert fact.template == "{} is a twin city of" and fact.neighbours[0].target == "Warsaw"
    assert fact.rephrasings == ("Its twin city has",)


def test_zsre_is_read_as_rome_does(write):
    fact = one(write, ZSRE, "zsre")
    assert fact.target_new == "Illinois Institute of Technology" and fact.target == "Trinity College"
    assert fact.probes == (Probe("locality", "nq question: who played desmond doss father?", ("Hugo Weaving",)),)
    assert fact.template == "What university did {} attend?"


def test_zsre_without_an_old_answer(write):
    new = ZSRE["answers"][0]
    only_alt = {**ZSRE, "pred": ""}
    source = load_source(write([ZSRE, only_alt, {**ZSRE, "pred": None, "alt": new}, {**ZSRE, "answers": []}]))
    assert [(fact.id, fact.target) for fact in source.facts] == [
        ("zsre/0", "Trinity College"), ("zsre/1", "University of Michigan"),
    ]  # fmt: skip
    assert [record for record, _ in source.skipped] == ["2", "3"]


def test_wikibigedit_has_the_answer_of_its_locality_for_an_old_one(write):
    record = {name: text for name, text in LITE.items() if name not in ("case_id", "ground_truth")}
    same = record | {"target_new": "Warsaw"}
    source = load_source(write([record, same]))
    (fact,) = source.facts
    assert source.format == "wikibigedit" and [index for index, _ in source.skipped] == ["1"]
    assert (fact.id, fact.target, fact.target_new) == ("wikibigedit/0", "Warsaw", "Lisbon")
    assert fact.probes == (Probe("locality", "Taipei is a twin city of", ("Warsaw",)),)
    assert fact.neighbours[0].prompt == "Taipei is a twin city of" and fact.rephrasings == ("Its twin city has",)


def test_relations_make_targets_and_neighbours_of_each_other(write):
    source = load_source(write(RELATION, "money.json"))
    japan, spain, _ = source.facts
    assert [fact.id for fact in source.facts] == ["relations/money/0", "relations/money/1", "relations/money/2"]
    assert (japan.target_new, spain.target, spain.aliases) == ("Euro", "Euro", ("Peseta",))
    assert japan.paraphrases == ("{}'s official currency is the", "The name of {}'s currency is the")
    assert {(n.subject, n.target) for n in spain.neighbours} == {("India", "Rupee"), ("Japan", "Yen")}


def test_knowedit(write):
    fact = one(write, KNOWEDIT, "knowedit")
    assert Probe("Reasoning", "The father of Leo's sister is", ("Bob", "Rob")) in fact.probes
    assert fact.probes[-1] == Probe("locality", "Leo's mother is", ("Eve",))


def test_knowedit_of_recent_facts_has_no_old_answers(write):
    recent = {key: value for key, value in KNOWEDIT.items() if key != "ground_truth"}
    source = load_source(write([recent, KNOWEDIT]))
    assert source.skipped == (("0", "it has no ground truth"),) and source.facts[0].id == "knowedit/1"


def test_mquake_keeps_records_of_one_edit(write):
    several = {**MQUAKE, "case_id": 4, "requested_rewrite": MQUAKE["requested_rewrite"] * 2}
    source = load_source(write([MQUAKE, several]))
    (fact,) = source.facts
    assert fact.probes[0].answers == ("Rome", "Roma") and fact.probes[0].kind == "two-hop"
    assert source.skipped == (("4", "its questions need 2 edits at once"),)


@pytest.mark.parametrize(
    ("sentence", "subject", "targets"),
    [
        ("The name of the country which Nice is associated with is {}.", "Nice", ("United States", "United Kingdom")),
        ("Super Bowl LV is followed by {}.", "Super Bowl LV", ("Super Bowl LVI", "a parade")),
        ("The number of children Ann B. has is {}.", "Ann B.", ("2", "3")),
        ("The name of the author of The Lord of the Rings is {}.", "The Lord of the Rings", ("Tolkien", "Tolstoy")),
        ("The place of birth of Ann is {}.", "Ann", ("Washington, D.C.", "Rome")),
        ("The names of the cast members of What Is Love are {}.", "What Is Love", ("Ann", "Bob")),
    ],
)
def test_rippleedits_has_many_sentences(write, sentence, subject, targets):
    old, new = (sentence.format(target) for target in targets)
    edit = {"prompt": new, "relation": "ANY", "original_fact": {"prompt": old}}
    fact = one(write, {**RIPPLE, "edit": edit}, "rippleedits")
    assert (fact.subject, fact.target, fact.target_new) == (subject, *targets)
    assert fact.prompt + " " == sentence.split("{}")[0]


def test_rippleedits_of_recent_facts_are_skipped_and_a_misspelt_criterion_is_read(write):
    recent = {**RIPPLE, "edit": {k: v for k, v in RIPPLE["edit"].items() if k != "original_fact"}}
    misspelt = {k: v for k, v in RIPPLE.items() if k != "Relation_Specificity"}
    misspelt["Relation_Specifity"] = [
        {"test_queries": [{"prompt": "His mother is", "answers": [{"value": "Irmelin"}]}]}
    ]
    source = load_source(write([misspelt, recent]))
    assert Probe("Relation_Specificity", "His mother is", ("Irmelin",)) in source.facts[0].probes
    assert source.skipped == (("1", "it has no original fact, so no old answer"),)


def test_mquake_counts_hops(write):
    fact = one(write, {**MQUAKE, "new_single_hops": [{"answer": str(i)} for i in range(3)]}, "mquake")
    assert fact.probes[0].kind == "three-hop"


def test_rippleedits_finds_subject_and_targets_in_the_sentence(write):
    fact = one(write, RIPPLE, "rippleedits")
    assert (fact.subject, fact.target, fact.target_new) == ("Leonardo DiCaprio", "United States of America", "Syria")
    assert fact.probes == (Probe("Logical_Generalization", "DiCaprio votes in", ("Syria", "SY")),)


def test_pararel_bags_and_their_unusable_ones(write):
    source = load_source(write(BAGS))
    (fact,) = source.facts
    assert source.format == "pararel" and (fact.template, fact.subject) == ("The capital of {} is", "France")
    assert "ends in the mask" in source.skipped[0][1]


def test_pararel_patterns_with_triples(write, tmp_path):
    lines = "\n".join(json.dumps({"pattern": p}) for p in ("[X] is in [Y] .", "[Y] holds [X] .", "Find [X] in [Y]"))
    write(lines, "pararel/graphs_json/P30.jsonl")
    triples = "\n".join(
        json.dumps({"sub_label": s, "obj_label": o}) for s, o in (("Chad", "Africa"), ("Peru", "America"))
    )
    write(triples, "pararel/trex_lms_vocab/P30.jsonl")
    source = load_source(str(tmp_path / "pararel"))
    assert [fact.id for fact in source.facts] == ["pararel/P30/0", "pararel/P30/1"]
    assert source.facts[0].template == "{} is in" and source.facts[0].paraphrases == ("Find {} in",)


def test_a_folder_of_relations_and_the_built_in_facts(write, tmp_path):
    write(RELATION, "folder/a.json")
    write({**RELATION, "name": "b"}, "folder/b.json")
    assert len(load_source(str(tmp_path / "folder")).facts) == 6
    assert load_source("builtin").format == "builtin"


def test_our_own_facts_in_a_file(write):
    path = write('{"template": "{} is in", "subject": "Rome", "target": "Italy"}\n', "own.jsonl")
    assert load_source(path).format == "facts"


def test_a_record_whose_subject_is_not_in_its_prompt_is_skipped_and_said(write):
    source = load_source(write([LITE, {**LITE, "case_id": 17, "subject": "Nice"}]))
    assert (
        len(source.facts) == 1
        and source.skipped[0][0] == "17"
        and "'Nice' is not in its prompt" in source.skipped[0][1]
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "is empty"),
        ([{"a": 1}], "fields 'a', those of no known format"),
        ([LITE, {**LITE, "case_id": 9, "target_new": [3]}], "record 9: target_new is [3], expected text"),
        ([LITE, {k: v for k, v in LITE.items() if k != "rephrase_prompt"}], "'rephrase_prompt'"),
        ([{**COUNTERFACT, "requested_rewrite": []}], "requested_rewrite is [], expected an object"),
        ([LITE, LITE], "'counterfact-lite/16' twice"),
        ([LITE, 5], "record 1: it is 5, expected an object"),
        ([{**LITE, "subject": "Nice"}], "holds no facts that can be asked"),
        ([{"prompt": 5, "subject": "a", "target": "b"}], "5"),
        ([{"prompt": "a is", "subject": ["a"], "target": "b"}], "['a']"),
        ({"P1": [[[1, 2]]]}, "holds no facts"),
    ],
)
def test_wrong_files_are_refused_with_record_and_field(write, content, said):
    with pytest.raises(InputError, match=".*") as error:
        load_source(write(content))
    assert said in str(error.value)


def test_what_is_not_json_or_not_there(write, tmp_path):
    with pytest.raises(DataError, match="line 2: not JSON"):
        load_source(write('{"a": 1}\n{"b":\n', "x.jsonl"))
    for text, name in ((f'[{{"a": {"1" * 5000}}}]', "long.json"), (f'{{"a": {"1" * 5000}}}\n{{}}', "long.jsonl")):
        with pytest.raises(DataError, match="not JSON .*4300 digits"):
            load_source(write(text, name))
    with pytest.raises(InputError, match="did you mean 'builtin'"):
        load_source("builtn")
    with pytest.raises(InputError, match="'counterfact' is a format.* .did you mean 'azhx/counterfact'"):
        load_source("counterfact")
    with pytest.raises(DataError, match="line 2: not JSON .*is the file whole"):
        load_source(write('[{"a": 1},\n{"b":', "cut.json"))
    (tmp_path / "bytes.json").write_bytes(b"\xe9\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        load_source(str(tmp_path / "bytes.json"))
    with pytest.raises(InputError, match="did you mean 'zsre'"):
        load_source(write([LITE]), format="zsree")
    with pytest.raises(InputError, match="no .json file"):
        (tmp_path / "empty").mkdir()
        load_source(str(tmp_path / "empty"))


def test_a_data_set_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(name, revision=None):
        asked.append((name, revision))
        return {"train": [COUNTERFACT], "test": [{**COUNTERFACT, "case_id": 8}]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    source = load_source("azhx/counterfact", revision="abc")
    assert asked == [("azhx/counterfact", "abc")] and [f.id for f in source.facts] == ["counterfact/7", "counterfact/8"]


def test_rows_of_the_datasets_library_have_null_for_what_a_record_lacks(monkeypatch):
    import datasets

    bare = {key: value for key, value in COUNTERFACT.items() if key != "generation_prompts"} | {"case_id": 8}
    table = datasets.Dataset.from_list([COUNTERFACT, bare])
    assert table[1]["generation_prompts"] is None
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision=None: datasets.DatasetDict(train=table))
    source = load_source("someone/counterfact")
    assert (source.format, source.path, len(source.sha256)) == ("counterfact", None, 64)
    assert source.facts[1].generation == () and source.facts[0].neighbours == source.facts[1].neighbours


def test_the_hub_out_of_reach_is_one_sentence(monkeypatch):
    def load_dataset(name, revision=None):
        raise ConnectionError("Couldn't reach the Hub\nlong story")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        InputError, match="did you mean 'azhx/counterfact'.* from the Hub: Couldn't reach the Hub; give"
    ):
        load_source("azhx/counterfct")
