"""Files as users have them: lists, tables, packed, in other encodings, with fields and numbers of their own."""

import gzip
import json

import pytest

from knowedit.errors import DataError, InputError, KnoweditWarning
from knowedit.facts import Fact
from knowedit.sources import load_source, read_facts

FRANCE = {"template": "The capital of {} is", "subject": "France", "target": "Paris"}
ITALY = FRANCE | {"subject": "Italy", "target": "Rome"}
LIST = json.dumps([FRANCE, ITALY], indent=1)
LINES = json.dumps(FRANCE) + "\n" + json.dumps(ITALY)
CSV = "template,subject,target\nThe capital of {} is,France,Paris\nThe capital of {} is,Italy,Rome\n"


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", LIST),
        ("lines.jsonl", LINES),
        ("wrapped.json", json.dumps({"data": [FRANCE, ITALY]})),
        ("squad.json", json.dumps({"version": "1.1", "data": [FRANCE, ITALY]})),
        ("table.csv", CSV),
        ("excel.csv", "\ufeff" + CSV.replace(",", ";").replace("\n", "\r\n")),
        ("table.tsv", CSV.replace(",", "\t")),
        ("TABLE.CSV", CSV.replace("France", '"France"') + ",,\n"),
        ("prompts.csv", CSV.replace("template", "prompt")),
        (
            "subjects.csv",
            CSV.replace("template", "prompt")
            .replace("{} is,France", "France is,France")
            .replace("{} is,I", "Italy is,I"),
        ),
        (
            "with a new target.jsonl",
            LINES.replace("template", "prompt")
            .replace("}", ', "target_new": "Oslo"}')
            .replace('{, "target_new": "Oslo"}', "{}"),
        ),
        ("list.json.gz", gzip.compress(LIST.encode(), mtime=0)),
        ("table.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("misnamed.json", gzip.compress(LINES.encode(), mtime=0)),
    ],
)
def test_facts_are_the_same_whatever_they_are_written_as(write, name, content):
    path = write(name, content)
    for facts in (read_facts(path), load_source(str(path)).facts):
        assert [(f.template, f.subject, f.target) for f in facts] == [tuple(FRANCE.values()), tuple(ITALY.values())]
        assert len({f.id for f in facts}) == 2


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize(("name", "content"), [("list.json", LIST), ("excel.tsv", CSV.replace(",", "\t"))])
def test_other_encodings_are_read_by_their_mark_and_said(write, encoding, name, content):
    with pytest.warns(KnoweditWarning, match=f"{name}' is {encoding.upper()} text, expected UTF-8"):
        assert len(read_facts(write(name, content.encode(encoding)))) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", LIST.encode("utf-16-le"), "UTF-16 without a byte order mark; save it as UTF-8"),
        ("a.csv", CSV.replace("Paris", "Pàris").encode("latin-1"), "is not UTF-8 text; save it as UTF-8"),
        ("a.json.gz", gzip.compress(LIST.encode(), mtime=0)[:-9], "is not sound gzip"),
        ("a.json.gz", b"\x1f\x8bnonsense", "is not sound gzip"),
        ("a.csv", "template,template,target\n", "a name for each column, each once"),
        ("a.csv", "template,,target\n", "a name for each column"),
        ("a.csv", CSV + "The capital of {}, which is,Spain,Madrid\n", "line 4: 4 cells, the header names 3"),
        ("a.csv", CSV + 'The capital of {} is,"Spain,Madrid\n', "not a table"),
        ("a.csv", 'template,target,aliases\nIt is,x,"[""a"""\n', "begins as JSON and is none"),
        ("a.json", LIST[:-1], "is the file whole"),
    ],
)
def test_what_cannot_be_read_says_why(write, name, content, said):
    with pytest.raises(DataError, match=said):
        read_facts(write(name, content))


def test_errors_name_the_row_of_a_table(write):
    with pytest.raises(InputError, match="line 3: the fact .* has no 'target'"):
        read_facts(write("a.csv", "template,subject,target\nThe capital of {} is,France,Paris\nIt is,,\n"))


