"""The page of all benchmarks, README.md: question, result, command and file, a line for each result file."""

from __future__ import annotations

from pathlib import Path

from knowedit.files import write_text

from .registry import ROOMS, load_all, result_files

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
    return "\n\n".join(parts) + "\n"


def write() -> None:
    """Put the tables into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    write_text(PAGE, before + START + table() + END + after)
