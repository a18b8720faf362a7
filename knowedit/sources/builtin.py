"""Facts in our own format: the built-in ones, and files of the user's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from pathlib import Path

from ..errors import InputError, did_you_mean
from ..facts import Fact
from .records import Bad, Placed, put_aside, records


@cache
def builtin_facts() -> tuple[Fact, ...]:
    """The facts that ship with knowedit, in the order of their file."""
    data = resources.files("knowedit").joinpath("data", "facts.jsonl").read_bytes()
    return tuple(own_facts(records(Path("facts.jsonl"), data), "the built-in facts"))


def find_fact(name: str, facts: tuple[Fact, ...] | None = None) -> Fact:
    """The fact with id `name` (built-in ones unless `facts` are given)."""
    facts = builtin_facts() if facts is None else facts
    by_id = {fact.id: fact for fact in facts}
    if name not in by_id:
        raise InputError(
            f"no fact is called {name!r}{did_you_mean(name, by_id)}; `knowedit facts` lists the built-in ones"
        )
    return by_id[name]


def own_facts(placed: Iterable[Placed], source: str, bad: Bad | None = None) -> Iterator[Fact]:
    """The facts that records are; errors name `source` and the place. With `bad` given, what is no fact goes there."""
    seen = set()
    for place, record in placed:
        if isinstance(record, dict) and not record.get("id"):
            record = {**record, "id": place.replace(" ", "-")}
        try:
            fact = Fact.from_dict(record)
            if fact.id in seen:
                raise InputError(f"the id {fact.id!r} was used before; ids are unique")
        except InputError as error:
            put_aside(bad, place, error, source)
            continue
        seen.add(fact.id)
        yield fact