def test_lists_in_a_table_are_json(write):
    (fact,) = read_facts(
        write("a.csv", 'template,subject,target,paraphrases\n{} is,A,b,"[""{} was"", ""So is {}""]"\n')
    )
    assert fact.paraphrases == ("{} was", "So is {}")


def test_numbers_are_answers_and_ids(write):
    record = {
        "template": "{} was founded in",
        "subject": 1984,
        "target": 1990,
        "target_new": 2.5,
        "id": 7,
        "aliases": [5],
    }
    (fact,) = read_facts(write("a.json", json.dumps([record])))
    assert (fact.subject, fact.target, fact.target_new, fact.id, fact.aliases) == ("1984", "1990", "2.5", "7", ("5",))
    for wrong in (True, None, ["x"]):
        with pytest.raises(InputError, match="the target of a fact is"):
            read_facts(write("a.json", json.dumps([record | {"target": wrong}])))


def test_fields_of_others_are_kept_and_said_once(write):
    path = write("a.json", json.dumps([FRANCE | {"note": {"by": "me"}, "paraphrase": "x"}, ITALY | {"note": 3}]))
    with pytest.warns(KnoweditWarning) as said:
        facts = read_facts(path)
    texts = [str(warning.message) for warning in said]
    assert "a fact has no field 'note'; it is kept and not used" in texts
    assert any("no field 'paraphrase' (did you mean 'paraphrases'" in text for text in texts)
    assert dict(facts[0].extra) == {"note": '{"by": "me"}', "paraphrase": '"x"'} and facts[1].extra == (("note", "3"),)
    assert Fact.from_dict(json.loads(json.dumps(facts[0].as_dict()))) == facts[0]  # without another word


def test_fields_of_others_in_neighbours_and_probes_are_said(write):
    near = {"prompt": "Rome is in", "target": "Italy", "score": 1}
    probe = {"kind": "two-hop", "prompt": "They speak", "answers": ["French", 3], "id": 1}
    with pytest.warns(KnoweditWarning, match="has no field"):
        (fact,) = read_facts(write("a.json", json.dumps([FRANCE | {"neighbours": [near], "probes": [probe]}])))
    assert fact.neighbours[0].target == "Italy" and fact.probes[0].answers == ("French", "3")


def test_a_fact_may_have_no_subject(write):
    (fact,) = read_facts(write("a.jsonl", '{"template": "The largest planet is", "target": "Jupiter"}'))
    assert (fact.subject, fact.prompt) == (None, "The largest planet is")
    with pytest.raises(InputError, match="rome needs the subject of 'The largest planet is'"):
        fact.subject_for("rome")
    with pytest.raises(InputError, match="--subject to be named"):
        read_facts(write("b.jsonl", '{"template": "The capital of {} is", "target": "Paris"}'))


COUNTERFACT = {
    "requested_rewrite": {
        "prompt": "{} was founded in", "subject": "Acme", "target_true": {"str": 1990}, "target_new": {"str": 1991},
    }
}  # fmt: skip


def test_counterfact_may_lack_paraphrases_and_neighbours(write):
    source = load_source(str(write("a.json", json.dumps([COUNTERFACT]))))
    (fact,) = source.facts
    assert source.format == "counterfact" and (fact.target, fact.target_new) == ("1990", "1991")
    assert fact.neighbours == fact.rephrasings == ()


def test_other_formats_come_packed_and_in_tables(write):
    rows = "case_id,prompt,target_new,subject,ground_truth,rephrase_prompt,locality_prompt,locality_ground_truth\n"
    rows += "3,Lyon is a twin city of,Lisbon,Lyon,Warsaw,Its twin city has,Taipei is a twin city of,Warsaw\n"
    for path in (write("lite.csv", rows), write("lite.csv.gz", gzip.compress(rows.encode(), mtime=0))):
        source = load_source(str(path))
        assert source.format == "counterfact-lite" and source.facts[0].prompt == "Lyon is a twin city of"


def test_the_files_of_data_sets_are_read_like_our_own(write):
    path = write("counterfact.json", json.dumps([COUNTERFACT]))
    assert read_facts(path) == load_source(str(path)).facts
    with pytest.raises(InputError, match="has the id .* twice"):
        read_facts(write("twice.json", json.dumps([COUNTERFACT | {"case_id": 3}] * 2)))
