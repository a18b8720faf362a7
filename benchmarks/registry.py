"""Every benchmark once: what it asks, its arguments, how it is run and how its result reads.

    @benchmark("speed.knockout", "How much faster than one run of the whole model for each knockout?")
    def knockout(rounds: int = 3) -> dict:
        return {"ratio_median": …}

    @knockout.row
    def _(record: dict) -> list[str]:
        return [f"**{record['ratio_median']:.1f}×**"]

The arguments of the function are the options of `python -m benchmarks run speed.knockout --rounds 1`, which keeps what
the function returns in results/speed/knockout.json, with the command and the machine. `row` says it in lines for the
table of README.md.
"""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import platform
import shutil
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

import torch

from knowedit.files import write_text
from knowedit.version import versions

RESULTS = Path(__file__).parent / "results"
ROOMS = {
    "speed": "Speed",
    "neurons": "Located neurons",
    "quality": "Quality of edits and analyses",
    "robustness": "Robustness: chance, kills and memory",
    "reports": "Reports of studies",
}
COMMAND = "python -m benchmarks"

BENCHMARKS: dict[str, Benchmark] = {}


class Benchmark:
    """A question, the function that answers it with a record, and the words for the table.

    The function returns a record (JSON values), or yields several as (variant, record), or returns a folder.
    """

    def __init__(self, name: str, question: str, run: Callable[..., dict | Iterator[tuple[str, dict]] | Path]):
        self.name, self.question, self.run = name, question, run

    def row(self, lines: Callable[[dict], list[str]]) -> Callable[[dict], list[str]]:
        """Register `lines(record)` as the words for a record."""
        self.lines = lines
        return lines

    def add_options(self, parser: ArgumentParser) -> None:
        """An option for each argument of the function."""
        for name, argument in inspect.signature(self.run, eval_str=True).parameters.items():
            kind, required = argument.annotation, argument.default is argument.empty
            if kind is bool:
                parser.add_argument(_option(name), action="store_true")
                continue
            several = {"nargs": "+"} if get_origin(kind) is tuple else {}
            if get_origin(kind) in (tuple, UnionType):
                kind = get_args(kind)[0]
            default = None if required else argument.default
            parser.add_argument(_option(name), type=kind, required=required, default=default, **several)

    def command(self, arguments: dict) -> str:
        """The command that runs it with these arguments: those that differ from the defaults, without folders."""
        words = [f"{COMMAND} run {self.name}"]
        for name, argument in inspect.signature(self.run).parameters.items():
            value = arguments.get(name, argument.default)
            if value is True:
                words.append(_option(name))
            elif value != argument.default:
                values = value if isinstance(value, list | tuple) else [value]
                words += [_option(name), *(Path(v).name if Path(str(v)).is_absolute() else str(v) for v in values)]
        return " ".join(words)

    def keep(self, results: Path = RESULTS, **arguments) -> list[Path]:
        """Run it and keep each of its records in the folder `results`; the files."""
        place = results.joinpath(*self.name.split("."))
        place.parent.mkdir(parents=True, exist_ok=True)
        result = self.run(**arguments)
        if isinstance(result, Path):
            shutil.copytree(result, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.png", "*.csv", "*.tex"))
            return [place / "report.json"]
        head = {"command": self.command(arguments), **_machine()}
        kept = []
        for variant, record in [("", result)] if isinstance(result, dict) else result:
            kept.append(place.with_name("_".join(filter(None, (place.name, variant))) + ".json"))
            write_text(kept[-1], json.dumps(head | record, indent=1, ensure_ascii=False) + "\n")
        return kept


def benchmark(name: str, question: str) -> Callable[[Callable], Benchmark]:
    """Register a function as the benchmark `name`, which is "room.name"."""

    def register(run: Callable) -> Benchmark:
        return BENCHMARKS.setdefault(name, Benchmark(name, question, run))

    return register


def load_all() -> dict[str, Benchmark]:
    """All benchmarks by name, room by room."""
    package = import_module(__package__)
    for module in pkgutil.walk_packages(package.__path__, f"{__package__}."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    rooms = list(ROOMS)
    return dict(sorted(BENCHMARKS.items(), key=lambda item: (rooms.index(item[0].partition(".")[0]), item[0])))


GPU = "gpu"  # the folder of what `python -m benchmarks.gpu` measured


def result_files(results: Path = RESULTS) -> dict[Path, tuple[str, dict]]:
    """Each result file with its command and its record; those of benchmarks.gpu are its own."""
    benchmarks, files = load_all(), {}
    for path in sorted([*results.glob("*/*.json"), *results.glob("*/*/report.json")]):
        if path.parent.name == GPU:
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "report.json":  # its place says which benchmark, and its runs say what of
            name = ".".join(path.relative_to(results).parts[:-1])
            command = benchmarks[name].command({"source": record["runs"][0]["config"]["source"]})
        else:
            command = record["command"]
        files[path] = command, record
    return files


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _machine() -> dict:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "processor": _processor(),
        "versions": {**versions(), "python": platform.python_version()},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
