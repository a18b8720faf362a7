"""Finished runs as reports take them: what was run, and its summary, looked at before it is believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError, InputError
from ...evaluate.runs.folder import RunFolder

COUNTS = ("records", "failed", "skipped", "empty", "unproved", "seconds", "records_per_second")


@dataclass(frozen=True)
class ReportedRun:
    """A finished run under the name that tables and figures give it.

    `summary` holds only what reports show: `metrics`, `before`, `by_relation`, … and the `COUNTS`.
    """

    name: str
    run: RunFolder
    study: str
    config: dict
    model: str
    summary: dict

    @property
    def method(self) -> str:
        config = self.config.get("locate", self.config)  # a study of neurons embeds how they are located
        return str(config.get("method", "")) if isinstance(config, dict) else ""

    def as_dict(self) -> dict:
        return {
            "name": self.name,
            "folder": str(self.run.folder),
            "study": self.study,
            "model": self.model,
            "config": self.config,
            **self.summary,
        }


def read_runs(folders: Sequence[str | Path]) -> list[ReportedRun]:
    """The finished runs in `folders`, called by their folders' names.

    Raises `InputError` for a folder that is no run, is not finished or is given twice, and `DataError` for a damaged
    one.
    """
    runs = [RunFolder(folder) for folder in folders]
    places = [run.folder.resolve() for run in runs]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise InputError(f"the run {str(folders[i])!r} is given twice; give each run once")
    return [_read(name, run) for name, run in zip(_names(places), runs, strict=True)]


def _names(places: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    for length in range(1, max(len(place.parts) for place in places) + 1):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            break
    return names


def _read(name: str, run: RunFolder) -> ReportedRun:
    manifest, summary = run.manifest, run.summary
    study, config = manifest.get("study"), manifest.get("config")
    if not isinstance(study, str) or not isinstance(config, dict):
        raise DataError(f"the manifest.json of {str(run.folder)!r} names no study and config; the file was changed")
    identity = manifest.get("identity")
    model = (identity.get("model_name") if isinstance(identity, dict) else None) or config.get("model")
    kept = {}
    for part, fits in {"metrics": _figures, **_SHAPES}.items():
        if part in summary or part == "metrics":
            if not fits(summary.get(part)):
                raise DataError(
                    f"the summary.json of {str(run.folder)!r} is not that of a benchmark ({part}); the file was changed"
                )
            kept[part] = summary[part]
    return ReportedRun(name, run, study, config, str(model or ""), kept)


# ---------------------------------------------------------------- what a summary must be

Fits = Callable[[Any], bool]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _maybe(value: object) -> bool:
    return value is None or _number(value)


def _figure(value: object) -> bool:
    if not isinstance(value, dict) or not {"value", "low", "high"} <= value.keys():
        return False
    return all(_maybe(value.get(name)) for name in ("value", "low", "high", "n"))


def _list(value: object) -> bool:
    return isinstance(value, list) and all(map(_number, value))


def _each(fits: Fits) -> Fits:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _with(**parts: Fits) -> Fits:
    return lambda value: isinstance(value, dict) and all(fits(value.get(name)) for name, fits in parts.items())


def _curves(value: Any) -> bool:
    """Nothing, or as many points on each curve."""
    lists = dict.fromkeys(("share", "kept", "removed", "kept_by_size"), _list)
    if value == {}:
        return True
    fits = _with(**lists, cpr=_figure, cmd=_figure)(value)
    return fits and len({len(value[name]) for name in lists}) == 1 and any(value["share"])


_figures = _each(_figure)
_SHAPES: dict[str, Fits] = {
    **dict.fromkeys(COUNTS, _maybe),
    "before": _figures,
    "by_relation": _each(_figures),
    "perplexity": _with(within_1_percent=_number, within_2_percent=_number, median=_number, worst=_number, n=_number),
    "checkpoints": lambda value: _each(_with(metrics=_figures))(value) and all(str(name).isdigit() for name in value),
    "layers": _each(_list),
    "overlap": _each(_with(pairs=_number, shared=_number, jaccard=_number)),
    "specificity": _each(_figures),
    "faithfulness": _curves,
    "stability": _each(_with(neurons=_number, jaccard=_figure)),
    "erasure": _each(
        lambda value: isinstance(value, dict) and all(_number(part) or _each(_number)(part) for part in value.values())
    ),
}
