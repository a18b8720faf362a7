"""A set of facts under random histories and kills: is it what a set is that never knew of either?

Histories of adding, replacing and removing, over facts with two new answers each, end in some set. Its change must have
the bits of that of a set to which the same facts were added at once, in another order. And a process that adds facts to
a folder is killed at random moments by SIGKILL, goes on until it is done or killed once more, and starts over in a new
folder when it is done. Each folder has to load after a kill, and the change at the end must have the bits of that of a
set that nobody disturbed. Searches are short there, since it is bits that count and not answers.

*Churn* is one history of many facts, by the defaults: some are replaced, some are removed, and what is left is compared
with a set of the same facts that was made at once.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm.auto import tqdm

import knowedit
from knowedit import Fact, FactSet, Model
from knowedit.edit.apply import layers_of
from knowedit.edit.fact_set.config import FactSetConfig, fact_set_config, layers_for
from knowedit.edit.fact_set.rows import KeptRows
from knowedit.selection import by_relation

from ..registry import benchmark
from ..samples import editable, reported
from ..timing import Stopwatch
from .forked import killed_in_child

STEPS = 3  # of a search
LONGEST = 40  # changes of a history
AT_ONCE = 6  # facts of a change at most


@benchmark("robustness.set_histories", "Does a set of facts depend on its history?")
def histories(facts: int = 64, n: int = 200) -> dict:
    """`facts` that come and go in `n` histories."""
    with searched_anew() as (model, config):
        first, second = versions(reported(facts))
        held, fresh = FactSet(model, config), FactSet(model, config)
        return {"model": model.name, "layers": config.layers, **ended(held, fresh, first, second, n)}


@histories.row
def histories_row(record: dict) -> list[str]:
    left = record["left"]
    return [
        f"{record['histories']} histories over {record['facts']} facts, {record['changes']:,} changes, "
        f"{left['fewest']} to {left['most']} facts left: {record['same']} end in the bits of the same facts added "
        "at once in another order"
    ]


@benchmark("robustness.set_kills", "Do kills of a process that adds facts to a set lose or change any?")
def kills(facts: int = 64, n: int = 20) -> dict:
    """`n` kills of processes that add `facts`."""
    torch.set_num_threads(1)  # a process that was forked from one with more has lost them
    with searched_anew() as (model, config):
        first, _ = versions(reported(facts))
        undisturbed, watch = FactSet(model, config), Stopwatch()
        watch("add", undisturbed.add, first)
        whole = undisturbed.edit().factors_hash
        return {
            "model": model.name,
            "facts": len(first),
            "layers": config.layers,
            **killed(model, config, first, n, watch.total("add"), whole),
        }


@kills.row
def kills_row(record: dict) -> list[str]:
    return [
        f"{record['kills']} kills while {record['facts']} facts are added: {record['same']} of {record['sets']} sets "
        "have the bits of one that nobody disturbed"
    ]


@benchmark("robustness.set_churn", "What is left of facts that were replaced or removed in a large set?")
def churn(source: str, facts: int = 1000, replaced: int = 300, removed: int = 300) -> dict:
    """`source`: a file of facts with new answers, of which the first `facts` are added and the next take the places of
    `replaced` ones, under their ids. Rows that are in the cache are not searched for."""
    model, draw, watch = knowedit.load(), random.Random(0), Stopwatch()
    contents = editable(source)
    held, fresh = FactSet(model), FactSet(model)
    watch("add", held.add, contents[:facts])
    held.prepare()
    watch("solve", held.edit)
    ids = [str(fact.id) for fact in held]
    draw.shuffle(ids)
    new = [replace(fact, id=name) for name, fact in zip(ids[:replaced], contents[facts:], strict=False)]
    came = watch("replace", held.replace, new)
    watch("remove", held.remove, ids[replaced : replaced + removed])
    edit = watch("solve what is left", held.edit)
    left = list(held)
    draw.shuffle(left)
    fresh.add(left)
    same = fresh.edit().factors_hash == edit.factors_hash
    held.remove([left[0].id])
    watch("solve one less", held.edit)
    return {
        "model": model.name,
        "facts": len(ids),
        "replaced": len(came.added),
        "removed": removed,
        "left": len(left),
        "layers": sorted(layers_of(model, edit).values()),
        "same": same,
        "seconds": {name: watch.total(name) for name in watch.seconds},
    }


@churn.row
def churn_row(record: dict) -> list[str]:
    bits = "the bits" if record["same"] else "**not** the bits"
    solved = record["seconds"]["solve what is left"]
    return [
        f"{record['facts']} facts, {record['replaced']} replaced, {record['removed']} removed: the {record['left']} "
        f"that are left have {bits} of a set that was made at once; solved in {solved:.0f} s"
    ]


@contextmanager
def searched_anew() -> Iterator[tuple[Model, FactSetConfig]]:
    """The default model and settings with short searches, whose rows the cache neither gives nor gets."""
    model = knowedit.load()
    config = fact_set_config(model)
    assert config.rows.layer is not None
    config = replace(config, layers=layers_for(model, config.rows.layer, 1))  # one history is not to take more of them
    search = replace(config.rows.search, steps=STEPS)
    with patch.object(KeptRows, "read", return_value=None), patch.object(KeptRows, "write"):
        yield model, replace(config, rows=replace(config.rows, search=search), least=1e-12)


def versions(facts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """The facts with a new answer, that of another fact of the relation, and with a second one where there is one."""
    made: tuple[list[Fact], list[Fact]] = [], []
    for group in by_relation(facts).values():
        answers = list(dict.fromkeys(fact.target for fact in group))
        for fact in group:
            at = answers.index(fact.target)
            others = [*answers[at + 1 :], *answers[:at]]
            for version, answer in zip(made, others, strict=False):
                version.append(replace(fact, target_new=answer))
    return made


def ended(held: FactSet, fresh: FactSet, first: list[Fact], second: list[Fact], histories: int) -> dict:
    """How many histories end in the bits of a set that was made at once."""
    draw, same, changes, sizes = random.Random(0), 0, 0, []
    contents = [*first, *second]
    for _ in tqdm(range(histories), unit="history"):
        held.remove([str(fact.id) for fact in held])
        for _ in range(draw.randint(1, LONGEST)):
            drawn = {fact.id: fact for fact in draw.choices(contents, k=AT_ONCE)}
            new, there = ([f for f in drawn.values() if (f.id in held) == is_there] for is_there in (False, True))
            kind = draw.choice(("add", "add", "replace", "remove"))
            if kind == "add":
                held.add(new)
            elif kind == "replace":
                held.replace(there)
            else:
                held.remove([str(fact.id) for fact in there])
            changes += 1
        left = list(held)
        sizes.append(len(left))
        draw.shuffle(left)
        fresh.remove([str(fact.id) for fact in fresh])
        fresh.add(left)
        same += not left or held.edit().factors_hash == fresh.edit().factors_hash
    return {
        "histories": histories, "facts": len(first), "same": same, "changes": changes,
        "left": {"fewest": min(sizes), "most": max(sizes)},
    }  # fmt: skip


def killed(model: Model, config: FactSetConfig, facts: list[Fact], kills: int, seconds: float, whole: str) -> dict:
    """Kill a process that adds `facts`, which takes so many `seconds`, again and again; compare the sets at the end."""
    draw, hashes, moments = random.Random(0), [], 0
    with tempfile.TemporaryDirectory() as folder:
        while moments < kills or not hashes:
            place = FactSet(model, config).save(Path(folder) / str(len(hashes)))

            def add(place=place) -> None:
                FactSet.load(model, place).add(facts)

            def moment(_: int) -> None:
                time.sleep(draw.uniform(0, seconds / 2))

            while killed_in_child(add, moment if moments < kills else None):
                moments += 1
                FactSet.load(model, place)
            hashes.append(FactSet.load(model, place).edit().factors_hash)
    return {"kills": moments, "sets": len(hashes), "same": hashes.count(whole)}
