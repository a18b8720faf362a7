"""What the residual stream predicts by layer, and which parts make the logit, as pictures.

One figure holds all: the target's (and the foil's) probability and rank by layer, the first choices by layer and
position, and what layers, heads and neurons add to the logit. Each part can be drawn alone onto axes of one's own.
`Lens` and `Contributions` draw themselves with these functions, so neither is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from ...display.colours import ATTENTION, MLP
from ...display.drawing import BLUE, GREEN, GREY, ORANGE, RED, SEQUENTIAL, figure, save, shorten

STRONGEST = 8  # heads, and neurons
COLUMNS = 16  # positions that fit side by side
_LETTERS, _TITLE = 12, 120  # of a token, of a title


def lens_figure(
    path: str | Path,
    lens,
    parts=None,
    *,
    edited=None,
    edited_parts=None,
    title: str = "",
) -> Path:
    """Draw a `Lens` and the `Contributions`, with those of the edited model beside them where there are any."""
    drawn = [p for p in (parts, edited_parts) if p is not None]
    tall = 1 + 0.155 * (lens.n_layers + 1)
    ratios = [2.6, tall, *[2.6] * len(drawn)]
    with figure(11, sum(ratios) + 0.4, rows=len(ratios), columns=2, height_ratios=ratios) as (fig, axes):
        draw_probability(axes[0, 0], lens, edited)
        draw_rank(axes[0, 1], lens, edited)
        if edited is None:
            wide = fig.add_subplot(axes[1, 0].get_gridspec()[1, :])
            for unused in axes[1]:
                unused.remove()
            draw_choices(wide, lens)
        else:
            draw_choices(axes[1, 0], lens, "before the edit")
            draw_choices(axes[1, 1], edited, "with the edit")
        for row, shares in enumerate(drawn):
            when = "" if edited is None else (", before the edit", ", with the edit")[row]
            draw_layers(axes[row + 2, 0], shares, when)
            draw_strongest(axes[row + 2, 1], shares, when)
        fig.suptitle(shorten(title, _TITLE), x=0.01, ha="left", fontsize="large")
        return save(fig, path)


def contributions_figure(path: str | Path, parts) -> Path:
    """Draw `Contributions` alone."""
    with figure(11, 3, columns=2) as (fig, axes):
        draw_layers(axes[0], parts)
        draw_strongest(axes[1], parts)
        return save(fig, path)


def draw_probability(axes: Axes, lens, edited=None) -> None:
    """Probability of target and foil at the read position, by layer."""
    for values, style in _lines(lens, edited, "probability"):
        axes.plot(range(-1, lens.n_layers), values, **style)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title("Probability at the read position")
    _layer_axis(axes, lens.n_layers)
    axes.legend(loc="best")


def draw_rank(axes: Axes, lens, edited=None) -> None:
    """Their ranks, the first choice on top."""
    for values, style in _lines(lens, edited, "rank"):
        axes.plot(range(-1, lens.n_layers), values, **style)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.invert_yaxis()
    axes.set_title("Rank (1 is the first choice)")
    _layer_axis(axes, lens.n_layers)


def draw_choices(axes: Axes, lens, when: str = "") -> None:
    """The first choice after every layer (upwards) at every position; at one position alone, its first choices.

    Colour is the choice's probability; the target's cells have a frame.
    """
    if len(lens.positions) == 1:
        cells = [row[0] for row in lens.top]
        names = [f"choice {i + 1}" for i in range(len(cells[0]))]
    else:
        shown = range(max(0, len(lens.positions) - COLUMNS), len(lens.positions))  # the last ones lead to the answer
        cells = [[row[j][0] for j in shown] for row in lens.top]
        names = [_short(lens.tokens[j]) for j in shown]
    image = axes.imshow(
        [[p for _, p in row] for row in cells], aspect="auto", origin="lower", cmap=SEQUENTIAL, vmin=0, vmax=1,
        interpolation="nearest",
    )  # fmt: skip
    for y, row in enumerate(cells):
        for x, (token, p) in enumerate(row):
            axes.text(x, y, _short(token), ha="center", va="center", fontsize=6, color="white" if p > 0.55 else "black")
            if token == lens.target:
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, edgecolor=RED, linewidth=1.2))
    axes.set_xticks(
        range(len(names)), names, rotation=45 if len(names) > 6 else 0, ha="right" if len(names) > 6 else "center"
    )
    step = -(-len(cells) // 32)
    axes.set_yticks(range(0, len(cells), step), ["emb.", *map(str, range(lens.n_layers))][::step], fontsize=7)
    axes.set_ylabel("after layer")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    last = f"the last {COLUMNS} positions" if len(lens.positions) > COLUMNS else ""
    axes.set_title(", ".join(filter(None, ["First choices", when, last, f"framed: {_short(lens.target)}"])))
    axes.figure.colorbar(image, ax=axes, label="probability", pad=0.01, fraction=0.03, aspect=40)


def draw_layers(axes: Axes, parts, when: str = "") -> None:
    """What the embeddings, each layer's attention and MLP, and the last biases add to the logit."""
    layers = list(range(len(parts.mlp)))
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.bar([-1], [parts.embedding], 0.8, color=GREY, label="embeddings")
    if abs(parts.bias) > 1e-9:
        axes.bar([len(layers)], [parts.bias], 0.8, color=GREEN, label="norm's and head's bias")
    axes.bar([x - 0.2 for x in layers], parts.attention.tolist(), 0.4, color=ATTENTION, label="attention")
    axes.bar([x + 0.2 for x in layers], parts.mlp.tolist(), 0.4, color=MLP, label="MLP")
    axes.set_title(f"What each layer adds to {_what(parts)}{when}")
    _layer_axis(axes, len(layers) + (abs(parts.bias) > 1e-9))
    axes.legend(loc="upper left", fontsize=7)


