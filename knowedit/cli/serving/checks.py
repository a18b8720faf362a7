"""`knowedit test`: edits against facts that have to hold and facts that have to stay, with an exit status for CI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..edits.files import loaded
from ..shared.command import run_command
from ..shared.options import ModelOptions, Output, Texts
from ..shared.progress import progress


def test(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Saved edits, in the order of application.")],
    hold: Annotated[
        Texts, typer.Option(metavar="FILE", help="Facts whose new answers have to be the first choice. Repeat it.")
    ] = [],  # noqa: B006
    keep: Annotated[
        Texts, typer.Option(metavar="FILE", help="Facts whose answers have to stay what they are. Repeat it.")
    ] = [],  # noqa: B006
    max_perplexity: Annotated[
        str | None, typer.Option(metavar="P%", help="How much perplexity on a plain text may rise, such as 1%.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a JUnit report, too.", dir_okay=False)
    ] = None,
    *,
    model: ModelOptions,
    output: Output,
) -> None:
    """Check edits: what has to hold, what has to stay. The exit status is 3 where a check fails, with a table of them.

    Two options, since a file of facts does not say what it is for: the same facts hold after their edit and stay under
    another.
    """
    from ...errors import InputError
    from ...files import check_file, write_bytes
    from ...serving.checks import ChecksFailed, run_checks

    if not hold and not keep and max_perplexity is None:
        raise InputError("there is nothing to check; give --hold FILE, --keep FILE or --max-perplexity P%")
    if junit is not None:
        junit = check_file(junit)
    most = None if max_perplexity is None else _share(max_perplexity)
    edits, holding, staying = loaded(folders), _facts(hold), _facts(keep)

    def run(model):
        with progress("asking", len(holding) + len(staying), "prompt") as step:
            checks = run_checks(model, edits, hold=holding, keep=staying, max_perplexity=most, progress=step)
        if junit is not None:
            write_bytes(junit, checks.junit())
        return checks

    checks = run_command("knowedit.test/1", run, model, output)
    if checks.failed:
        raise ChecksFailed(f"checks that failed: {len(checks.failed)} of {len(checks.checks)}; the table says which")


def _facts(names: list[str]) -> list:
    from ...sources import load_source

    return [fact for name in names for fact in load_source(name).facts]


def _share(text: str) -> float:
    from ...errors import InputError

    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"--max-perplexity is {text!r}, expected a share such as 1% or 0.01")
    return value
