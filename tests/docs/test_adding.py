"""docs/adding.md shows what tests add: its code stands, word for word, in the test that its section names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTIONS = (ROOT / "docs/adding.md").read_text(encoding="utf-8").split("\n## ")[1:]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.split("\n")[0])
def test_its_code_is_that_of_a_test(section):
    tests = re.findall(r"`(tests/[a-z_/]+\.py)`", section)
    assert tests, "no test is named"
    text = "\n".join((ROOT / test).read_text(encoding="utf-8") for test in tests)
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.S | re.M)
    assert [block for block in blocks if block.strip() not in text] == []


def test_it_tells_of_everything_that_can_be_added():
    headings = [section.split("\n")[0] for section in SECTIONS]
    assert headings == ["A method", "A family", "A source", "An analysis", "A metric"]
