"""What the README says is what the committed results and the code say."""

import json
import re
from pathlib import Path

from support.tiny import FAMILIES

from benchmarks.registry import RESULTS
from benchmarks.table import table
from knowedit.edit.rewrite_quality import PARTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_is_said_of_first_tokens_is_what_was_measured():
    found = json.loads((RESULTS / "quality/first_token.json").read_text(encoding="utf-8"))
    measured = {(*_triples(found["unedited"]), "")}
    measured |= {(*_triples(way), f"{100 * way['perplexity_rise']['worst']:+.1f} %") for way in found["ways"].values()}
    page = (ROOT / "docs" / "editing.md").read_text(encoding="utf-8")
    rows = page.partition("| edited | asked as")[2].partition("\n\n")[0].splitlines()[2:]
    shown = [tuple(cell.strip() for cell in row.strip("|").split("|")[1:]) for row in rows]
    assert len(shown) == 7 and set(shown) <= measured


def _triples(state):
    return [", ".join(f"{100 * state[form][name]['value']:.0f}" for name in PARTS) for form in ("first", "later")]


def test_it_is_read_in_one_go():
    assert len(README.splitlines()) <= 100


def test_it_names_the_two_commands_of_a_checkout():
    commands = re.findall(r"^bash (scripts/[a-z]+\.sh)", README, re.M)
    assert commands == ["scripts/demo.sh", "scripts/test.sh"]
    assert [command for command in commands if not (ROOT / command).exists()] == []


def test_its_results_are_rows_of_the_benchmarks():
    results = README.partition("## Six results")[2].partition("## Limits")[0]
    numbers = re.findall(r"\*\*([-\d.]+[×%]?)\*\*", results)
    rows = set(re.findall(r"[-+]?\d[\d.]*[×%]?", table()))
    assert len(numbers) > 8 and set(numbers) <= rows, set(numbers) - rows
    assert len(re.findall(r"^- ", results, re.M)) == 6


def test_it_counts_the_tested_families():
    assert f"[{len(FAMILIES)} families](docs/locating.md#models)" in README
    page = (ROOT / "docs/locating.md").read_text(encoding="utf-8")
    listed = re.search(r"Tested families: (.*?)\.", page, re.S).group(1)
    assert len(re.split(r",| and ", listed)) == len(FAMILIES)


def test_public_names_in_the_examples_exist():
    import knowedit

    used = set(re.findall(r"knowedit\.([a-z_A-Z]+)\(", README))
    assert used
    assert used <= set(knowedit.__all__)
