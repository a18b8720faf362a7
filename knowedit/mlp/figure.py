"""MLPs as pictures: anatomy, imputation, geometry, accounting and precision, a figure each.

The results draw themselves with these functions, so none of their classes is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ..display.colours import ATTENTION, MLP, RANDOM
from ..display.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SEQUENTIAL, SKY, figure, save
from ..statistics import Estimate
from ..writing.counts import number_of
from ..writing.inert import inert

_STAGE = {"input": GREEN, "gate": PURPLE, "up": SKY, "neurons": MLP, "output": BLUE, "random": RANDOM}
_NAMES = {"random": "random expansion", "mlp": "MLPs", "scores": "attention scores"}  # what is not its own name
_IMPUTED = "MLP output set to its mean"


# ---------------------------------------------------------------- anatomy


def anatomy_figure(path: str | Path, anatomy, layer: int) -> Path:
    """Draw an `Anatomy`: all layers as images, one layer's distributions and nonlinearity, dimensions, the probe."""
    stages = [name for name, _ in anatomy.flow]
    n = len(stages)
    with figure(2.5 * n, 8.4, rows=3, columns=n, height_ratios=[1.25, 0.85, 1]) as (fig, axes):
        for column, ((name, width), top, below) in enumerate(zip(anatomy.flow, axes[0], axes[1], strict=True)):
            image = _layers_image(top, anatomy, name)
            top.set_title(f"{_NAMES.get(name, name)}, {width:,} wide")
            _distribution(below, anatomy, name, layer)
            if column == 0:
                top.set_ylabel("layer")
                below.set_ylabel(f"share of values, layer {layer}")
        fig.colorbar(image, ax=list(axes[0]), label="share of the layer's values", pad=0.01)
        grid = axes[2, 0].get_gridspec()
        for unused in axes[2]:
            unused.remove()
        nonlinearity, dimensions, accuracy = (fig.add_subplot(part) for part in grid[2, :].subgridspec(1, 3))
        _nonlinearity(nonlinearity, anatomy, layer)
        _dimensions(dimensions, anatomy)
        if anatomy.probe is None:
            _unmeasured(accuracy, "linear probe: give facts of several relations")
        else:
            _accuracy(accuracy, anatomy.probe)
        texts = number_of(anatomy.texts, "text")
        title = inert(f"{anatomy.model}: MLPs on {anatomy.tokens:,} tokens of {texts}")
        fig.suptitle(title, x=0.01, ha="left")
        return save(fig, path)


def _asinh(axes: Axes, edges: Sequence[float]) -> None:
    """The axis of bins that are drawn equally wide: a few values at their places among the edges."""
    reach = 10.0 ** np.floor(np.log10(edges[-1]))
    values = np.array([-reach, -reach / 10, 0, reach / 10, reach])
    places = np.interp(values, edges, range(len(edges)))
    apart = (np.abs(places - places[2]) > len(edges) / 12) | (values == 0)  # else the words would overlap
    axes.set_xticks(places[apart], [f"{v:g}".replace("-", "−") for v in values[apart]])
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlim(0, len(edges) - 1)


def _layers_image(axes: Axes, anatomy, stage: str):
    shares = np.array([layer.stage(stage).histogram for layer in anatomy.layers])
    edges = anatomy.edges[stage]
    rows = np.arange(len(anatomy.layers) + 1) - 0.5
    image = axes.pcolormesh(range(len(edges)), rows, shares, cmap=SEQUENTIAL, vmin=0, vmax=0.06, rasterized=True)
    _asinh(axes, edges)
    places = np.linspace(0, len(anatomy.layers) - 1, min(6, len(anatomy.layers))).round().astype(int)
    axes.set_yticks(places, [str(anatomy.layers[i].layer) for i in places])
    return image


def _distribution(axes: Axes, anatomy, name: str, layer: int) -> None:
    stage, edges = anatomy.layer(layer).stage(name), anatomy.edges[name]
    axes.stairs(stage.histogram, range(len(edges)), fill=True, color=_STAGE[name], alpha=0.75)
    _asinh(axes, edges)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"98 % from {stage.quantiles[1]:.2g} to {stage.quantiles[7]:.2g}".replace("-", "−"), fontsize=8)


