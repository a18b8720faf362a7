"""What the documentation runs on the default model: every Python example as it stands, the blocks of a page one after
the other, and the commands whose output docs/demo.md shows.

The model is loaded once for all of them and left as it was. Several of them locate the neurons of one fact and make one
edit: what takes long of that is computed for the first of them.
"""

import json
import re
from pathlib import Path

import pytest

import knowedit
from knowedit.cli import main
from knowedit.edit.methods import rome
from knowedit.locate import locate

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"  # its cells are the blocks of tutorial.md
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DEMO = (ROOT / "docs/demo.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e-?\d+)?%?")
FACT = ("--fact", "landmark-city/eiffel-tower")


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


@pytest.fixture(scope="module")
def located():
    return {}


@pytest.fixture(scope="module")
def searched():
    return {}


@pytest.fixture(autouse=True)
def computed_once(monkeypatch, located, searched):
    """Neurons of the same prompts and config, and values of the same searches, are kept from page to page."""
    locate_prompts, find_v_star = locate.locate_prompts, rome.find_v_star

    def prompts_located_once(model, prompts, config=None, *, negatives=(), weights_hash=None, **options):
        key = prompts, config or locate.LocateConfig(), tuple(negatives), weights_hash or model.weights_hash()
        if key not in located:
            located[key] = locate_prompts(model, prompts, config, negatives=negatives, weights_hash=key[-1], **options)
        return located[key]

    def searched_once(model, requests, layer, search, *progress):
        key = tuple(requests), layer, search, model.weights_hash()
        if key not in searched:
            searched[key] = find_v_star(model, requests, layer, search, *progress)
        return searched[key]

    monkeypatch.setattr(locate, "locate_prompts", prompts_located_once)
    monkeypatch.setattr(rome, "find_v_star", searched_once)


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
    shown_blocks = re.findall(r"```\n(The Eiffel Tower.*?)```", DEMO, re.S)
    (block,) = [b for b in shown_blocks if ("Proof on" in b) == (command[0] == "locate")]
    shown = [
        line for line in block.splitlines() if line and not line.startswith(("Seconds", "Saved", "Other subjects"))
    ]
    assert len(shown) > 10
    for line in shown:
        words, numbers = parts(line)
        same = [found for other, found in printed if other == words]
        assert any(found == pytest.approx(numbers, rel=0.05, abs=0.02) for found in same), line
