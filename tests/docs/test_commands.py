"""Every command line of the documentation is one that the real parsers take: its command, its flags and its arguments.

Nothing runs: the commands of `knowedit` are replaced by their names, of `python -m benchmarks` only the parser is used.
"""

import json
import re
import shlex
from contextlib import nullcontext, suppress
from functools import cache, partial
from pathlib import Path

import pytest
import typer.main

from benchmarks import gpu
from benchmarks.__main__ import parser as benchmarks
from knowedit.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    ROOT / "benchmarks/README.md",
    ROOT / "Makefile",
]


def commands(text: str) -> list[list[str]]:
    """The simple commands of the `sh` blocks of a page, each as its words; variables and substitutions stand for 1."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
        block = re.sub(r"\\\n", " ", block)
        block = re.sub(r"\$\([^()]*\)|\$\{?\w+\}?", "1", re.sub(r" \$\(\[.*?\]\s*&&[^()]*\)", "", block))
        for line in block.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = []
            for word in [*lexer, ";"]:
                if word.strip(";&|"):
                    words += [word] if words or not re.match(r"[A-Z_]+=", word) else []
                else:
                    found += [words] if words else []
                    words = []
    return found


def spans(text: str) -> list[list[str]]:
    """The benchmarks that a page calls in the middle of its text, or the Makefile, as their words."""
    found = re.findall(r"`(python -m benchmarks\b[^`…A-Z]*)`|&& (python -m benchmarks\b.*)", text)
    return [shlex.split(span or recipe) for span, recipe in found]


DOCUMENTED = {
    f"{page.relative_to(ROOT).as_posix()}: {' '.join(words)}": words
    for page in PAGES
    for words in [*commands(page.read_text(encoding="utf-8")), *spans(page.read_text(encoding="utf-8"))]
}
KNOWEDIT = {name: words for name, words in DOCUMENTED.items() if words[0] == "knowedit"}
RESULTS = {path: json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("benchmarks/results/**/*.json")}
BENCHMARKS = {
    " ".join(words): words
    for words in [*DOCUMENTED.values(), *(shlex.split(result.get("command", "")) for result in RESULTS.values())]
    if words[:2] == ["python", "-m"]
}
REACHED = []  # the commands whose arguments were taken, by name


@cache
def parser():
    """`knowedit` with all its commands, each of which notes its name instead of running."""
    root = typer.main.get_command(app)
    for name, command in _commands(root).items():
        command.callback = partial(_reached, name)
    return root


def _reached(command: str, /, **values) -> None:
    REACHED.append(command)


def _commands(command, name: str = "") -> dict:
    """All commands below `command` by name, those of groups with the group's."""
    inner = getattr(command, "commands", None)
    if inner is None:
        return {name: command}
    return {k: v for part, one in inner.items() for k, v in _commands(one, f"{name} {part}".strip()).items()}


def parsed(words: list[str]) -> str:
    """The command that `knowedit` with these arguments would run. Raises what the parser does."""
    REACHED.clear()
    parser()(words, prog_name="knowedit", standalone_mode=False)
    return REACHED[-1]


@pytest.mark.parametrize("line", KNOWEDIT)
def test_the_command_line_is_taken(line):
    assert parsed(KNOWEDIT[line][1:]) in _commands(parser())


def test_each_command_is_shown_somewhere():
    assert {parsed(words[1:]) for words in KNOWEDIT.values()} == set(_commands(parser()))


@pytest.mark.parametrize(
    "wrong",
    [
        "knowedit lokate --fact capital/japan",
        "knowedit locate --fcat capital/japan",
        "knowedit locate --fact",
        "knowedit neuron 24",
        "knowedit neuron one two",
        "knowedit bench edits --out run",
    ],
)
def test_a_command_line_that_is_wrong_is_not_taken(wrong):
    (words,) = commands(f"```sh\n{wrong}  # that is a comment\n```\n")
    with pytest.raises(Exception) as error:  # noqa: PT011 - the class is of the copy of click that typer carries
        parsed(words[1:])
    assert hasattr(error.value, "format_message"), error.value  # a usage error


def test_lines_are_split_as_a_shell_does():
    text = "```sh\nknowedit show a ; knowedit models &\nknowedit probe \\\n  --limit $N  # so\n```\n```\nno\n```\n"
    assert commands(text) == [["knowedit", "show", "a"], ["knowedit", "models"], ["knowedit", "probe", "--limit", "1"]]


@pytest.mark.parametrize("line", BENCHMARKS)
def test_a_benchmark_takes_the_arguments_that_a_page_or_a_result_tells(line):
    python, m, package, *words = BENCHMARKS[line]
    assert (python, m) == ("python", "-m")
    if package == "benchmarks.gpu":
        assert gpu.arguments().parse_args(words).shape
        return
    assert package == "benchmarks"
    with suppress(SystemExit) if "--help" in words else nullcontext():
        assert benchmarks().parse_args(words).command in ("run", "table", "facts")


def test_a_benchmark_that_is_not_there_is_found_out():
    assert len(BENCHMARKS) > 20
    for wrong in (["run", "speed.lokate"], ["run", "speed.locate", "--rnuds", "3"], ["facts"]):
        with pytest.raises(SystemExit):
            benchmarks().parse_args(wrong)


@pytest.mark.parametrize("words", [w for w in DOCUMENTED.values() if w[0] in ("bash", "source", "make")], ids=" ".join)
def test_a_script_or_target_is_there(words):
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    else:
        assert (ROOT / words[1]).is_file()
