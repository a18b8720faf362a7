"""`knowedit models`: what can be loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from .shared.options import AsJson
from .shared.output import line, print_json, table

Verify = Annotated[
    bool,
    typer.Option("--verify", help="Also hash the models in the cache; a damaged one is made again when it is loaded."),
]


def list_models(verify: Verify = False, as_json: AsJson = False) -> None:
    """List the models that can be loaded by alias, and the architectures that are known."""
    from ..models.conversion import ALIASES, verify_converted
    from ..models.layouts import LAYOUTS

    aliases = [
        {
            "alias": name,
            "model": alias.display,
            "package": alias.requirement,
            "licence": f"{alias.licence} ({alias.terms})" if alias.terms else alias.licence,
        }
        for name, alias in ALIASES.items()
    ]
    cached = verify_converted() if verify else None
    if as_json:
        print_json({"aliases": aliases, "architectures": sorted(LAYOUTS), "cached": cached})
        return
    table(list(aliases[0]), [list(alias.values()) for alias in aliases])
    line(f"Architectures, from the Hub, a directory or a GGUF file: {', '.join(sorted(LAYOUTS))};")
    line("others are looked at by structure.")
    for name, fault in (cached or {}).items():
        line(f"{name} in the cache is {'sound' if fault is None else f'damaged: {fault}'}")
