"""The table and the figure of docs/findings.md, made from the committed results; a test compares the table."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from knowedit.display.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, figure, save
from knowedit.files import write_text

from ...registry import RESULTS
from .flow import HIDDEN, SILENT
from .study import SECTIONS
from .tracing import KINDS

DOCS = Path(__file__).parents[3] / "docs"
PAGE, FIGURE = DOCS / "findings.md", DOCS / "figures" / "findings.svg"
START, END = "<!-- findings -->\n", "<!-- end of findings -->"


def load() -> dict:
    """The committed sections."""
    return json.loads((RESULTS / "quality" / "findings.json").read_text(encoding="utf-8"))["sections"]


def table(sections: dict) -> str:
    """Markdown."""
    lines = ["| measured | this model | n | reported of others |", "|---|---|---|---|"]
    for name, section in SECTIONS.items():
        lines += [f"| {' | '.join(row)} |" for row in section.rows(sections[name])]
    return "\n".join(lines) + "\n"


def write() -> None:
    """Put the table into the page, and draw its figure."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    write_text(PAGE, before + START + table(load()) + END + after)
    draw(load(), FIGURE)


def draw(sections: dict, path: Path) -> None:
    with figure(10, 7.2, rows=2, columns=2, squeeze=False) as (fig, axes):
        for panel, (names, draw_panel) in zip(axes.flat, PANELS.items(), strict=True):
            draw_panel(panel, *(sections[name] for name in names))
            panel.set_xlabel("layer")
            panel.yaxis.set_major_formatter(PercentFormatter(1))
            panel.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)  # off the curves
        save(fig, path)


def _draw_traces(panel: Axes, exact: dict) -> None:
    for kind, colour in (("state", GREY), ("mlp", ORANGE), ("attention", BLUE)):
        curves = exact["kinds"][kind]["curves"]
        panel.plot(curves["last subject"], color=colour, label=f"{KINDS[kind]}, subject")
        panel.plot(curves["last"], color=colour, linestyle=":", label=f"{KINDS[kind]}, last token")
    panel.set_title(f"Trace of {exact['n']} facts: what comes back")
    panel.set_ylabel("probability of the answer")


def _draw_knockouts(panel: Axes, edges: dict, sublayers: dict) -> None:
    for name, colour in (("relation", ORANGE), ("subject", BLUE), ("last", GREEN)):
        panel.plot(edges["sets"][name]["curve"], color=colour, label=f"hide {HIDDEN[name]}")
    for name, colour in (("mlp", PURPLE), ("attention", GREY)):
        label = f"no {SILENT[name]} at the subject"
        panel.plot(sublayers["sets"][name]["curve"], color=colour, linestyle="--", label=label)
    panel.axhline(0, color=GREY, linewidth=0.5)
    panel.set_title(f"Knockouts of {edges['window']} layers around each")
    panel.set_ylabel("change of p(answer)")


def _draw_sparsity(panel: Axes, sparsity: dict) -> None:
    panel.plot(sparsity["curves"]["active"], color=BLUE, label="active neurons")
    panel.plot(sparsity["curves"]["effective"], color=ORANGE, label="neurons that carry the layer")
    layers = sparsity["compositional"]["layers"]
    shares = [layer["share"]["value"] for layer in layers]
    panel.plot([layer["layer"] for layer in layers], shares, color=GREEN, label="compositional predictions")
    panel.set_ylim(0, 1.03)
    panel.set_title("How many neurons work, and whether one alone does")
    panel.set_ylabel("share")


def _draw_layers(panel: Axes, neurons: dict, editing: dict) -> None:
    curves = {
        "traced mlp": ("traced MLPs, subject", ORANGE),
        "lookup": ("attributed to neurons, subject", PURPLE),
        "read": ("attributed to neurons, last", BLUE),
    }
    for name, (label, colour) in curves.items():
        panel.plot(neurons["profiles"][name], color=colour, label=label)
    panel.set_ylabel("share of the effect")
    panel.set_title("Traced, located, and best to edit")
    right = panel.twinx()
    right.spines["right"].set_visible(True)
    layers = [layer["layer"] for layer in editing["layers"]]
    values, low, high = ([layer["Score"][end] for layer in editing["layers"]] for end in ("value", "low", "high"))
    ends = [[v - a for v, a in zip(values, low, strict=True)], [b - v for v, b in zip(values, high, strict=True)]]
    right.errorbar(layers, values, ends, fmt="s", color=GREEN)
    right.set_ylim(0, 1.03)
    right.yaxis.set_major_formatter(PercentFormatter(1))
    right.set_ylabel("Score of edits (squares)", color=GREEN)


PANELS = {
    ("exact",): _draw_traces,
    ("edges", "sublayers"): _draw_knockouts,
    ("sparsity",): _draw_sparsity,
    ("neurons", "editing"): _draw_layers,
}