def _nonlinearity(axes: Axes, anatomy, layer: int) -> None:
    stage, edges = anatomy.layer(layer).stage(anatomy.nonlinear), np.array(anatomy.edges[anatomy.nonlinear])
    density = np.array(stage.histogram) / np.diff(edges)
    behind = axes.twinx()
    behind.stairs(density / density.max(), edges, fill=True, color=_STAGE[anatomy.nonlinear], alpha=0.35)
    behind.set_ylim(0, 2.2)
    behind.set_yticks([])
    behind.spines[:].set_visible(False)
    x, y = np.array(anatomy.curve).T
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    low, high = stage.quantiles[0], stage.quantiles[-1]
    axes.plot(x, y, color=GREY, linewidth=1)
    inside = (x >= low) & (x <= high)
    axes.plot(x[inside], y[inside], color=RED, linewidth=2)
    axes.axvline(0, color=GREY, linewidth=0.5)
    wide = 0.4 * (high - low)
    axes.set_xlim(low - wide, high + wide)
    near = y[(x >= low - wide) & (x <= high + wide)]
    axes.set_ylim(near.min() - 0.1 * np.ptp(near), near.max())
    axes.set_xlabel(f"{anatomy.nonlinear} of layer {layer}: {anatomy.layer(layer).below_zero.value:.0%} below zero")
    axes.set_title(f"nonlinearity ({anatomy.activation}) and its data")


def _dimensions(axes: Axes, anatomy) -> None:
    layers = [layer.layer for layer in anatomy.layers]
    for name, _ in anatomy.flow:
        dimensions = [layer.stage(name).dimension for layer in anatomy.layers]
        _by_layer(axes, layers, dimensions, _STAGE[name], _NAMES.get(name, name))
    axes.set_title("effective dimension")
    axes.set_ylim(0, 1.3 * max(stage.dimension for layer in anatomy.layers for stage in layer.stages))
    axes.legend(fontsize=7, ncols=3, loc="upper center")


def _accuracy(axes: Axes, probe) -> None:
    layers = list(probe.accuracy)
    for stage in probe.accuracy[layers[0]]:
        values = [probe.accuracy[layer][stage] for layer in layers]
        _by_layer(axes, layers, [v.value for v in values], _STAGE[stage], _NAMES.get(stage, stage))
        if stage == "neurons":
            axes.fill_between(layers, [v.low for v in values], [v.high for v in values], color=RED, alpha=0.12)
    axes.axhline(probe.chance, color=GREY, linewidth=0.8, linestyle=":")
    axes.text(layers[-1], probe.chance, "most frequent relation", fontsize=7, color=GREY, ha="right", va="bottom")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=6, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.18))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title(f"linear probe of {len(probe.relations)} relations (n = {sum(probe.relations.values())})")


# ---------------------------------------------------------------- imputation


def imputation_figure(path: str | Path, imputation, title: str = "") -> Path:
    """Draw an `Imputation`: the target's log-probability by layer, highest against random dimensions."""
    layers, n = range(len(imputation.highest)), imputation.dimensions
    with figure(7, 3.2) as (fig, axes):
        axes.axhline(imputation.log_probability, color=GREY, linewidth=1, linestyle=":", label="nothing altered")
        _by_layer(axes, layers, imputation.highest, RED, f"{n} highest dimensions")
        _band(axes, layers, imputation.control(), RANDOM, f"{n} random dimensions")
        axes.set_ylabel("log-probability of the target")
        return _titled(fig, axes, path, title or f"{_IMPUTED}: {imputation.prompt} → {imputation.target}")


def imputations_figure(path: str | Path, imputations, title: str = "") -> Path:
    """Draw `Imputations`: the mean change of the target's log-probability over many facts."""
    layers, n = range(len(imputations.highest)), imputations.each[0].dimensions
    with figure(7, 3.2) as (fig, axes):
        axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
        _band(axes, layers, imputations.highest, RED, f"{n} highest dimensions")
        _band(axes, layers, imputations.random, RANDOM, f"{n} random dimensions")
        axes.set_ylabel("mean change of log-probability")
        return _titled(fig, axes, path, title or f"{_IMPUTED}: {number_of(len(imputations.each), 'fact')}")


def _titled(fig: Figure, axes: Axes, path: str | Path, title: str) -> Path:
    axes.set_title(inert(title))
    axes.legend(fontsize=8)
    return save(fig, path)


# ---------------------------------------------------------------- geometry


