"""`knowedit push`: an edit to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..shared.command import Printout, run_command
from ..shared.options import Output


def push(
    folder: Annotated[Path, typer.Argument(metavar="EDIT", help="A saved edit.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A model repository of the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Of a new repository: only for its owner.")] = False,
    *,
    output: Output,
) -> None:
    """Upload an edit with its card to the Hub. Its weights disclose its subject to whoever can read them."""
    from ...serving.hub import push_to_hub

    address = push_to_hub(folder, repo, private=private)
    printout = Printout({"repo": repo, "commit": address}, (f"{folder} is on the Hub: {address}",))
    run_command("knowedit.pushed/1", lambda _: printout, None, output)
