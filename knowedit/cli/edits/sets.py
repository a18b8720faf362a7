"""`knowedit set`: many facts as one change of a model, in a folder that only grows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ...display.result import Table
from ...edit.methods.table import METHODS
from ...writing.counts import number_of
from ..shared.command import Printout, command, run_command
from ..shared.help import Command, choice, group
from ..shared.options import ModelOptions, Output, Texts
from ..shared.output import note
from ..shared.progress import progress

SOLVERS = [name for name, row in METHODS.items() if "fact_set" in row.file]

SAID = 5  # records that are left out and named

app = group("set", "Hundreds of facts as one change of the weights, which come and go one by one.")

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a fact set.")]
FactFile = Annotated[
    str, typer.Option("--facts", help="A file of facts (JSON, JSON lines, CSV, a data set), or `builtin`.")
]
Limit = Annotated[int | None, typer.Option("--limit", help="Only the first of the facts.", min=1)]

# ---------------------------------------------------------------- facts come and go


@app.command("add", cls=Command)
@command
def add(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a fact set, or a new one.")],
    facts: FactFile,
    limit: Limit = None,
    solver: Annotated[
        str | None, choice(SOLVERS, "--solver", help="Of a new set: how facts become a change; memit by default.")
    ] = None,
    settings: Annotated[
        Texts,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Of a new set, such as layers=[1,2] or solver.ridge_share=0.05. Repeat it.",
        ),
    ] = [],  # noqa: B006
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """Add facts to a set. Those that contradict others, or whose search fails, are kept out and listed.

    What is found is kept at once: if this is interrupted, the same command goes on.
    """
    from ...edit.fact_set.fact_set import FactSet
    from ...edit.fact_set.store import HEADER
    from ...edit.methods.table import method_config
    from ...errors import InputError
    from ...files import check_new
    from ...settings import parse_settings

    chosen = _read(facts, limit)
    named = parse_settings(settings)
    config = partial(method_config, solver or SOLVERS[0], named, None)
    config()  # a wrong name is said before a model is loaded
    is_there = (folder.expanduser() / HEADER).exists()
    if not is_there:
        check_new(folder)

    def run(model):
        if is_there:
            known = FactSet.load(model, folder)
            if (solver or named) and FactSet(model, config(model)).config != known.config:
                raise InputError(f"the set {str(folder)!r} has other settings; leave --solver and --set out")
        else:
            known = FactSet(model, config(model))
            known.save(folder)
        with progress("searching", len(chosen), "fact") as step:
            added = known.add(chosen, progress=step)
        return Printout(_added(model, known, added), _shown(known, added))

    run_command("knowedit.set-added/1", run, model, output)


@app.command("replace", cls=Command)
@command
def replace_facts(folder: Folder, facts: FactFile, limit: Limit = None, *, model: ModelOptions, output: Output) -> None:
    """Put facts in the places of those with the same ids. One that is kept out leaves the old one where it was."""
    from ...edit.fact_set.fact_set import FactSet

    chosen = _read(facts, limit)

    def run(model):
        known = FactSet.load(model, folder)
        with progress("searching", len(chosen), "fact") as step:
            added = known.replace(chosen, progress=step)
        return Printout(_added(model, known, added), _shown(known, added))

    run_command("knowedit.set-added/1", run, model, output)


@app.command("remove", cls=Command)
@command
def remove(
    folder: Folder,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The facts that go.")],
    *,
    output: Output,
) -> None:
    """Take facts away: the change is then, to the bit, what it would be had they never been added. Loads no model."""
    from ...edit.fact_set.store import Store

    store = Store.read(folder)
    store.change(store.check_there(ids), ())
    record = {"removed": ids, "facts": len(store.members)}
    text = f"{len(ids)} removed, the set has {number_of(len(store.members), 'fact')}"
    run_command("knowedit.set-removed/1", lambda _: Printout(record, (text,)), None, output)


def _read(name: str, limit: int | None) -> list:
    """The facts of a file with new answers, by ids of their own; what else it holds is said, and left out."""
    from ...edit.edit import check_request
    from ...edit.fact_set.rows import by_id
    from ...errors import InputError
    from ...sources import load_source

    source = load_source(name, lenient=True)
    left_out = [f"{place}: {reason}" for place, reason in source.skipped]
    facts = []
    for fact in source.facts[:limit]:
        try:
            check_request(fact)
            facts.append(fact)
        except InputError as error:
            left_out.append(str(error))
    for why in left_out[:SAID]:
        note(f"left out: {why}")
    if len(left_out) > SAID:
        note(f"left out: {len(left_out) - SAID} more")
    if not facts:
        raise InputError(f"{name!r} holds no fact with a new answer; give each a target_new")
    return list(by_id(facts).values())


def _added(model, known, added) -> dict[str, Any]:
    return {
        "model": model.name,
        "facts": len(known),
        "added": list(added.added),
        "there": list(added.there),
        "kept_out": added.kept_out,
        "collisions": [
            {"facts": [c.one, c.other], "cosine": c.cosine, "why": c.why} for c in added.collisions
        ],
    }  # fmt: skip


def _shown(known, added) -> Iterator[str | Table]:
    if added.kept_out:
        yield Table(("kept out", "why"), list(added.kept_out.items()))
        yield ""
    if added.collisions:
        yield Table(("fact", "fact", "cosine", ""), [(c.one, c.other, c.cosine, c.why) for c in added.collisions])
        yield ""
    there = f", {len(added.there)} were there" if added.there else ""
    out = f", {len(added.kept_out)} kept out" if added.kept_out else ""
    yield f"{len(added.added)} added{there}{out}; the set has {number_of(len(known), 'fact')}"


# ---------------------------------------------------------------- what is in a set


@app.command("list", cls=Command)
@command
def list_set(folder: Folder, *, output: Output) -> None:
    """The facts of a set, and how probable each new answer was at the end of its search. Loads no model."""
    from ...edit.fact_set.rows import row_name
    from ...edit.fact_set.store import Store

    store = Store.read(folder)
    rows = [
        {
            "id": fact.id,
            "prompt": fact.prompt,
            "target": fact.target,
            "target_new": fact.target_new,
            "probability": store.rows[row_name(fact)].probability,
            "steps": store.rows[row_name(fact)].steps,
        }
        for fact in store.facts()
    ]
    config = store.header["config"]
    record = {"model": store.header["model"], "config": config, "facts": rows}
    cells = [(r["id"], r["prompt"], f"{r['target']} → {r['target_new']}", f"{r['probability']:.2f}") for r in rows]
    layers = _layers(config)
    parts = (
        Table(("id", "prompt", "answer", "p"), cells),
        "",
        f"{number_of(len(rows), 'fact')} for {store.header['model']}, by {config['method']} in {layers}",
    )
    run_command("knowedit.set/1", lambda _: Printout(record, parts), None, output)


def _layers(config: dict) -> str:
    """Which layers a set changes, in words; the model, which is not loaded, decides how many of those that are open."""
    if config["layers"] is None:
        return f"as many layers from {config['rows']['layer']} on as its facts ask for"
    return f"layer{'s' * (len(config['layers']) > 1)} {', '.join(map(str, config['layers']))}"


@app.command("diff", cls=Command)
@command
def diff_sets(
    one: Annotated[Path, typer.Argument(metavar="A", help="A fact set.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    *,
    output: Output,
) -> None:
    """Which facts are in one set and not in another, by what they say. Loads no model."""
    from ...edit.fact_set.store import Store

    stores = Store.read(one), Store.read(other)
    of = [{store.hashes[name]: fact for name, fact in store.members.items()} for store in stores]
    only = [[fact for content, fact in of[i].items() if content not in of[1 - i]] for i in (0, 1)]
    record = {
        "same_base": stores[0].header["weights"] == stores[1].header["weights"],
        "same_config": stores[0].header["config"] == stores[1].header["config"],
        "only_a": [fact.as_dict() for fact in only[0]],
        "only_b": [fact.as_dict() for fact in only[1]],
        "both": len(of[0].keys() & of[1].keys()),
    }
    rows = [(mark, f.id, f.prompt, f.target_new) for mark, facts in zip("-+", only, strict=True) for f in facts]
    others = [what for what in ("base", "config") if not record[f"same_{what}"]]
    parts = (
        Table(("", "id", "prompt", "answer"), rows),
        "",
        f"{len(only[0])} only in {one}, {len(only[1])} only in {other}, {record['both']} in both"
        + (f"; the {' and the '.join(others)} of the two differ" if others else ""),
    )
    run_command("knowedit.set-diff/1", lambda _: Printout(record, parts if rows else parts[2:]), None, output)
