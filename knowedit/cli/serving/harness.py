"""`knowedit eval`: edits under the tasks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..edits.files import loaded
from ..shared.command import run_command
from ..shared.options import SEEDS, EditFolders, ModelOptions, Output


def evaluate(
    edit: EditFolders = [],  # noqa: B006
    tasks: Annotated[str, typer.Option(metavar="A,B", help="Tasks of lm-eval by name, with commas.")] = "",
    limit: Annotated[int | None, typer.Option(help="Only the first so many documents of each task.", min=1)] = None,
    shots: Annotated[int | None, typer.Option(help="Examples before each; by default the task's own.", min=0)] = None,
    batch: Annotated[int, typer.Option(help="Rows at once.", min=1)] = 8,
    include: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of tasks of your own.", exists=True, file_okay=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of lm-eval's draws.", **SEEDS)] = 0,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """Tasks of lm-evaluation-harness without and with edits, paired by document. Needs the extra lm-eval."""
    from ...errors import InputError
    from ...serving.harness import check_installed, evaluate as run

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise InputError("name tasks of lm-eval by --tasks, such as --tasks hellaswag,lambada_openai")
    edits = loaded(edit)
    if not edits:
        raise InputError("name an edit with --edit DIR, the folder that it was saved to")
    check_installed()

    def measure(loaded):
        return run(loaded, edits, names, limit=limit, shots=shots, batch=batch, include=include, seed=seed)

    run_command("knowedit.eval/1", measure, model, output)
