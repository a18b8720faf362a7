"""`knowedit log` and `revoke`: a folder of edits with a record of who did what, and what is left when one goes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from ..edits.files import FORMATS, Base, MatrixType, check_export
from ..shared.command import Printout, run_command
from ..shared.help import choice
from ..shared.options import ModelOptions, Output

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of saved edits.")]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who you are; by default git's user name.")]


def log(folder: Folder, by: By = None, *, output: Output) -> None:
    """Who changed what and when: edits that are new in the folder are logged, then all are listed, live or revoked.

    The log only grows. A line or an edit that was changed since is refused. Loads no model.
    """
    from ...errors import InputError
    from ...serving.edit_log import EditLog

    known = EditLog(folder)
    known.record(_who(known, by))
    if not known.entries:
        raise InputError(f"{str(folder)!r} holds no saved edits; give the folder that holds their folders")
    run_command("knowedit.log/1", lambda _: known, None, output)


def revoke(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="EDIT", help="The edit's folder in FOLDER.")],
    by: By = None,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Why it goes, for the log.")] = "",
    to: Annotated[
        str | None, choice(FORMATS, "--to", help="Also export what is left, as `knowedit export` does.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --to: a new folder for what is left.")] = None,
    base: Base = None,
    type: MatrixType = None,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """Take an edit back: the log says so, and what is left is exported anew, with its files' hashes in the log.

    The edit's files stay. A model is loaded for --to only.
    """
    from ...errors import InputError
    from ...serving.edit_log import EditLog
    from ...serving.export import export

    if (to is None) != (out is None):
        raise InputError("--to says how what is left is exported and --out DIR where to; give both, or none")
    if to is None and (base, type) != (None, None):
        raise InputError("--base and --type are about an export; give --to and --out, or leave them out")
    if to is not None:
        out = check_export(out, to, base, type)
    known, name = EditLog(folder), Path(name).name
    known.record(who := _who(known, by))
    known.check_live(name)
    left = known.live(without=name)
    if to is not None and not left:
        raise InputError(f"{name!r} is the last live edit: serve the base model; leave --to and --out out")

    def run(model):
        if to is not None:
            export(left, model, out, to, base=base, type=type)
        try:
            known.revoke(name, who, why, exported=out)
        except BaseException:
            if out is not None:
                shutil.rmtree(out)  # what no log tells of is not to be served
            raise
        record = {"revoked": name, "left": len(left), "out": out and str(out), "last": known.last}
        where = f", exported to {out}" if out else ""
        text = f"{name} is revoked; {len(left)} live{where}. The log ends in {known.last}"
        return Printout(record, (text,))

    run_command("knowedit.revoked/1", run, model if to is not None else None, output)


def _who(known, by: str | None) -> str:
    from ...errors import InputError
    from ...serving.edit_log import user

    if by is not None and not by.strip():
        raise InputError("--by is empty, expected the name of who you are")
    return user(known.folder) if by is None else by
