"""`knowedit models`: what can be loaded."""

from __future__ import annotations

from .shared.options import AsJson
from .shared.output import line, print_json, table


def list_models(as_json: AsJson = False) -> None:
    """List the models that can be loaded by alias, and the architectures that are known."""
    from ..models.layouts import LAYOUTS
    from ..models.loading import ALIASES

    aliases = [
        {"alias": name, "model": alias.display, "package": alias.requirement, "licence": alias.licence}
        for name, alias in ALIASES.items()
    ]
    if as_json:
        print_json({"aliases": aliases, "architectures": sorted(LAYOUTS)})
        return
    table(list(aliases[0]), [list(alias.values()) for alias in aliases])
    line(f"Architectures, from the Hub, a directory or a GGUF file: {', '.join(sorted(LAYOUTS))};")
    line("others are looked at by structure.")
