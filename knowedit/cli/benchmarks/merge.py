"""`knowedit merge`: one run out of the shards of a benchmark."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..shared.options import AsJson
from ..shared.output import note


def merge(
    runs: Annotated[list[Path], typer.Argument(help="The folders of all shards of one run.")],
    out: Annotated[Path, typer.Option(help="A new folder for the whole run.")],
    as_json: AsJson = False,
) -> None:
    """Make one run out of the shards of one, with a summary over all its records."""
    from ...evaluate.runs.folder import RunFolder, merge_runs
    from .bench import show_run

    shards = [RunFolder(folder) for folder in runs]
    merged = merge_runs(runs, out, partial(_summary, shards))
    if merged.manifest["config"].get("erase"):
        note("erased relations are not merged: erasing takes the model and all facts of a relation at once")
    show_run(merged, as_json)


def _summary(shards: list, rows) -> dict:
    """The summary of all records, but for what takes the model: erased relations."""
    manifest, summaries = shards[0].manifest, [shard.summary for shard in shards]
    config = manifest["config"]
    options = tuple(config.get("metrics") or ()), config.get("seed") or 0
    if manifest["study"] == "edit":
        from ...evaluate.edits.summary import summary

        found = summary(rows, *options)
    else:
        from ...evaluate.neurons.summary import summary as neurons_summary

        layers = max((len(counts) for s in summaries for counts in s.get("layers", {}).values()), default=None)
        found = neurons_summary(rows, *options, layers=layers)
        found.pop("located")
    return {**found, "skipped": max(s.get("skipped", 0) for s in summaries)}  # each shard read the whole source