def geometry_figure(path: str | Path, geometry, layer: int | None = None) -> Path:
    """Draw a `Geometry`: angles against random directions, how many fit, interference, dimension, the AND gates."""
    layers = [values.layer for values in geometry.layers]
    shown = next((values for values in geometry.layers if values.layer == layer), geometry.layers[len(layers) // 2])
    with figure(10, 6.2, rows=2, columns=2) as (fig, axes):
        bins = len(shown.angles)
        centres = (np.arange(bins) + 0.5) * 180 / bins
        axes[0, 0].plot(centres, _positive(shown.angles), color=RED, label=f"value vectors, layer {shown.layer}")
        axes[0, 0].plot(centres, _positive(geometry.random_angles()), color=RANDOM, label="random directions")
        axes[0, 0].axvline(shown.closest_random, color=GREY, linewidth=0.8, linestyle=":", label="closest random pair")
        axes[0, 0].set(yscale="log", xlabel="angle between two of them, degrees", title="share of pairs", xlim=(0, 180))
        axes[0, 0].set_ylim(1e-7, 3)
        axes[0, 0].set_yticks([1e-6, 1e-4, 1e-2, 1], ["0.0001 %", "0.01 %", "1 %", "100 %"])
        axes[0, 0].legend(fontsize=7, loc="upper left")
        for d, colour in zip(dict.fromkeys(fit.d for fit in geometry.fits), (BLUE, ORANGE), strict=False):
            fits = sorted((fit for fit in geometry.fits if fit.d == d), key=lambda fit: fit.angle)
            angles = [fit.angle for fit in fits]
            axes[0, 1].plot(angles, [fit.expected for fit in fits], color=colour, marker=".", label=f"d = {d:,}")
            axes[0, 1].plot(angles, [fit.bound for fit in fits], color=colour, linestyle=":")
        axes[0, 1].set(xlabel="smallest angle, degrees", title="how many directions fit (dotted: e^(d cos²/4))")
        axes[0, 1].set_yscale("asinh", linear_width=4)
        axes[0, 1].set_yticks([0, 2, 4, 10, 40, 100, 400])
        axes[0, 1].yaxis.set_major_formatter(FuncFormatter(lambda y, _: _power(y)))
        axes[0, 1].set_ylim(0, 500)
        axes[0, 1].legend(fontsize=7)
        ratio = axes[1, 0]
        interference = [o.interference.value / o.interference_random for o in geometry.layers]
        _by_layer(ratio, layers, interference, RED, "interference")
        _by_layer(
            ratio, layers, [o.dimension / o.dimension_random for o in geometry.layers], BLUE, "effective dimension"
        )
        ratio.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
        ratio.set_title("value vectors, relative to as many random directions")
        ratio.set_ylim(bottom=0)
        ratio.legend(fontsize=7)
        if geometry.gates is None:
            _unmeasured(axes[1, 1], "AND gates: give a subject of several words")
        else:
            _gates(axes[1, 1], geometry.gates)
        title = f"{geometry.model}: geometry of {shown.vectors:,} value vectors in {geometry.d} dimensions"
        fig.suptitle(inert(title), x=0.01, ha="left")
        return save(fig, path)


def _gates(axes: Axes, gates) -> None:
    layers = range(len(gates.and_swapped))
    colours = {"and": RED, "first": SKY, "last": BLUE, "either": GREY}
    names = {
        "and": "AND: both parts needed",
        "first": "first part alone",
        "last": "last part alone",
        "either": "either",
    }
    shares = [[share.value for share in gates.shares[kind]] for kind in names]
    axes.stackplot(layers, shares, colors=[colours[kind] for kind in names], labels=list(names.values()), alpha=0.85)
    swapped = [share.value for share in gates.and_swapped]
    if None not in swapped:
        axes.plot(layers, swapped, color="black", linewidth=1.2, label="AND, this pair only")
    axes.set_ylim(0, 1)
    axes.set_xlim(0, max(1, len(layers) - 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
    axes.set_title(f"what the {gates.strongest} strongest neurons answer to ({number_of(gates.facts, 'subject')})")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)


# ---------------------------------------------------------------- accounting


def accounting_figure(path: str | Path, accounting) -> Path:
    """Draw an `Accounting`: parameters, and operations of one token, by part."""
    colours = (RED, BLUE, SKY, ORANGE, PURPLE, GREY)
    with figure(8, 2.1) as (fig, axes):
        for row, (kind, total) in enumerate((("parameters", accounting.parameters), ("flops", accounting.flops))):
            left = 0.0
            for (name, part), colour in zip(accounting.parts.items(), colours, strict=True):
                share = getattr(part, kind) / total
                axes.barh(
                    row, share, left=left, color=colour, label=_NAMES.get(name, name) if not row else None, height=0.65
                )
                if share > 0.05:
                    axes.text(
                        left + share / 2, row, f"{share:.1%}", ha="center", va="center", color="white", fontsize=8
                    )
                left += share
        names = (f"{_short(accounting.parameters)} parameters", f"{_short(accounting.flops)} operations a token")
        axes.set_yticks([0, 1], names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)
        shape = f"{accounting.layers} layers, {accounting.d_model:,} → {accounting.n_neurons:,}"
        axes.set_title(inert(f"{accounting.model}: {shape}, {accounting.tokens:,} tokens long"))
        fig.legend(loc="outside lower center", ncols=6, fontsize=8)
        return save(fig, path)


# ---------------------------------------------------------------- precision


def precision_figure(path: str | Path, precision) -> Path:
    """Draw a `Precision`: what is left at fewer bits: facts, located neurons and edits, MLPs beside attention."""
    panels = [("known", f"facts known (n = {precision.facts})")]
    panels += [("found_again", f"neurons located again (n = {precision.neuron_facts})")] * bool(precision.neuron_facts)
    panels += [("edited", f"edits are the first choice (n = {precision.edits})")] * bool(precision.edits)
    with figure(3.4 * len(panels) + 0.5, 3, columns=len(panels), squeeze=False) as (fig, axes):
        for ax, (name, title) in zip(axes[0], panels, strict=True):
            for part, colour in (("mlp", MLP), ("attention", ATTENTION)):
                levels = [precision.levels[0], *(level for level in precision.levels if level.part == part)]
                if len(levels) > 1:
                    _levels(ax, levels, name, colour, f"{_NAMES.get(part, part)} quantized")
            ax.set_title(title)
            ax.set_ylim(0, 1.05)
            ax.yaxis.set_major_formatter(PercentFormatter(1))
            ax.set_xlabel("bits of a weight")
        axes[0, 0].legend(fontsize=7, loc="lower left")
        fig.suptitle(inert(f"{precision.model} at fewer bits"), x=0.01, ha="left")
        return save(fig, path)


def _levels(axes: Axes, levels: list, name: str, colour: str, label: str) -> None:
    places = range(len(levels))
    _errors(axes, places, [getattr(level, name) for level in levels], colour, label)
    axes.set_xticks(places, ["full" if level.bits is None else str(level.bits) for level in levels])


# ---------------------------------------------------------------- shared


def _by_layer(axes: Axes, layers: Sequence[int], values: Sequence[float], colour: str, label: str) -> None:
    axes.plot(layers, values, color=colour, label=label, marker="." if len(layers) == 1 else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")


def _band(axes: Axes, layers: Sequence[int], values: Sequence[Estimate], colour: str, label: str) -> None:
    measured = [(layer, v) for layer, v in zip(layers, values, strict=True) if v.value is not None]
    if not measured:
        return
    layers, values = zip(*measured, strict=True)
    _by_layer(axes, layers, [v.value for v in values], colour, label)
    if all(v.low is not None for v in values):
        axes.fill_between(layers, [v.low for v in values], [v.high for v in values], color=colour, alpha=0.2)


def _errors(axes: Axes, places: Sequence[int], values: Sequence[Estimate], colour: str, label: str) -> None:
    measured = [(place, v) for place, v in zip(places, values, strict=True) if v.value is not None]
    axes.plot(
        [p for p, _ in measured], [v.value for _, v in measured], color=colour, marker="o", markersize=4, label=label
    )
    for place, v in measured:
        if v.low is not None:
            axes.plot([place, place], [v.low, v.high], color=colour, linewidth=1, alpha=0.6)


def _unmeasured(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, fontsize=8, transform=axes.transAxes)


def _positive(values: Sequence[float]) -> np.ndarray:
    """For a logarithmic axis: nothing where there is no pair."""
    array = np.array(values)
    return np.where(array > 0, array, np.nan)


def _power(y: float) -> str:
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in f"{y:.0f}")


def _short(number: int) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)
