"""The three stages of recall as one picture: enrichment, propagation and extraction by layer, for one fact or many.

Each panel can be drawn alone onto axes of one's own. `Recall` and `RecallAverage` draw themselves with these functions,
so neither is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ...display.colours import ATTENTION, MLP, RANDOM
from ...display.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, figure, save, shorten
from ...statistics import Estimate

_SETS = {
    "relation": ("rest of the prompt", ORANGE),
    "subject": ("subject", BLUE),
    "last": ("last token itself", GREEN),
    "first": ("first token alone", GREY),
}
_SUBLAYERS = {"mlp": ("MLP", MLP), "attention": ("attention", ATTENTION)}
_TITLE = 110


def recall_figure(path: str | Path, recall) -> Path:
    """Draw one fact's `Recall`, or the `RecallAverage` of many with 95 % intervals."""
    with figure(11, 6.6, rows=2, columns=2) as (fig, axes):
        draw_enrichment(axes[0, 0], recall)
        draw_sublayers(axes[0, 1], recall)
        draw_propagation(axes[1, 0], recall)
        draw_extraction(axes[1, 1], recall)
        title = (
            f"{recall.prompt} → {recall.target}   p = {recall.probability:.3f}"
            if _single(recall)
            else f"{len(recall.facts)} facts, means and 95 % intervals"
        )
        fig.suptitle(shorten(title, _TITLE), x=0.01, ha="left", fontsize="large")
        return save(fig, path)


def draw_enrichment(axes: Axes, recall) -> None:
    """The attributes rate and its control, and on the right how well attributes are told from those of others."""
    rich = recall.enrichment if _single(recall) else recall
    _curve(axes, rich.rate, BLUE, "attributes of the subject")
    _curve(axes, rich.control, RANDOM, "those of other subjects")
    _share_axis(axes, "share of the first words")
    _layer_axis(axes, len(rich.rate))
    axes.set_title("1  Enrichment: attributes at the subject's last token")
    handles, labels = axes.get_legend_handles_labels()
    if any(_value(share) is not None for share in rich.separation):
        right = axes.twinx()
        right.spines["right"].set_visible(True)
        _curve(right, rich.separation, PURPLE, "own before others' (right)", dashed=True)
        right.axhline(0.5, color=PURPLE, linewidth=0.5, linestyle=":")
        right.set_ylim(0, 1)
        right.set_ylabel("separation (½: none)")
        handles, labels = (a + b for a, b in zip((handles, labels), right.get_legend_handles_labels(), strict=True))
    axes.legend(handles, labels, loc="upper left", fontsize=7)


def draw_sublayers(axes: Axes, recall) -> None:
    """What the answer loses when the subject's last token gets nothing from MLPs or attention."""
    for name, (label, colour) in _SUBLAYERS.items():
        _curve(axes, _changes(recall, "sublayers", name), colour, label)
    _change_axis(axes, recall, "1  Enrichment: sublayers silent there")


def draw_propagation(axes: Axes, recall) -> None:
    """What the answer loses when the last token may not see a part of the prompt."""
    for name, (label, colour) in _SETS.items():
        curve = _changes(recall, "edges", name)
        if curve:
            _curve(axes, curve, colour, label, dashed=name == "first")
    _change_axis(axes, recall, "2  Propagation: hidden from the last token")


def draw_extraction(axes: Axes, recall) -> None:
    """One fact: the events by layer. Many: the share of facts with one."""
    axes.set_title("3  Extraction: updates that promote the answer most")
    if _single(recall):
        events = recall.extraction
        rows = [("head", [layer for layer, _ in events.heads], PURPLE)]
        rows += [(label, events.layers(name), colour) for name, (label, colour) in _SUBLAYERS.items()]
        for y, (_, layers, colour) in enumerate(rows):
            axes.scatter(layers, [y] * len(layers), color=colour, s=40, zorder=3)
        for layer, head in events.heads:
            axes.annotate(f"{layer}.{head}", (layer, 0), (0, 6), textcoords="offset points", ha="center", fontsize=6)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.grid(axis="y", color=GREY, linewidth=0.3)
        if not any(layers for _, layers, _ in rows):
            axes.text(0.5, 0.9, "none for this fact", transform=axes.transAxes, ha="center", color=GREY)
        _layer_axis(axes, len(events.mlp))
        return
    for shift, (name, (label, colour)) in zip((-0.1, 0.1), _SUBLAYERS.items(), strict=True):
        shares = [share.value for share in recall.events[name]]
        axes.plot(shares, color=colour, linewidth=1.3, marker=".", markersize=3, label=label)
        for layer, share in enumerate(recall.events[name]):
            if share.value and share.low is not None:  # Wilson's interval of no event says only how many facts
                axes.plot([layer + shift] * 2, [share.low, share.high], color=colour, linewidth=1)
    _share_axis(axes, "share of facts")
    _layer_axis(axes, len(recall.rate))
    axes.legend(loc="upper left", fontsize=7)


def _single(recall) -> bool:
    """Whether this is the recall of one fact."""
    return hasattr(recall, "prompt")


def _changes(recall, what: str, name: str) -> Sequence:
    """What a knockout costs by layer, empty where the prompts have no such tokens."""
    knockout = getattr(recall, what)
    if not _single(recall):
        return knockout.get(name, ())
    return knockout.change(name) if name in knockout.after else ()


def _curve(
    axes: Axes, values: Sequence[float | Estimate | None], colour: str, label: str, dashed: bool = False
) -> None:
    shown = [(x, value) for x, value in enumerate(values) if _value(value) is not None]
    if not shown:
        return
    style = {"color": colour, "linestyle": "--" if dashed else "-", "linewidth": 1.3, "marker": ".", "markersize": 3}
    axes.plot([x for x, _ in shown], [_value(value) for _, value in shown], label=label, **style)
    bands = [(x, value.low, value.high) for x, value in shown if isinstance(value, Estimate) and value.low is not None]
    if bands:
        axes.fill_between(*zip(*bands, strict=True), color=colour, alpha=0.15, linewidth=0)


def _value(value: float | Estimate | None) -> float | None:
    return value.value if isinstance(value, Estimate) else value


def _change_axis(axes: Axes, recall, title: str) -> None:
    window = recall.edges.window if _single(recall) else recall.window
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set_ylim(-1.05, max(0.0, axes.dataLim.y1) + 0.35)  # a legend's room on top
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("change of p(answer)")
    axes.set_title(title if window == 1 else f"{title}, {window} layers at once")
    _layer_axis(axes, len(recall.enrichment.rate if _single(recall) else recall.rate))
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
