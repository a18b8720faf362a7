"""The pages of the documentation lead where they say, and are found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", text)
    assert [target for target, _ in links if not (page.parent / target).exists()] == []
    anchors = [(page.parent / target if target else page, anchor) for target, anchor in links if anchor]
    assert [(goal.name, anchor) for goal, anchor in anchors if anchor not in anchors_of(goal)] == []
    named = re.findall(r"`((?:benchmarks|docs|knowedit|scripts|tests)/[a-zA-Z_0-9/.-]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def anchors_of(page: Path) -> set[str]:
    """Where a link into a page may lead: its headings, in small letters with hyphens and without other signs."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_notebook_is_what_the_tutorial_makes():
    check = subprocess.run([sys.executable, ROOT / "scripts/notebook.py", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_every_page_is_in_the_index_and_there_are_few_side_by_side():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if ROOT / "docs" in page.parents}
    assert pages - {"index.md"} <= set(re.findall(r"\]\(([^)#]+)", index))
    assert len([page for page in pages if "/" not in page]) <= 12
