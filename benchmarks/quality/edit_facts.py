"""The facts that edits are tried on: settings are chosen on `development`, results are of `reported`.

python -m benchmarks.quality.edit_facts reported.jsonl    # writes the reported ones, a source of `knowedit bench edit`
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import knowedit
from knowedit.facts import Fact
from knowedit.selection import evenly

REPORTED = 200
PLACES = ("P36", "P37", "P30", "P131", "P17")  # relations about places, which the settings were chosen on


def reported(n: int = REPORTED) -> tuple[Fact, ...]:
    """Built-in facts, evenly over the relations, known to the model or not."""
    return evenly(evenly(_places(), REPORTED), n)


def development(n: int) -> tuple[Fact, ...]:
    """Other built-in facts, evenly over the relations."""
    held = set(reported())
    return evenly(tuple(fact for fact in _places() if fact not in held), n)


def _places() -> tuple[Fact, ...]:
    return tuple(fact for fact in knowedit.builtin_facts() if fact.relation in PLACES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    lines = [json.dumps(fact.as_dict(), ensure_ascii=False) for fact in reported()]
    parser.parse_args().file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
