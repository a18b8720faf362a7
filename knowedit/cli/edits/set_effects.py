"""`knowedit set ask`, `check` and `export`: what a set of facts does to a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ...display.result import Table
from ...serving.formats import FORMATS
from ...writing.counts import number_of
from ..shared.command import Printout, command, run_command
from ..shared.help import Command, choice
from ..shared.options import ModelOptions, Output
from ..shared.progress import progress
from .files import Base, MatrixType, about_base, check_export, reloaded
from .sets import Folder, app

SERVED = 512  # the largest rank of an adapter that vLLM serves


@app.command("ask", cls=Command)
@command
def ask_set(
    folder: Folder,
    prompt: Annotated[str, typer.Argument(help="A prompt that the answer continues.")],
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """What the model answers to a prompt without the set and with it: its first choices."""
    from ...answers import ask
    from ...edit.fact_set.fact_set import FactSet
    from ...prompts import with_target_ids

    def run(model):
        known = _ready(FactSet.load(model, folder))
        query = with_target_ids(model.encode(prompt), (0,), model.tokenizer.mask_token_id if model.masked else None)
        (before,) = ask(model, [query])
        with known.applied():
            (after,) = ask(model, [query])
        record = {"model": model.name, "prompt": prompt, "before": list(before.top), "after": list(after.top)}
        rows = [
            (repr(a), f"{p:.3f}", repr(b), f"{q:.3f}") for (a, p), (b, q) in zip(before.top, after.top, strict=True)
        ]
        chance = "p of first token"
        return Printout(record, (prompt, "", Table(("without", chance, "with the set", chance), rows)))

    run_command("knowedit.set-ask/1", run, model, output)


@app.command("check", cls=Command)
@command
def check_set(
    folder: Folder,
    least: Annotated[
        float, typer.Option("--least", help="The share of facts that have to hold; else the status is 1.", min=0, max=1)
    ] = 1.0,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """Is each new answer the model's first choice with the set on it? The exit status is 1 where too few are."""
    from ...edit.fact_set.fact_set import FactSet
    from ...serving.checks import run_checks

    def run(model):
        known = _ready(FactSet.load(model, folder))
        with progress("asking", len(known), "fact") as step:
            lost = run_checks(model, [known.edit()], hold=known.facts, progress=step).failed
        rows = [(check.name, check.prompt, check.expected, check.found) for check in lost]
        names = ("id", "prompt", "target_new", "answer")
        record = {
            "model": model.name,
            "facts": len(known),
            "holding": len(known) - len(lost),
            "lost": [dict(zip(names, row, strict=True)) for row in rows],
        }
        text = f"facts that hold: {record['holding']} of {len(known)}"
        return Printout(record, (Table(("id", "prompt", "answer", "instead"), rows), "", text) if lost else (text,))

    record = run_command("knowedit.set-check/1", run, model, output).record
    if record["holding"] / record["facts"] < least:
        raise typer.Exit(1)


@app.command("export", cls=Command)
@command
def export_set(
    folder: Folder,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    to: Annotated[
        str, choice(("edit", *FORMATS), "--to", help="edit: for apply. The others are those of `knowedit export`.")
    ],
    rank: Annotated[
        int | None, typer.Option("--rank", help="Keep only so many directions of each weight's change.", min=1)
    ] = None,
    base: Base = None,
    type: MatrixType = None,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """Write a set as an edit, or for other tools as `knowedit export` does. What a smaller rank loses is said."""
    from ...edit.fact_set.fact_set import FactSet
    from ...errors import InputError
    from ...serving.export import export as write

    out = check_export(out, to, base, type)

    def run(model):
        edit = _ready(FactSet.load(model, folder)).edit()
        full = max(delta.rank for delta in edit.deltas.values())
        if to == "peft" and rank is None and full > SERVED:
            raise InputError(
                f"the change has rank {full}, and vLLM serves adapters of rank {SERVED} or less; keep fewer directions "
                f"by --rank {SERVED}, or give --rank {full} if it is not for vLLM"
            )
        lost = 0.0
        if rank is not None and rank < full:
            kept = {path: delta.truncated(rank) for path, delta in edit.deltas.items()}
            whole = sum(delta.norm() ** 2 for delta in edit.deltas.values())
            lost = max(0.0, 1 - sum(delta.norm() ** 2 for delta in kept.values()) / whole) ** 0.5
            edit = replace(edit, deltas=kept, notes={"rank": rank, "lost": lost})
        gap = None
        if to == "edit":
            edit.save(out)
        else:
            gap = write([edit], model, out, to, base=base, type=type)
        ranks = sorted({delta.rank for delta in edit.deltas.values()})
        record = {"model": model.name, "to": to, "ranks": ranks, "lost": lost, "out": str(out), "logit_gap": gap}
        text = f"{number_of(len(edit.facts), 'fact')}, rank {'/'.join(map(str, ranks))}, written to {out}"
        text += f"; the rank loses {lost:.2%} of ‖ΔW‖" if lost else ""
        return Printout(record, (text, *reloaded(to, gap), *about_base(to, base, model)))

    run_command("knowedit.exported/1", run, model, output)


def _ready(known):
    """The set with all that its change needs, which may take a while."""
    if len(known):
        known.prepare(progress)
    return known
