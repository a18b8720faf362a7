"""MLPs as key-value memories, as pictures: the card of one neuron, and a model's keys, sparsity and shared neurons.

The results draw themselves with these functions, so none of their classes is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..display.drawing import BLUE, GREEN, GREY, ORANGE, RED, drawable, figure, save, shorten
from ..statistics import Estimate
from ..writing.counts import number_of

_COLOURS = {"first": GREEN, "last": RED, "random": GREY}
_BEFORE, _AFTER = 46, 32  # characters of a text
_WORDS = 12


def card_figure(path: str | Path, card) -> Path:
    """The texts that a neuron is largest on, the token marked; what its value says; what setting it to 0 does."""
    effects = [
        (name, effect)
        for name, effect in (("what follows its texts", card.on_texts), ("facts that share it", card.on_facts))
        if effect is not None
    ]
    top = 0.9 + 0.24 * max(3, len(card.triggers))
    bottom = 2.6
    with figure(9.5, top + bottom + 0.4, rows=2, columns=2, height_ratios=[top, bottom], width_ratios=[1.15, 1]) as (
        fig,
        axes,
    ):
        wide = fig.add_subplot(axes[0, 0].get_gridspec()[0, :])
        for unused in axes[0]:
            unused.remove()
        draw_texts(wide, card.triggers)
        _words(axes[1, 0], card)
        _effects(axes[1, 1], effects)
        active = f"active on {card.active:.1%} of {card.tokens:,} tokens"
        shared = f", shared by {number_of(len(card.located), 'located fact')}" if card.located else ""
        title = f"Neuron {card.layer}/{card.index} of {drawable(card.model)}: {active}{shared}"
        fig.suptitle(title, x=0.01, ha="left", fontsize="large")
        return save(fig, path)


def draw_texts(axes: Axes, triggers: Sequence) -> None:
    """One line a text: the token in bold, and on the right its activation, as a number and as a bar away from zero."""
    values = [trigger.activation for trigger in triggers]
    lowest, highest = min([0.0, *values]), max([0.0, *values])
    unit = 1.2 / ((highest - lowest) or 1.0)
    zero = 5.3 - unit * lowest
    axes.barh(range(len(triggers)), [unit * value for value in values], left=zero, height=0.6, color=BLUE)
    axes.axvline(zero, color="black", linewidth=0.6)
    for y, trigger in enumerate(triggers):
        before, after = drawable(trigger.before)[-_BEFORE:], drawable(trigger.after)[:_AFTER]
        token = drawable(trigger.token).replace(" ", "␣", 1)
        axes.text(2.75, y, before, ha="right", va="center", color=GREY, fontsize=8)
        shown = axes.text(2.8, y, token, ha="left", va="center", color=RED, fontsize=8, weight="bold")
        axes.annotate(after, (1, 0.5), xycoords=shown, va="center", color=GREY, fontsize=8, annotation_clip=False)
        axes.text(5.25, y, f"{trigger.activation:+.2f}", ha="right", va="center", fontsize=8)
    axes.set_xlim(0, 6.6)
    axes.set_ylim(len(triggers) - 0.4, -0.6)
    axes.set_title("Where it is farthest from 0: its activation at the token in bold")
    _bare(axes)


def _words(axes: Axes, card) -> None:
    for x, title, words, colour in (
        (0.0, "promotes", card.promotes, BLUE),
        (0.5, "suppresses", card.suppresses, ORANGE),
    ):
        axes.text(x, 1.0, title, color=colour, weight="bold", va="top")
        for i, word in enumerate(words[:_WORDS]):
            column, row = divmod(i, 6)
            shown = shorten(word.strip() or word.replace(" ", "␣"), 14)
            axes.text(x + 0.24 * column, 0.84 - 0.14 * row, shown, va="top", fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_title(f"What its value vector says where its activation is {'negative' if card.sign < 0 else 'positive'}")
    _bare(axes)


def _effects(axes: Axes, effects: Sequence[tuple]) -> None:
    axes.set_title("Probability when it is set to 0")
    if not effects:
        axes.text(0, 0.5, "nothing to measure it on", color=GREY)
        _bare(axes)
        return
    axes.axvline(0, color="black", linewidth=0.6)
    names = []
    for y, (name, effect) in enumerate(effects):
        for offset, what, colour in ((-0.18, "suppressed", RED), (0.18, "control", GREY)):
            estimate = getattr(effect, what)
            if estimate.value is not None:
                axes.barh(
                    [y + offset], [100 * estimate.value], 0.34, xerr=_error([estimate]), color=colour, ecolor="black"
                )
                label = {"suppressed": "this neuron", "control": "others of its layer"}[what]
                place = max(0.0, 100 * (estimate.value if estimate.high is None else estimate.high))
                axes.annotate(
                    f"{label} {estimate.value:+.1%}", (place, y + offset), (4, 0), textcoords="offset points",
                    va="center", fontsize=8, annotation_clip=False,
                )  # fmt: skip
        names.append(f"{name}\n(n = {effect.suppressed.n})")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("change, %")
    axes.margins(x=0.12)


# ---------------------------------------------------------------- a model


def memory_figure(path: str | Path, *, keys=None, sparsity=None, polysemanticity=None, title: str = "") -> Path:
    """Draw the panels of `KeysAndValues`, `Sparsity` and `Polysemanticity`, of those that are given."""
    panels = []
    if keys is not None:
        panels += [(draw_keys, keys.keys), (draw_agreement, keys.agreement), (draw_compositional, keys.compositional)]
    if sparsity is not None:
        panels += [(draw_active, sparsity.layers), (draw_kept, sparsity.kept)]
    if polysemanticity is not None:
        panels.append((draw_shared, polysemanticity))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with figure(3.6 * columns + 0.4, 2.9 * rows + 0.3, rows=rows, columns=columns, squeeze=False) as (fig, axes):
        for place, (draw, part) in zip(axes.flat, panels, strict=False):
            draw(place, part)
        for unused in axes.flat[len(panels) :]:
            unused.remove()
        fig.suptitle(drawable(title), x=0.01, ha="left", fontsize="large")
        return save(fig, path)


def draw_keys(axes: Axes, keys: Sequence) -> None:
    """The share of keys that die without the first, the last, or other tokens of their triggers."""
    for cut, colour in _COLOURS.items():
        _line(axes, [k.layer for k in keys], [k.dead[cut] for k in keys], colour, f"without {cut}")
    axes.set_title("Keys that die, %")
    axes.set_ylim(-3, 103)
    _by_layer(axes, [k.layer for k in keys])


def draw_agreement(axes: Axes, agreement: Sequence) -> None:
    """How often a value's first token is the one that follows the key's trigger."""
    layers = [a.layer for a in agreement]
    _line(axes, layers, [a.agree for a in agreement], BLUE, "first token of the value")
    axes.plot(layers, [100 * a.chance for a in agreement], color=GREY, linestyle="--", label="triggers dealt out anew")
    axes.set_title("Values that say what follows, %")
    _by_layer(axes, layers)


def draw_compositional(axes: Axes, compositional: Sequence) -> None:
    """The share of tokens on which the layer says what none of its active neurons says."""
    layers = [c.layer for c in compositional]
    _line(axes, layers, [c.share for c in compositional], BLUE)
    axes.axhline(68, color=GREY, linestyle="--", label="Geva et al. 2021: at least 68 %")
    axes.set_title("Said by no single neuron, %")
    axes.set_ylim(-3, 103)
    _by_layer(axes, layers)


def draw_active(axes: Axes, active: Sequence) -> None:
    """The share of neurons that is active, and the share that carries the layer."""
    layers = [a.layer for a in active]
    _line(axes, layers, [a.active for a in active], BLUE, "active")
    _line(axes, layers, [a.effective for a in active], ORANGE, "effective, (Σc)² / nΣc²")
    axes.set_title("Neurons at a token, %")
    axes.set_ylim(bottom=0)
    _by_layer(axes, layers)


def draw_kept(axes: Axes, kept: Sequence) -> None:
    """What remains of predictions when the strongest neurons are kept, and random ones."""
    shares = [100 * k.share for k in kept]
    _line(axes, shares, [k.top1 for k in kept], BLUE, "first choice stays")
    _line(axes, shares, [k.ratio for k in kept], ORANGE, "p′/p")
    _line(axes, shares, [k.random_top1 for k in kept], BLUE, "the same, random neurons", style=":")
    _line(axes, shares, [k.random_ratio for k in kept], ORANGE, style=":")
    axes.set_title(f"What remains of {number_of(kept[0].ratio.n, 'prediction')}, %")
    axes.set_xlabel("neurons kept in every layer, %")
    axes.set_ylim(bottom=-3)
    axes.legend(fontsize=7)


def draw_shared(axes: Axes, polysemanticity) -> None:
    """How many unrelated relations use a neuron, as shares of the used ones, against rotated coordinates."""
    most = (
        max(
            [
                k
                for part in (polysemanticity.neurons, polysemanticity.rotated)
                for k, n in enumerate(part.histogram)
                if n
            ],
            default=0,
        )
        + 1
    )
    for offset, part, colour, label in (
        (-0.2, polysemanticity.neurons, BLUE, "neurons"),
        (0.2, polysemanticity.rotated, GREY, "rotated basis"),
    ):
        total = sum(part.histogram) or 1
        heights = [100 * n / total for n in part.histogram[:most]]
        label = f"{label} ({part.used:,.0f} used)"
        axes.bar(np.arange(1, most + 1) + offset, heights, 0.4, color=colour, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("unrelated relations that use it")
    axes.set_title("Used neurons, %")
    axes.legend(fontsize=7)


def _line(
    axes: Axes, x: Sequence[float], estimates: Sequence[Estimate], colour: str, label: str = "", style: str = "-"
) -> None:
    """A line with its intervals as a band; gaps where nothing was measured."""
    values = [np.nan if e.value is None else 100 * e.value for e in estimates]
    low = [v if e.low is None else 100 * e.low for v, e in zip(values, estimates, strict=True)]
    high = [v if e.high is None else 100 * e.high for v, e in zip(values, estimates, strict=True)]
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    marker = "." if len(x) < 40 else None
    axes.plot(x, values, style, color=colour, marker=marker, markersize=4, linewidth=1.2, label=label or "_")


def _error(estimates: Sequence[Estimate]) -> np.ndarray:
    return 100 * np.array(
        [
            [0.0 if e.low is None else max(0.0, e.value - e.low) for e in estimates],
            [0.0 if e.high is None else max(0.0, e.high - e.value) for e in estimates],
        ]
    )


def _by_layer(axes: Axes, layers: Sequence[int]) -> None:
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(layers) > 1:
        axes.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    axes.legend(fontsize=7)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
