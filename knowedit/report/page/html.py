"""The page of `knowedit explain`: one HTML file that asks for nothing else, made from the record of `explain`.

Jinja2 with autoescape fills the templates, so whatever came from outside is text; control characters, and so ANSI
escapes and reversed writing, are spelled out before. A content security policy in the page lets its own script run, by
its hash, and forbids everything else, every request included.

Each number that is shown is a `<data>` element that names its place in the record and carries the exact value, and the
record itself is part of the page: what people see and what programs read cannot differ.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ...display.colours import variables
from ...errors import InputError
from ...files import check_file, write_bytes, write_text
from ...writing.counts import number_of
from ...writing.inert import inert
from . import charts
from .printing import browser, printed
from .story import CHAPTERS

MINUS, NARROW = "\N{MINUS SIGN}", "\N{NARROW NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"  # where there is no number


def page(record: dict) -> str:
    """The page as text."""
    script = source("tables.js") + source("explain.js")
    return _rendered(
        record,
        "page",
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(_style()),
    )


def chapter(record: dict, name: str) -> str:
    """One chapter of the page as HTML, for another page that has `explain.css`."""
    return _rendered(record, name)


@cache
def templates(*more: str) -> Environment:
    """The page's templates, and those in the folders `more` of the package, which autoescape fills."""
    folders = [PackageLoader("knowedit", folder) for folder in (*more, "report/page/templates")]
    environment = Environment(
        loader=ChoiceLoader(folders), autoescape=True, undefined=StrictUndefined, lstrip_blocks=True
    )
    environment.filters |= {"inert": inert, "token": token}
    environment.globals |= {"charts": charts, "max": max, "min": min, "zip": zip}
    environment.globals |= {"shown": shown, "number_of": number_of, "gives": gives}
    return environment


def gives(prediction: Mapping) -> bool:
    """Whether the model gives the answer in one of the ways to ask; of another one no neuron is claimed to make it."""
    return any(asked["rank"] == 1 for asked in prediction["prompts"])


def source(name: str, *more: str) -> str:
    """The text of one of the files that `templates` has."""
    environment = templates(*more)
    return environment.loader.get_source(environment, name)[0]


def _style() -> str:
    style = source("explain.css")
    return style.replace("/* light */", variables(dark=False)).replace("/* dark */", variables(dark=True))


def _rendered(record: dict, body: str, **more: Any) -> str:
    html = (
        templates()
        .get_template("explain.html.j2")
        .render(
            r=record,
            body=f"{body}.html.j2",
            sections=[chapter for chapter in CHAPTERS if chapter.title and _is_told(record, chapter.name)],
            num=lambda path, kind="percent": number(record, path, kind),
            **more,
        )
    )
    return html.lstrip()


def _is_told(record: dict, name: str) -> bool:
    """Whether there is something to tell of a chapter, be it why there is none."""
    return record[name] is not None or name in record["notes"]


def check_page_path(path: str | Path) -> Path:
    """`path` with `~` expanded. Raises `InputError` where no page can be written to it, or nothing here prints it."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm", ".pdf"):
        raise InputError(f"the page {str(path)!r} ends in {path.suffix!r}, expected .html or .pdf")
    if path.suffix.lower() == ".pdf":
        browser()
    return check_file(path)


def save_page(record: dict, path: str | Path) -> Path:
    """Write the page, whole or not at all; as PDF where the path ends so. Raises `InputError` where it cannot be."""
    path = check_page_path(path)
    if path.suffix.lower() == ".pdf":
        write_bytes(path, printed(page(record)))
    else:
        write_text(path, page(record))
    return path


# ---------------------------------------------------------------- what templates call


def number(record: dict, path: str, kind: str = "percent") -> Markup:
    """The number at `path` (`prediction.top.0.1`) as an element that carries path and exact value."""
    value = at(record, path)
    if value is None:
        return Markup('<span class="none">{}</span>').format(NOTHING)
    return Markup('<data value="{}" data-path="{}">{}</data>').format(json.dumps(value), path, shown(value, kind))


def at(record: Any, path: str) -> Any:
    for name in path.split("."):
        record = record[int(name)] if isinstance(record, list) else record[name]
    return record


def shown(value: float, kind: str) -> str:
    """A number for people: `percent`, `change` (signed percent), `score` (signed), `p`, `integer`, `plain`, `tiny`."""
    if kind == "percent":
        return f"<0.1{NARROW}%" if 0 < value < 0.0005 else f"{100 * value:.1f}{NARROW}%"
    if kind == "change":
        return _signed(f"{100 * value:+.1f}") + f"{NARROW}%"
    if kind == "score":
        return _signed(f"{value:+.3f}" if abs(value) >= 0.0005 or not value else f"{value:+.0e}")
    if kind == "integer":
        return f"{value:,}"
    if kind == "tiny":
        return _signed(f"{value:.0e}")
    return _signed({"p": "{:.3f}", "plain": "{:.2f}"}[kind].format(value))


def _signed(text: str) -> str:
    """With a real minus sign, and none before a zero."""
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", MINUS)


def token(text: str) -> Markup:
    """A token as it is: its spaces and line ends are seen, everything else is text."""
    marked = inert(text).replace(" ", "\N{MIDDLE DOT}") if text.strip() else inert(text).replace(" ", "\N{OPEN BOX}")
    body = marked.lstrip("\N{MIDDLE DOT}")
    lead = marked[: len(marked) - len(body)]
    mark = Markup('<span class="space" aria-hidden="true">{}</span>').format(lead) if lead else ""
    return Markup('<span class="token">{}{}</span>').format(mark, body or escape("∅"))
