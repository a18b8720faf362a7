"""`knowedit bench configs`: the installed settings of benchmarks."""

from __future__ import annotations

from typing import Annotated

import typer

from ..shared.options import AsJson
from ..shared.output import line, print_json, table


def configs(
    name: Annotated[str | None, typer.Argument(help="Show all of one; without it all are listed.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the settings that are installed: what `--config NAME` takes."""
    from ...evaluate.runs.configs import find_config, named_configs

    found = list(named_configs().values()) if name is None else [find_config(name)]
    if as_json:
        print_json({"schema": "knowedit.bench-configs/1", "configs": [config.as_dict() for config in found]})
    elif name is None:
        table(("config", "bench", "what it is"), [(config.name, config.study, config.words) for config in found])
    else:
        _show(found[0])


def _show(config) -> None:
    import yaml

    line(config.words)
    if config.needs:
        line(f"Needs {config.needs}")
    line(config.command)
    line()
    for text in yaml.safe_dump({"study": config.study, **config.settings}, sort_keys=False).splitlines():
        line(text)
