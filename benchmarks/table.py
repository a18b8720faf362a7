"""The page of all benchmarks, README.md: question, result, command and file, a line for each result file."""

from __future__ import annotations

import json
from pathlib import Path

from knowedit.files import write_text

from .registry import GPU, RESULTS, ROOMS, load_all, result_files

PAGE = Path(__file__).parent / "README.md"
START, END = "<!-- results -->\n", "<!-- end of results -->"


def table() -> str:
    """Markdown: the machines, and a table for each room."""
    benchmarks, files = load_all(), result_files()
    machines = {", ".join(filter(None, map(record.get, ("processor", "machine")))) for _, record in files.values()}
    parts = [f"Measured on: {'; '.join(sorted(machines - {''}))}."]
    for room, title in ROOMS.items():
        parts.append(f"## {title}\n\n| question | result | command | file |\n|---|---|---|---|")
        for name, benchmark in benchmarks.items():
            for path, (command, record) in files.items():
                if command.split()[4] == name and name.startswith(f"{room}."):
                    page = path.with_name(path.name.replace("report.json", "report.md"))
                    link = f"[{page.name}]({page.relative_to(PAGE.parent).as_posix()})"
                    result = "<br>".join(benchmark.lines(record))
                    parts[-1] += f"\n| {benchmark.question} | {result} | `{command}` | {link} |"
    return "\n\n".join([*parts, *_on_a_gpu()]) + "\n"


def _on_a_gpu() -> list[str]:
    """A table for each result of `benchmarks.gpu`: seconds, how many times those of the plain loop, and memory."""
    parts = []
    for path in sorted((RESULTS / GPU).glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        first, torch = record["pieces"][0], record["versions"]["torch"]
        link = f"[{path.name}]({path.relative_to(PAGE.parent).as_posix()})"
        how = f"{first['card']}, {first['dtype'].removeprefix('torch.')}, torch {torch}: `{record['command']}`, {link}"
        parts.append(
            f"## On a GPU: {first['model']}\n\n{how}. Peak memory is in times of the weights.\n\n"
            "| work | seconds | the plain loop | ratio | peak |\n|---|---|---|---|---|"
        )
        for piece in record["pieces"]:
            if "left_out" not in piece:
                ratio = f"**{piece['ratio']:.1f}×**" if "ratio" in piece else ""
                loop = f"{piece['loop']:.2f}" if "loop" in piece else ""
                peak = "" if piece["peak"] is None else f"{piece['peak']:.2f}"
                parts[-1] += f"\n| {piece['piece']} | {piece['seconds']:.3g} | {loop} | {ratio} | {peak} |"
    return parts


def write() -> None:
    """Put the tables into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    write_text(PAGE, before + START + table() + END + after)
