"""Options that several commands share, and what they lead to."""

from __future__ import annotations

from typing import Annotated

import typer

ModelName = Annotated[
    str, typer.Option("--model", help="An alias (see `knowedit models`), a Hub id, a directory or a GGUF file.")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; the checkpoint's own by default.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model. Only if you trust its author.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
Chat = Annotated[bool, typer.Option("--chat", help="Ask through the model's chat template.")]

DEFAULT_MODEL = "smollm2-135m"


def load(name: str, dtype: str | None, device: str | None, trust_remote_code: bool):
    """Load a model for a command."""
    from ... import load as load_model

    return load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def layer_list(text: str | None) -> tuple[int, ...] | None:
    """The layers that an option names: a range, a list, or None for all."""
    from ...errors import InputError

    if text is None:
        return None
    chosen: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.strip().isdigit() or (last and not last.strip().isdigit()):
            raise InputError(f"layers are {text!r}, expected a range such as 2-29 or a list such as 20,21,22")
        chosen += range(int(first), int(last or first) + 1)
    if not chosen:
        raise InputError(f"layers {text!r} name none; the first of a range comes first, as in 2-29")
    return tuple(chosen)
