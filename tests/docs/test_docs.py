"""Every Python example of the documentation runs as it stands: the blocks of a page one after the other, on the default
model, loaded once for all of them and left as it was."""

import re
from pathlib import Path

import pytest

import knowedit

ROOT = Path(__file__).parents[2]
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]


def blocks(page: Path) -> list[tuple[int, str]]:
    """The Python blocks of a page, each with its first line's number."""
    text = page.read_text(encoding="utf-8")
    return [
        (text[: found.start(1)].count("\n") + 1, found.group(1))
        for found in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M)
    ]


@pytest.fixture(scope="module")
def pristine(default_model):
    return default_model.weights_hash()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
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
def test_links_and_commands_of_a_page_are_there(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []
    from knowedit.cli import app

    known = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    known |= {group.typer_instance.info.name for group in app.registered_groups}
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
        used = re.findall(r"^(?:\$ )?knowedit ([a-z]+)", block, re.M)
        assert set(used) <= known, sorted(set(used) - known)