def draw_strongest(axes: Axes, parts, when: str = "", n: int = STRONGEST) -> None:
    """The heads and the neurons that add or take away most."""
    heads, neurons = parts.strongest_heads(n), parts.strongest_neurons(n)
    bars = [(f"head {layer}.{head}", value, ATTENTION) for layer, head, value in heads]
    bars += [(f"neuron {layer}/{index}", value, MLP) for layer, index, value in neurons]
    places = range(len(bars))
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.barh(places, [value for _, value, _ in bars], color=[colour for *_, colour in bars])
    axes.set_yticks(places, [name for name, *_ in bars], fontsize=7)
    axes.invert_yaxis()
    axes.set_title(f"Strongest heads and neurons{when}")
    axes.set_xlabel("logit")


def _lines(lens, edited, what: str) -> list[tuple[Sequence[float], dict]]:
    """Values of target and foil by layer, with the style of their line."""
    lines = []
    for shown, when, style in ((lens, "", "-"), (edited, ", with the edit", "--")):
        if shown is None:
            continue
        j = shown.column(shown.read)
        for name, values, colour in (
            (shown.target, getattr(shown, what), BLUE),
            (shown.foil, getattr(shown, f"foil_{what}"), ORANGE),
        ):
            if values is not None:
                label = {"label": f"{_short(name)}{when}", "color": colour, "linestyle": style}
                lines.append((values[:, j].tolist(), {**label, "marker": ".", "markersize": 3}))
    return lines


def _layer_axis(axes: Axes, n_layers: int) -> None:
    axes.set_xlim(-1.7, n_layers - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer (−1: embeddings)")


def _what(parts) -> str:
    target = _short(parts.target)
    return f"the logit of {target}" if parts.foil is None else f"the logit of {target} over {_short(parts.foil)}"


def _short(token: str) -> str:
    return shorten(token.strip() or token.replace(" ", "␣"), _LETTERS)
