"""A new format is a reader and a row: facts, commands and benchmarks take its files then, without being told."""

import json
from collections.abc import Iterator

import pytest

from knowedit.cli import main
from knowedit.errors import InputError
from knowedit.facts import Fact
from knowedit.sources import load_source
from knowedit.sources.fields import Fields, Skip
from knowedit.sources.formats import FORMATS, Format

RECORDS = [
    {
        "who": "Zarn",
        "sentence": "Zarn lives in",
        "place": "Aldor",
        "moved_to": "Bexum",
        "also": ["Zarn's home is"],
    },
    {"who": "Mirel", "sentence": "Mirel lives in", "place": "Bexum", "moved_to": "", "also": []},
]


def moves(record: Fields, index: int) -> Iterator[Fact | Skip]:
    """Somebody moved: {"who", "sentence", "place", "moved_to", "also": […]}."""
    subject = record.text("who")
    if not record.record.get("moved_to"):
        yield Skip("nobody moved")
        return
    yield Fact(
        record.text("sentence").replace(subject, "{}"),
        subject,
        record.text("place"),
        id=f"moves-{index}",
        target_new=record.text("moved_to"),
        paraphrases=tuple(text.replace(subject, "{}") for text in record.texts("also", [])),
    )


MOVES = Format(("who", "moved_to"), moves)


@pytest.fixture
def file(monkeypatch, tmp_path):
    monkeypatch.setitem(FORMATS, "moves", MOVES)
    path = tmp_path / "moves.json"
    path.write_text(json.dumps(RECORDS), encoding="utf-8")
    return path


def test_a_new_format_is_known_by_its_fields(file):
    source = load_source(file)
    assert source.format == "moves" and [reason for _, reason in source.skipped] == ["nobody moved"]
    (fact,) = source.facts
    assert (fact.prompt, fact.target, fact.target_new) == ("Zarn lives in", "Aldor", "Bexum")
    assert fact.paraphrases == ("{}'s home is",)


def test_a_field_that_is_missing_is_named(file):
    file.write_text(json.dumps([{**RECORDS[0], "place": [3]}]), encoding="utf-8")
    with pytest.raises(InputError, match="place is .3., expected text"):
        load_source(file)


def test_commands_take_a_new_format_without_being_told(file, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "edit", "--source", str(file), "--method", "none", "--dry-run", "--json"])
    output = capsys.readouterr()
    assert end.value.code == 0, output.err
    assert json.loads(output.out)["records"] == 1
