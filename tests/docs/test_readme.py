"""What the README says is what the committed results and the code say."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.registry import RESULTS
from knowedit.cli import main
from knowedit.edit.rewrite_quality import PARTS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_what_is_said_of_first_tokens_is_what_was_measured():
    found = json.loads((RESULTS / "quality/first_token.json").read_text(encoding="utf-8"))
    measured = {(*_triples(found["unedited"]), "")}
    measured |= {(*_triples(way), f"{100 * way['perplexity_rise']['worst']:+.1f} %") for way in found["ways"].values()}
    page = (Path(__file__).parents[2] / "docs" / "editing.md").read_text(encoding="utf-8")
    rows = page.partition("| edited | asked as")[2].partition("\n\n")[0].splitlines()[2:]
    shown = [tuple(cell.strip() for cell in row.strip("|").split("|")[1:]) for row in rows]
    assert len(shown) == 7 and set(shown) <= measured


def _triples(state):
    return [", ".join(f"{100 * state[form][name]['value']:.0f}" for name in PARTS) for form in ("first", "later")]


def test_the_two_commands_come_first():
    first = re.search(r"```sh\n(.*?)```", README, re.S).group(1)
    assert [line.split("#")[0].strip() for line in first.splitlines() if line.startswith("bash")] == [
        "bash scripts/demo.sh",
        "bash scripts/test.sh",
    ]
    root = Path(__file__).parents[2]
    assert (root / "scripts/demo.sh").exists() and (root / "scripts/test.sh").exists()


def test_public_names_in_the_examples_exist():
    import knowedit

    used = set(re.findall(r"knowedit\.([a-z_A-Z]+)\(", README))
    assert used
    assert used <= set(knowedit.__all__)


NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?%?")
FACT = ("--fact", "landmark-city/eiffel-tower")


def parts(line):
    """The words of a line, and its numbers."""
    numbers = [float(n.rstrip("%")) / (100 if n.endswith("%") else 1) for n in NUMBER.findall(line)]
    return " ".join(NUMBER.sub("#", line).split()), numbers


@pytest.mark.parametrize(
    "command", [("locate", *FACT, "--layers", "2-29", "--adjust"), ("edit", *FACT, "--out")], ids=lambda c: c[0]
)
def test_the_demo_prints_what_the_readme_shows(command, default_model, all_threads, capsys, tmp_path):
    """But for seconds, paths and near ties of the order; machines differ in the last digits."""
    script = (Path(__file__).parents[2] / "scripts/demo.sh").read_text(encoding="utf-8")
    assert " ".join(["knowedit", *command]).replace(FACT[1], "$fact") in script
    with pytest.raises(SystemExit) as end:
        main([*command, *([str(tmp_path / "edit")] if command[0] == "edit" else [])])
    assert end.value.code == 0
    printed = [parts(line) for line in capsys.readouterr().out.splitlines()]
    blocks = re.findall(r"```\n(The Eiffel Tower.*?)```", README, re.S)
    (block,) = [b for b in blocks if ("Proof on" in b) == (command[0] == "locate")]
    shown = [line for line in block.splitlines() if line and not line.startswith(("Seconds", "Saved", "Others that"))]
    assert len(shown) > 10
    for line in shown:
        words, numbers = parts(line)
        same = [found for other, found in printed if other == words]
        assert any(found == pytest.approx(numbers, rel=0.05, abs=0.02) for found in same), line
