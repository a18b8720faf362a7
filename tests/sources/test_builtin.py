"""JSONL files of facts: read whole or refused with the line that is wrong."""

import json

import pytest

from knowedit.errors import DataError, InputError
from knowedit.sources import builtin_facts, find_fact, read_facts

FRANCE = {"template": "The capital of {} is", "subject": "France", "target": "Paris"}


@pytest.fixture
def write(tmp_path):
    def make(*lines, name="facts.jsonl"):
        path = tmp_path / name
        path.write_text(
            "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8"
        )
        return path

    return make


def test_facts_without_an_id_are_numbered_by_line(write):
    facts = read_facts(write(FRANCE, "", {**FRANCE, "id": "own"}, FRANCE, ""))
    assert [fact.id for fact in facts] == ["line-1", "own", "line-4"]
    assert facts[0].target == "Paris"


def test_text_beyond_ascii_and_odd_line_separators_survive(write):
    odd = {**FRANCE, "subject": "東京\u2028São", "target": "🗼"}
    (fact,) = read_facts(write(json.dumps(odd, ensure_ascii=False)))
    assert (fact.subject, fact.target) == ("東京\u2028São", "🗼")


def test_windows_line_ends_are_fine(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_bytes((json.dumps(FRANCE) + "\r\n" + json.dumps(FRANCE) + "\r\n").encode())
    assert len(read_facts(path)) == 2


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FRANCE).encode())
    assert read_facts(path)[0].subject == "France"


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("{not json", DataError, "line 2: not JSON"),
        ('{"template": "The', DataError, "line 2: not JSON"),
        ({**FRANCE, "template": "no slot"}, InputError, "line 2: template 'no slot' has 0 slots"),
        ({**FRANCE, "target": ""}, InputError, "line 2: the target of a fact is ''"),
        ("[1, 2]", InputError, "line 2: a fact is a JSON object"),
        ({"templat": "x", "target": "y"}, InputError, "line 2: the fact .* has no 'template' .did you mean 'templat'"),
        ({**FRANCE, "id": "line-1"}, InputError, "line 2: the id 'line-1' was used before"),
        ({**FRANCE, "id": [7]}, InputError, "line 2: .*id"),
        ({**FRANCE, "neighbours": 5}, InputError, "line 2: .*neighbours"),
        ({**FRANCE, "aliases": 5}, InputError, "line 2: aliases"),
        ("[" * 100_000, DataError, "line 2: not JSON"),
    ],
)
def test_errors_name_the_line(write, line, error, message):
    with pytest.raises(error, match=message):
        read_facts(write(FRANCE, line))


def test_files_that_cannot_be_read(tmp_path, write):
    with pytest.raises(InputError, match="cannot read .*missing.jsonl': No such file"):
        read_facts(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        read_facts(tmp_path)
    with pytest.raises(InputError, match="holds no facts"):
        read_facts(write("", ""))
    (tmp_path / "bytes").write_bytes(b"\xe9\xfe\x00")
    with pytest.raises(DataError, match="is not UTF-8"):
        read_facts(tmp_path / "bytes")


def test_find_fact_by_id_or_with_a_hint(write):
    facts = read_facts(write({**FRANCE, "id": "capital/france"}, {**FRANCE, "id": "capital/spain"}))
    assert find_fact("capital/spain", facts) is facts[1]
    with pytest.raises(InputError, match="no fact is called 'capital/frence' .did you mean 'capital/france'"):
        find_fact("capital/frence", facts)
    with pytest.raises(InputError, match="no fact is called 'france' .did you mean 'capital/france'"):
        find_fact("france", facts)


def test_builtin_facts_are_found_by_their_own_ids():
    fact = builtin_facts()[0]
    assert find_fact(fact.id) is fact
    assert fact.subject in fact.prompt
