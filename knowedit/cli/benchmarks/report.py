"""`knowedit report`: tables and figures of one or more runs of a benchmark, compared record by record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...writing.counts import number_of
from ..shared.help import choice
from ..shared.options import AsJson
from ..shared.output import line, print_json, table

FORMATS = ("terminal", "markdown", "latex", "csv")


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs; the others are compared with the first.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="A new folder for tables (Markdown, LaTeX, CSV) and figures (PNG, SVG, PDF).")
    ] = None,
    format: Annotated[str | None, choice(FORMATS, "--format", help="How tables are printed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what runs of a benchmark found; two or more over the same records are compared record by record."""
    from ...errors import InputError
    from ...files import check_new
    from ...report.bench.report import bench_report
    from ...report.bench.tables import WRITERS, cells

    if format is not None and (out is not None or as_json):
        raise InputError("--format is for printed tables; leave it out beside --out, which writes all, and --json")
    if out is not None:
        out = check_new(out)
    bench = bench_report(runs)
    files = [] if out is None else bench.write(out)
    if as_json:
        print_json({"schema": "knowedit.report/1", "out": None if out is None else str(out), **bench.as_dict()})
    elif out is not None:
        line(f"{number_of(len(files), 'file')} in {out}: {', '.join(files)}")
    elif format in (None, "terminal"):
        for i, printed in enumerate(bench.tables()):
            if i:
                line()
            line(printed.title)
            table(printed.columns, cells(printed))
            if printed.note:
                line(printed.note)
    else:
        typer.echo("\n".join(WRITERS[format](printed) for printed in bench.tables()), nl=False)
