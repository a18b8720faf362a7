"""Tables are what they say in every format, and nothing from outside becomes markup, a formula or an escape."""

import csv as csv_format
import io
import re

import pytest
from markdown_it import MarkdownIt
from support.commands import HOSTILE

from knowedit.report.bench.tables import SUFFIXES, WRITERS, Table, Value, cells, csv, latex, markdown
from knowedit.writing.inert import inert

FIGURES = Table(
    "metrics",
    "Metrics",
    ("metric", "after", "n", "p"),
    [("ES", Value(0.9, 0.744, 0.965), 30, 0.0034), ("GE", Value(-3.14159, scale=1, digits=2), 30, None)],
    "95 % intervals",
)
TEXTS = (
    HOSTILE,
    '=HYPERLINK("http://evil.example",1)',
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    " =1",
    "＝1",
    "a;=1",
    "a|b",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[text](javascript:alert(1))",
    "![x](http://evil.example/x.png)",
    "`code` *bold* __bold__ ~~gone~~ &amp; &#42; $x$",
    "https://evil.example and www.evil.example",
    r"\input{/etc/passwd} \write18{x} 100% a_b^c #1 $x$ ~ \\ [2pt]",
    "[2pt]",
    "*",
    'say "``no\'\'"',
    "line\nline\u2028line",
)  # fmt: skip


def hostile(text):
    return Table("name", text, (text, "n"), [(text, 1), (text, Value(-0.5, -1.0, None))], text)


# ---------------------------------------------------------------- what they say


def test_a_value_is_read_with_its_interval():
    assert str(Value(0.9, 0.744, 0.965)) == "90.0 [74.4, 96.5]"
    assert str(Value(0.9)) == "90.0" and str(Value(None)) == ""
    assert str(Value(0.012, -0.1, 0.2, signed=True)) == "+1.2 [-10.0, +20.0]"
    assert str(Value(1.5e56, -4.2e55, 9e3, signed=True)) == "+1.50e+58 [-4.20e+57, +900000.0]"
    assert str(Value(-0.0001, signed=True)) == "+0.0" and str(Value(-0.0001)) == "0.0"
    assert cells(FIGURES) == [["ES", "90.0 [74.4, 96.5]", "30", "0.0034"], ["GE", "-3.14", "30", ""]]


def test_json_holds_plain_values():
    found = FIGURES.as_dict()
    assert found["rows"][0] == ["ES", {"value": 0.9, "low": 0.744, "high": 0.965}, 30, 0.0034]


def test_markdown():
    assert markdown(FIGURES) == (
        "**Metrics**\n\n"
        "| metric | after | n | p |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| ES | 90.0 \\[74.4, 96.5\\] | 30 | 0.0034 |\n"
        "| GE | -3.14 | 30 |  |\n\n"
        "95 % intervals\n"
    )


def test_latex():
    found = latex(FIGURES).splitlines()
    assert r"\caption{Metrics. 95 \% intervals}" in found
    assert r"\begin{tabular}{lrrr}" in found
    assert r"ES & 90.0 [74.4, 96.5] & 30 & 0.0034 \\" in found
    assert r"GE & $-$3.14 & 30 &  \\" in found
    assert rf"\label{{tab:{FIGURES.name}}}" in found


def test_the_best_is_bold_in_latex_and_markdown():
    table = Table("t", "T", ("run", "ES"), [("a_b", Value(0.9, 0.8, 1.0)), ("c", Value(0.5))], best=frozenset({(0, 1)}))
    assert r"a\_b & \textbf{90.0 [80.0, 100.0]} \\" in latex(table) and r"c & 50.0 \\" in latex(table)
    assert "| **90.0 \\[80.0, 100.0\\]** |" in markdown(table) and "| c | 50.0 |" in markdown(table)


def test_csv_holds_fractions_and_intervals_in_columns_of_their_own():
    assert list(csv_format.reader(io.StringIO(csv(FIGURES)))) == [
        ["metric", "after", "after low", "after high", "n", "p"],
        ["ES", "0.9", "0.744", "0.965", "30", "0.0034"],
        ["GE", "-3.14159", "", "", "30", ""],
    ]


def test_every_writer_has_a_suffix():
    assert list(WRITERS) == list(SUFFIXES)


# ---------------------------------------------------------------- inert


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", WRITERS)
def test_no_control_character_survives(kind, text):
    found = WRITERS[kind](hostile(text))
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029]", found)


@pytest.mark.parametrize("text", TEXTS)
def test_markdown_shows_the_text_and_nothing_else(text):
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = reader.parse(markdown(hostile(text)))
    inline = [token for token in tokens if token.type == "inline"]
    kinds = {child.type for token in inline for child in token.children}
    assert kinds <= {"text", "text_special", "strong_open", "strong_close"}
    shown = ["".join(child.content for child in token.children) for token in inline]
    wanted = " ".join(inert(text).split(" ")).strip()
    assert [part.strip() for part in shown[1:4]] == [wanted, "n", wanted]
    assert len([token for token in tokens if token.type == "tr_open"]) == 3
    source = markdown(hostile(text))
    assert "://" not in source and "www." not in source  # GitHub makes links of these by itself


_LATEX_BACK = {"textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~", "textless": "<",
               "textgreater": ">", "textbar": "|", "textquotedbl": '"', "textasciigrave": "`",
               "textdownarrow": "⏎"}  # fmt: skip


def read_latex(source):
    """The text that LaTeX would set, if only the commands that we mean are in it."""
    found, i = [], 0
    while i < len(source):
        if match := re.match(r"\\([a-z]+)\{\}", source[i:]):
            found.append(_LATEX_BACK[match[1]])
        elif match := re.match(r"\\([{}$&#%_])", source[i:]):
            found.append(match[1])
        elif match := re.match(r"\{([\[\]*])\}", source[i:]):
            found.append(match[1])
        else:
            assert source[i] not in "\\{}$&#%_^~", source[i:]
            match = source[i]
            found.append(match)
        i += len(match[0])
    return "".join(found)


@pytest.mark.parametrize("text", TEXTS)
def test_latex_sets_the_text_and_runs_nothing(text):
    lines = latex(hostile(text)).splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == 2
    for row in body:
        assert row.endswith(r" \\")
        cell = re.split(r"(?<!\\)&", row)[0]
        assert read_latex(cell.strip()) == inert(text).strip()
        assert not row.startswith(("[", "*"))


@pytest.mark.parametrize("text", TEXTS)
def test_csv_keeps_the_text_and_is_no_formula(text):
    source = csv(hostile(text))
    header, *rows = csv_format.reader(io.StringIO(source))
    assert len(rows) == 2 and len(header) == len(rows[0]) == 4
    for cell in (header[0], rows[0][0]):
        assert cell.removeprefix("'") == inert(text)
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "＝"))
    assert rows[1][1:] == ["-0.5", "-1.0", ""]  # a number may be negative
    assert all(line.startswith('"') for line in source.splitlines())  # text is quoted, whatever separates columns
