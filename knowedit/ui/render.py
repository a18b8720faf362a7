"""HTML of the dashboard: the page's chapters, and templates of its own, all filled by autoescape."""

from __future__ import annotations

from collections.abc import Sequence

from ..display.colours import variables
from ..report.page.html import chapter, number, source, templates
from .jobs import Doing


def fill(name: str, record: dict | None = None, **more: object) -> str:
    """A template of the dashboard; `r` is the record, of which `num` shows numbers."""
    template = templates("ui/templates").get_template(f"{name}.html.j2")
    return _framed(template.render(r=record, num=lambda path, kind="percent": number(record, path, kind), **more))


def chapters(record: dict, *names: str) -> str:
    """Chapters as they stand on the page of `knowedit explain`."""
    return _framed("".join(chapter(record, name) for name in names))


def _framed(html: str) -> str:
    return f'<div class="told">{html}</div>'


def doing(step: Doing) -> str:
    """What a job is doing, for its status line."""
    share = None if step.total is None else min(1.0, step.done / max(1, step.total))
    return fill("status", what=step.what, share=share, sort="busy")


def problem(message: str) -> str:
    """Why a job gave nothing."""
    return fill("status", what=message, share=None, sort="problem")


def notes(messages: Sequence[str]) -> str:
    """What the library had to say about a job that is done; nothing where it had nothing."""
    return "".join(fill("status", what=message, share=None, sort="note") for message in messages)


def head() -> str:
    """What the document's head has besides gradio's: the styles, and a policy that lets nothing come from elsewhere.

    What is told has the style of the page of `knowedit explain`, and gradio's way to say that it is dark.
    """
    colours = f":root {{ {variables(dark=False)} }} .dark {{ {variables(dark=True)} }}"
    policy = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self'; form-action 'self'"
    return (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{colours} @scope (.told) {{ {source('explain.css')} }} {source('ui.css', 'ui/templates')}</style>"
        f"<script>{source('tables.js')}</script><script>{source('keys.js', 'ui/templates')}</script>"
    )
