"""docs/demo.md shows what the demo prints."""

import re
from pathlib import Path

import pytest

from knowedit.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/demo.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?%?")
FACT = ("--fact", "landmark-city/eiffel-tower")


def parts(line):
    """The words of a line, and its numbers."""
    numbers = [float(n.rstrip("%")) / (100 if n.endswith("%") else 1) for n in NUMBER.findall(line)]
    return " ".join(NUMBER.sub("#", line).split()), numbers


@pytest.mark.parametrize("command", [("locate", *FACT), ("edit", *FACT, "--out")], ids=lambda c: c[0])
def test_the_demo_prints_what_its_page_shows(command, default_model, all_threads, capsys, tmp_path):
    """But for seconds, paths and near ties of the order; machines differ in the last digits."""
    script = (ROOT / "scripts/demo.sh").read_text(encoding="utf-8")
    assert " ".join(["knowedit", *command]).replace(FACT[1], "$fact") in script
    with pytest.raises(SystemExit) as end:
        main([*command, *([str(tmp_path / "edit")] if command[0] == "edit" else [])])
    assert end.value.code == 0
    printed = [parts(line) for line in capsys.readouterr().out.splitlines()]
    blocks = re.findall(r"```\n(The Eiffel Tower.*?)```", PAGE, re.S)
    (block,) = [b for b in blocks if ("Proof on" in b) == (command[0] == "locate")]
    shown = [
        line for line in block.splitlines() if line and not line.startswith(("Seconds", "Saved", "Other subjects"))
    ]
    assert len(shown) > 10
    for line in shown:
        words, numbers = parts(line)
        same = [found for other, found in printed if other == words]
        assert any(found == pytest.approx(numbers, rel=0.05, abs=0.02) for found in same), line
