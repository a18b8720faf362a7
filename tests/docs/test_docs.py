"""Every Python example of the documentation runs as it stands: the blocks of a page one after the other, on the default
model, loaded once for all of them and left as it was."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import knowedit

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"  # its cells are the blocks of tutorial.md
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page, each with its first line's number; the cells of a notebook, each with its own."""
    text = page.read_text(encoding="utf-8")
    if page == NOTEBOOK:
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        return [(i, "".join(cell["source"])) for i, cell in enumerate(cells, 1)]
    return [
        (text[: found.start(1)].count("\n") + 1, found.group(1))
        for found in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M)
    ]


@pytest.fixture(scope="module")
def pristine(default_model):
    return default_model.weights_hash()


RUN = [page for page in PAGES if blocks(page) and page.stem not in (NOTEBOOK.stem, "adding")] + [NOTEBOOK]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_examples_run(page, default_model, pristine, all_threads, monkeypatch, tmp_path):
    def load(name="smollm2-135m", **options):
        assert name == "smollm2-135m" and not options, "examples are about the default model"
        return default_model

    monkeypatch.setattr(knowedit, "load", load)
    monkeypatch.chdir(tmp_path)  # what examples write is gone after them
    names = {"__name__": "__example__"}
    for line, source in blocks(page):
        exec(compile("\n" * (line - 1) + source, str(page), "exec"), names)
    assert knowedit.edits_on(default_model) == ()
    assert default_model.weights_hash() == pristine


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []
    named = re.findall(r"`((?:benchmarks|docs|knowedit|scripts|tests)/[a-zA-Z_0-9/.-]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_notebook_is_what_the_tutorial_makes():
    check = subprocess.run([sys.executable, ROOT / "scripts/notebook.py", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_every_page_is_in_the_index_and_there_are_few_side_by_side():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if ROOT / "docs" in page.parents}
    assert pages - {"index.md"} <= set(re.findall(r"\]\(([^)#]+)", index))
    assert len([page for page in pages if "/" not in page]) <= 12
