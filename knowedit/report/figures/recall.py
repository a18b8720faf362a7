"""The three stages of recall as one picture: enrichment, propagation and extraction by layer, for one fact or many.

Each panel can be drawn alone onto axes of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ...inert import inert
from ...recall.flow.average import RecallAverage
from ...recall.flow.pipeline import Recall
from ...statistics import Estimate
from .drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, figure, save

_SETS = {
    "relation": ("rest of the prompt", ORANGE),
    "subject": ("subject", BLUE),
    "last": ("last token itself", GREEN),
    "first": ("first token alone", GREY),
}
_SUBLAYERS = {"mlp": ("MLP", ORANGE), "attention": ("attention", BLUE)}
_TITLE = 110

Found = Recall | RecallAverage


def recall_figure(path: str | Path, found: Found) -> Path:
    """Draw one fact's recall, or the average of many with 95 % intervals."""
    with figure(11, 6.6, rows=2, columns=2) as (fig, axes):
        draw_enrichment(axes[0, 0], found)
        draw_sublayers(axes[0, 1], found)
        draw_propagation(axes[1, 0], found)
        draw_extraction(axes[1, 1], found)
        title = f"{found.prompt} → {found.target}   p = {found.probability:.3f}" if isinstance(found, Recall) else (
            f"{len(found.facts)} facts, means and 95 % intervals"
        )  # fmt: skip
        title = inert(title)
        fig.suptitle(title if len(title) <= _TITLE else title[: _TITLE - 1] + "…", x=0.01, ha="left", fontsize="large")
        return save(fig, path)


def draw_enrichment(axes: Axes, found: Found) -> None:
    """The attributes rate and its control, and on the right how well attributes are told from those of others."""
    rich = found.enrichment if isinstance(found, Recall) else found
    _curve(axes, rich.rate, BLUE, "attributes of the subject")
    _curve(axes, rich.control, GREY, "those of other subjects")
    _share_axis(axes, "share of the first words")
    _layer_axis(axes, len(rich.rate))
    axes.set_title("1  Enrichment: attributes at the subject's last token")
    handles, labels = axes.get_legend_handles_labels()
    if any(_value(one) is not None for one in rich.separation):
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        _curve(right, rich.separation, PURPLE, "own before others' (right)", dashed=True)
        right.axhline(0.5, color=PURPLE, linewidth=0.5, linestyle=":")
        right.set_ylim(0, 1)
        right.set_ylabel("separation (½: none)")
        handles, labels = (a + b for a, b in zip((handles, labels), right.get_legend_handles_labels(), strict=True))
    axes.legend(handles, labels, loc="upper left", fontsize=7)


def draw_sublayers(axes: Axes, found: Found) -> None:
    """What the answer loses when the subject's last token gets nothing from MLPs or attention."""
    for name, (label, colour) in _SUBLAYERS.items():
        _curve(axes, _changes(found, "sublayers", name), colour, label)
    _change_axis(axes, found, "1  Enrichment: sublayers silent there")


def draw_propagation(axes: Axes, found: Found) -> None:
    """What the answer loses when the last token may not see a part of the prompt."""
    for name, (label, colour) in _SETS.items():
        curve = _changes(found, "edges", name)
        if curve:
            _curve(axes, curve, colour, label, dashed=name == "first")
    _change_axis(axes, found, "2  Propagation: hidden from the last token")


def draw_extraction(axes: Axes, found: Found) -> None:
    """One fact: the events by layer. Many: the share of facts with one."""
    axes.set_title("3  Extraction: updates that promote the answer most")
    if isinstance(found, Recall):
        told = found.extraction
        rows = [("head", [layer for layer, _ in told.heads], PURPLE)]
        rows += [(label, told.layers(name), colour) for name, (label, colour) in _SUBLAYERS.items()]
        for y, (_, layers, colour) in enumerate(rows):
            axes.scatter(layers, [y] * len(layers), color=colour, s=40, zorder=3)
        for layer, head in told.heads:
            axes.annotate(f"{layer}.{head}", (layer, 0), (0, 6), textcoords="offset points", ha="center", fontsize=6)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", color=GREY, linewidth=0.3)
        if not any(layers for _, layers, _ in rows):
            axes.text(0.5, 0.9, "none for this fact", transform=axes.transAxes, ha="center", color=GREY)
        _layer_axis(axes, len(told.mlp))
        return
    for shift, (name, (label, colour)) in zip((-0.1, 0.1), _SUBLAYERS.items(), strict=True):
        shares = [one.value for one in found.events[name]]
        axes.plot(shares, color=colour, linewidth=1.3, marker=".", markersize=3, label=label)
        for layer, one in enumerate(found.events[name]):
            if one.value and one.low is not None:  # Wilson's interval of no event at all says only how many facts
                axes.plot([layer + shift] * 2, [one.low, one.high], color=colour, linewidth=1)
    _share_axis(axes, "share of facts")
    _layer_axis(axes, len(found.rate))
    axes.legend(loc="upper left", fontsize=7)


def _changes(found: Found, what: str, name: str) -> Sequence:
    if isinstance(found, RecallAverage):
        return getattr(found, what).get(name, ())
    knockout = getattr(found, what)
    return knockout.change(name) if name in knockout.after else ()


def _curve(
    axes: Axes, values: Sequence[float | Estimate | None], colour: str, label: str, dashed: bool = False
) -> None:
    shown = [(x, one) for x, one in enumerate(values) if _value(one) is not None]
    if not shown:
        return
    style = {"color": colour, "linestyle": "--" if dashed else "-", "linewidth": 1.3, "marker": ".", "markersize": 3}
    axes.plot([x for x, _ in shown], [_value(one) for _, one in shown], label=label, **style)
    sure = [(x, one.low, one.high) for x, one in shown if isinstance(one, Estimate) and one.low is not None]
    if sure:
        axes.fill_between(*zip(*sure, strict=True), color=colour, alpha=0.15, linewidth=0)


def _value(one: float | Estimate | None) -> float | None:
    return one.value if isinstance(one, Estimate) else one


def _change_axis(axes: Axes, found: Found, title: str) -> None:
    window = found.window if isinstance(found, RecallAverage) else found.edges.window
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set_ylim(-1.05, max(0.0, axes.dataLim.y1) + 0.35)  # a legend's room on top
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("change of p(answer)")
    axes.set_title(title if window == 1 else f"{title}, {window} layers at once")
    _layer_axis(axes, len(found.enrichment.rate if isinstance(found, Recall) else found.rate))
    axes.legend(loc="upper left", ncols=2, fontsize=7)


def _share_axis(axes: Axes, label: str) -> None:
    top = max(0.01, 1.45 * axes.dataLim.y1)  # a legend's room on top
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if top > 0.05 else 1))
    axes.set_ylabel(label)


def _layer_axis(axes: Axes, n_layers: int) -> None:
    axes.set_xlim(-0.7, n_layers - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
