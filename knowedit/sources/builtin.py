"""Facts in our own format: the built-in ones, and JSONL files of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

from ..errors import DataError, InputError, did_you_mean
from ..facts import Fact


@cache
def builtin_facts() -> tuple[Fact, ...]:
    """The facts that ship with knowedit, in the order of their file."""
    text = resources.files("knowedit").joinpath("data", "facts.jsonl").read_text(encoding="utf-8")
    return tuple(parse(text, "the built-in facts"))


def read_facts(path: str | Path) -> tuple[Fact, ...]:
    """Facts out of a JSONL file, one JSON object a line with the fields of `Fact`.

    Facts without an id are numbered by their line. Raises `InputError` for a missing file or a wrong record and
    `DataError` for text that is not JSON, naming the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # editors on Windows put a byte order mark first
    except OSError as error:
        raise InputError(f"cannot read the facts file {str(path)!r}: {error.strerror}; give a JSONL file") from None
    except UnicodeDecodeError:
        raise DataError(f"{str(path)!r} is not UTF-8 text; a facts file has one JSON object a line") from None
    facts = tuple(parse(text, str(path)))
    if not facts:
        raise InputError(f"{str(path)!r} holds no facts; expected one JSON object a line")
    return facts


def find_fact(name: str, facts: tuple[Fact, ...] | None = None) -> Fact:
    """The fact with id `name` (built-in ones unless `facts` are given)."""
    facts = builtin_facts() if facts is None else facts
    by_id = {fact.id: fact for fact in facts}
    if name not in by_id:
        raise InputError(
            f"no fact is called {name!r}{did_you_mean(name, by_id)}; `knowedit facts` lists the built-in ones"
        )
    return by_id[name]


def parse(text: str, source: str) -> Iterator[Fact]:
    """The facts in `text`, one JSON object a line; errors name `source` and the line."""
    seen = set()
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if isinstance(record, dict) and not record.get("id"):
                record["id"] = f"line-{number}"
            fact = Fact.from_dict(record)
        except json.JSONDecodeError as error:
            raise DataError(f"{source}, line {number}: not JSON ({error.msg}); expected one object a line") from None
        except RecursionError:
            raise DataError(f"{source}, line {number}: not JSON (nested too deeply), expected an object") from None
        except InputError as error:
            raise InputError(f"{source}, line {number}: {error}") from None
        if fact.id in seen:
            raise InputError(f"{source}, line {number}: the id {fact.id!r} was used before; ids are unique")
        seen.add(fact.id)
        yield fact
