"""Run a benchmark, or write the pages that are made from the results.

python -m benchmarks run speed.locate --rounds 7      results/speed/locate.json
python -m benchmarks table                            README.md from all results, and docs/findings.md with its figure
python -m benchmarks facts reported.jsonl             the facts that edits are reported on, for `knowedit bench edit`
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from knowedit.errors import KnoweditError

from . import table
from .quality.findings import page
from .registry import COMMAND, RESULTS, load_all
from .samples import reported


def parser() -> ArgumentParser:
    """The parser of the whole command line: `command`, and for `run` the benchmark's `name` and its arguments."""
    whole = ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a benchmark and keep its result")
    run.add_argument("--results", type=Path, default=RESULTS, help="the folder for results")
    names = run.add_subparsers(dest="name", required=True, metavar="NAME")
    for benchmark in load_all().values():
        about = f"{benchmark.question} {benchmark.run.__doc__ or ''}"
        question = benchmark.question.replace("%", "%%")  # argparse formats a help, not a description
        benchmark.add_options(names.add_parser(benchmark.name, help=question, description=about))
    commands.add_parser("table", help="write the pages that are made from the results")
    commands.add_parser("facts", help="write the facts that edits are reported on").add_argument("file", type=Path)
    return whole


def main(words: Sequence[str] | None = None) -> None:
    arguments = vars(parser().parse_args(words))
    command = arguments.pop("command")
    try:
        if command == "run":
            for path in load_all()[arguments.pop("name")].keep(**arguments):
                print(path.read_text(encoding="utf-8"), path)
        elif command == "table":
            table.write()
            page.write()
        else:
            lines = [json.dumps(fact.as_dict(), ensure_ascii=False) + "\n" for fact in reported()]
            arguments["file"].write_text("".join(lines), encoding="utf-8")
    except KnoweditError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
