"""`knowedit ui`: the dashboard, served on this machine alone."""

from __future__ import annotations

from typing import Annotated

import typer

from .shared.options import ModelOptions
from .shared.output import line


def ui(
    port: Annotated[
        int | None, typer.Option(help="The port; by default the first free one from 7860 on.", min=1, max=65535)
    ] = None,
    *,
    model: ModelOptions,
) -> None:
    """Serve the dashboard: ask a fact, look inside, find its neurons, edit it, and take the edit back.

    It is served on the loopback: nobody else reaches it, and it asks for nothing from elsewhere. Stop it by Ctrl-C.
    """
    from ..errors import InputError

    try:
        from ..ui.app import check_port, serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "gradio":
            raise
        raise InputError("the dashboard needs gradio; pip install 'knowedit[ui]'") from None
    check_port(port)  # before a model is loaded
    serve(model.load(), port, ready=lambda address: line(f"The dashboard is at {address}; stop it by Ctrl-C"))
