"""The pictures of `knowedit mlp`: anatomy, imputation, geometry, accounting and precision, a figure each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ...inert import inert
from ...mlp.accounting import Accounting
from ...mlp.and_gate import Gates
from ...mlp.imputation import Imputation, Imputations
from ...mlp.layer_anatomy import Anatomy
from ...mlp.probing import RANDOM, RelationProbe
from ...mlp.quantization import Level, Precision
from ...mlp.value_geometry import BINS, GPT3_WIDTH, Geometry, random_angles
from ...statistics import Estimate
from .drawing import BLUE, GREY, ORANGE, PURPLE, RED, SEQUENTIAL, SKY, figure, save

_STAGE = {"input": GREY, "gate": PURPLE, "up": SKY, "neurons": RED, "output": BLUE, RANDOM: ORANGE}
_NAMES = {
    "input": "input", "gate": "gate", "up": "up", "neurons": "neurons", "output": "output", RANDOM: "random expansion",
    "mlp": "MLPs", "attention": "attention", "scores": "attention scores", "embeddings": "embeddings",
    "unembedding": "unembedding", "other": "other",
}  # fmt: skip


# ---------------------------------------------------------------- anatomy


def anatomy_figure(path: str | Path, found: Anatomy, layer: int, probe: RelationProbe | None = None) -> Path:
    """All layers as images, one layer's distributions, the nonlinearity with its data, dimensions and the probe."""
    stages = [name for name, _ in found.flow]
    n = len(stages)
    with figure(2.5 * n, 8.4, rows=3, columns=n, height_ratios=[1.25, 0.85, 1]) as (fig, axes):
        for column, ((name, width), top, below) in enumerate(zip(found.flow, axes[0], axes[1], strict=True)):
            image = _layers_image(top, found, name)
            top.set_title(f"{_NAMES[name]}, {width:,} wide")
            _distribution(below, found, name, layer)
            if column == 0:
                top.set_ylabel("layer")
                below.set_ylabel(f"share of values, layer {layer}")
        fig.colorbar(image, ax=list(axes[0]), label="share of the layer's values", pad=0.01)
        grid = axes[2, 0].get_gridspec()
        for unused in axes[2]:
            unused.remove()
        nonlinearity, dimensions, accuracy = (fig.add_subplot(part) for part in grid[2, :].subgridspec(1, 3))
        _nonlinearity(nonlinearity, found, layer)
        _dimensions(dimensions, found)
        _accuracy(accuracy, probe) if probe else _unmeasured(accuracy, "linear probe: give facts of several relations")
        fig.suptitle(
            inert(f"{found.model}: MLPs on {found.tokens:,} tokens of {found.texts} texts"), x=0.01, ha="left"
        )  # fmt: skip
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


def _layers_image(axes: Axes, found: Anatomy, stage: str):
    shares = np.array([one.stage(stage).histogram for one in found.layers])
    edges = found.edges[stage]
    rows = np.arange(len(found.layers) + 1) - 0.5
    image = axes.pcolormesh(range(len(edges)), rows, shares, cmap=SEQUENTIAL, vmin=0, vmax=0.06, rasterized=True)
    _asinh(axes, edges)
    places = np.linspace(0, len(found.layers) - 1, min(6, len(found.layers))).round().astype(int)
    axes.set_yticks(places, [str(found.layers[i].layer) for i in places])
    return image


def _distribution(axes: Axes, found: Anatomy, stage: str, layer: int) -> None:
    one, edges = found.layer(layer).stage(stage), found.edges[stage]
    axes.stairs(one.histogram, range(len(edges)), fill=True, color=_STAGE[stage], alpha=0.75)
    _asinh(axes, edges)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"98 % from {one.quantiles[1]:.2g} to {one.quantiles[7]:.2g}".replace("-", "−"), fontsize=8)


def _nonlinearity(axes: Axes, found: Anatomy, layer: int) -> None:
    one, edges = found.layer(layer).stage(found.nonlinear), np.array(found.edges[found.nonlinear])
    density = np.array(one.histogram) / np.diff(edges)
    behind = axes.twinx()
    behind.stairs(density / density.max(), edges, fill=True, color=_STAGE[found.nonlinear], alpha=0.35)
    behind.set_ylim(0, 2.2)
    behind.set_yticks([])
    behind.spines[:].set_visible(False)
    x, y = np.array(found.curve).T
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
    low, high = one.quantiles[0], one.quantiles[-1]
    axes.plot(x, y, color=GREY, linewidth=1)
    inside = (x >= low) & (x <= high)
    axes.plot(x[inside], y[inside], color=RED, linewidth=2)
    axes.axvline(0, color=GREY, linewidth=0.5)
    wide = 0.4 * (high - low)
    axes.set_xlim(low - wide, high + wide)
    near = y[(x >= low - wide) & (x <= high + wide)]
    axes.set_ylim(near.min() - 0.1 * np.ptp(near), near.max())
    axes.set_xlabel(f"{found.nonlinear} of layer {layer}: {_percent(found.layer(layer).below_zero)} below zero")
    axes.set_title(f"nonlinearity ({found.activation}) and its data")


def _dimensions(axes: Axes, found: Anatomy) -> None:
    for name, _ in found.flow:
        _by_layer(axes, [one.layer for one in found.layers], [one.stage(name).dimension for one in found.layers],
                  _STAGE[name], _NAMES[name])  # fmt: skip
    axes.set_title("effective dimension")
    axes.set_ylim(0, 1.3 * max(stage.dimension for one in found.layers for stage in one.stages))
    axes.legend(fontsize=7, ncols=3, loc="upper center")


def _accuracy(axes: Axes, probe: RelationProbe) -> None:
    layers = list(probe.accuracy)
    for stage in probe.accuracy[layers[0]]:
        values = [probe.accuracy[layer][stage] for layer in layers]
        _by_layer(axes, layers, [v.value for v in values], _STAGE[stage], _NAMES[stage])
        if stage == "neurons":
            axes.fill_between(layers, [v.low for v in values], [v.high for v in values], color=RED, alpha=0.12)
    axes.axhline(probe.chance, color=GREY, linewidth=0.8, linestyle=":")
    axes.text(layers[-1], probe.chance, "most frequent relation", fontsize=7, color=GREY, ha="right", va="bottom")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=6, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.18))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title(f"linear probe of {len(probe.relations)} relations (n = {sum(probe.relations.values())})")


# ---------------------------------------------------------------- imputation


def imputation_figure(path: str | Path, found: Imputation | Imputations, title: str = "") -> Path:
    """The target's log-probability by layer, highest against random dimensions; for many facts, its change."""
    one = isinstance(found, Imputation)
    with figure(7, 3.2) as (fig, axes):
        layers = range(len(found.highest))
        if one:
            axes.axhline(found.log_probability, color=GREY, linewidth=1, linestyle=":", label="nothing altered")
            _by_layer(axes, layers, found.highest, RED, f"{found.dimensions} highest dimensions")
            _band(axes, layers, found.control(), BLUE, f"{found.dimensions} random dimensions")
            axes.set_ylabel("log-probability of the target")
        else:
            axes.axhline(0, color=GREY, linewidth=1, linestyle=":")
            n = found.each[0].dimensions
            _band(axes, layers, found.highest, RED, f"{n} highest dimensions")
            _band(axes, layers, found.random, BLUE, f"{n} random dimensions")
            axes.set_ylabel("mean change of log-probability")
        shown = f"{found.prompt} → {found.target}" if one else f"{len(found.each)} facts"
        axes.set_title(inert(title or f"MLP output set to its mean: {shown}"))
        axes.legend(fontsize=8)
        return save(fig, path)


# ---------------------------------------------------------------- geometry


def geometry_figure(path: str | Path, found: Geometry, gates: Gates | None = None, layer: int | None = None) -> Path:
    """Angles against random directions, how many directions fit, interference and dimension, the AND gates."""
    layers = [one.layer for one in found.layers]
    shown = next((one for one in found.layers if one.layer == layer), found.layers[len(layers) // 2])
    with figure(10, 6.2, rows=2, columns=2) as (fig, axes):
        centres = (np.arange(BINS) + 0.5) * 180 / BINS
        axes[0, 0].plot(centres, _positive(shown.angles), color=RED, label=f"value vectors, layer {shown.layer}")
        axes[0, 0].plot(centres, _positive(random_angles(found.d)), color=GREY, label="random directions")
        axes[0, 0].axvline(shown.closest_random, color=GREY, linewidth=0.8, linestyle=":", label="closest random pair")
        axes[0, 0].set(yscale="log", xlabel="angle between two of them, degrees", title="share of pairs", xlim=(0, 180))
        axes[0, 0].set_ylim(1e-7, 3)
        axes[0, 0].set_yticks([1e-6, 1e-4, 1e-2, 1], ["0.0001 %", "0.01 %", "1 %", "100 %"])
        axes[0, 0].legend(fontsize=7, loc="upper left")
        for d, colour in ((found.d, BLUE), (GPT3_WIDTH, ORANGE)):
            fits = sorted((fit for fit in found.fits if fit.d == d), key=lambda fit: fit.angle)
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
        _by_layer(ratio, layers, [o.interference.value / o.interference_random for o in found.layers], RED,
                  "interference")  # fmt: skip
        _by_layer(ratio, layers, [o.dimension / o.dimension_random for o in found.layers], BLUE, "effective dimension")
        ratio.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
        ratio.set_title("value vectors, relative to as many random directions")
        ratio.set_ylim(bottom=0)
        ratio.legend(fontsize=7)
        _gates(axes[1, 1], gates) if gates else _unmeasured(axes[1, 1], "AND gates: give a subject of several words")
        fig.suptitle(inert(f"{found.model}: geometry of {shown.vectors:,} value vectors in {found.d} dimensions"),
                     x=0.01, ha="left")  # fmt: skip
        return save(fig, path)


def _gates(axes: Axes, gates: Gates) -> None:
    layers = range(len(gates.and_swapped))
    colours = {"and": RED, "first": SKY, "last": BLUE, "either": GREY}
    names = {
        "and": "AND: both parts needed",
        "first": "first part alone",
        "last": "last part alone",
        "either": "either",
    }
    shares = [[one.value for one in gates.shares[kind]] for kind in names]
    axes.stackplot(layers, shares, colors=[colours[kind] for kind in names], labels=list(names.values()), alpha=0.85)
    if all(one.value is not None for one in gates.and_swapped):
        axes.plot(layers, [one.value for one in gates.and_swapped], color="black", linewidth=1.2,
                  label="AND, this pair only")  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_xlim(0, max(1, len(layers) - 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")
    axes.set_title(f"what the {gates.strongest} strongest neurons answer to ({gates.facts} subjects)")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)


# ---------------------------------------------------------------- accounting


def accounting_figure(path: str | Path, found: Accounting) -> Path:
    """Parameters, and operations of one token, by part."""
    colours = (RED, BLUE, SKY, ORANGE, PURPLE, GREY)
    with figure(8, 2.1) as (fig, axes):
        for row, (kind, total) in enumerate((("parameters", found.parameters), ("flops", found.flops))):
            left = 0.0
            for (name, part), colour in zip(found.parts.items(), colours, strict=True):
                share = getattr(part, kind) / total
                axes.barh(row, share, left=left, color=colour, label=_NAMES[name] if not row else None, height=0.65)
                if share > 0.05:
                    axes.text(
                        left + share / 2, row, f"{share:.1%}", ha="center", va="center", color="white", fontsize=8
                    )
                left += share
        names = (f"{_short(found.parameters)} parameters", f"{_short(found.flops)} operations a token")
        axes.set_yticks([0, 1], names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)
        shape = f"{found.layers} layers, {found.d_model:,} → {found.n_neurons:,}, {found.tokens:,} tokens long"
        axes.set_title(inert(f"{found.model}: {shape}"))
        fig.legend(loc="outside lower center", ncols=6, fontsize=8)
        return save(fig, path)


# ---------------------------------------------------------------- precision


def precision_figure(path: str | Path, found: Precision) -> Path:
    """What is left at fewer bits: facts, located neurons and edits, MLPs beside attention."""
    panels = [("known", f"facts known (n = {found.facts})")]
    panels += [("found_again", f"neurons located again (n = {found.neuron_facts})")] * bool(found.neuron_facts)
    panels += [("edited", f"edits are the first choice (n = {found.edits})")] * bool(found.edits)
    with figure(3.4 * len(panels) + 0.5, 3, columns=len(panels), squeeze=False) as (fig, axes):
        for one, (name, title) in zip(axes[0], panels, strict=True):
            for part, colour in (("mlp", RED), ("attention", BLUE)):
                levels = [found.levels[0], *(level for level in found.levels if level.part == part)]
                if len(levels) > 1:
                    _levels(one, levels, name, colour, f"{_NAMES[part]} quantized")
            one.set_title(title)
            one.set_ylim(0, 1.05)
            one.yaxis.set_major_formatter(PercentFormatter(1))
            one.set_xlabel("bits of a weight")
        axes[0, 0].legend(fontsize=7, loc="lower left")
        fig.suptitle(inert(f"{found.model} at fewer bits"), x=0.01, ha="left")
        return save(fig, path)


def _levels(axes: Axes, levels: list[Level], name: str, colour: str, label: str) -> None:
    places = range(len(levels))
    _errors(axes, places, [getattr(level, name) for level in levels], colour, label)
    axes.set_xticks(places, ["full" if level.bits is None else str(level.bits) for level in levels])


# ---------------------------------------------------------------- shared


def _by_layer(axes: Axes, layers: Sequence[int], values: Sequence[float], colour: str, label: str) -> None:
    axes.plot(layers, values, color=colour, label=label, marker="." if len(layers) == 1 else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")


def _band(axes: Axes, layers: Sequence[int], values: Sequence[Estimate], colour: str, label: str) -> None:
    there = [(layer, v) for layer, v in zip(layers, values, strict=True) if v.value is not None]
    if not there:
        return
    layers, values = zip(*there, strict=True)
    _by_layer(axes, layers, [v.value for v in values], colour, label)
    if all(v.low is not None for v in values):
        axes.fill_between(layers, [v.low for v in values], [v.high for v in values], color=colour, alpha=0.2)


def _errors(axes: Axes, places: Sequence[int], values: Sequence[Estimate], colour: str, label: str) -> None:
    there = [(place, v) for place, v in zip(places, values, strict=True) if v.value is not None]
    axes.plot([p for p, _ in there], [v.value for _, v in there], color=colour, marker="o", markersize=4, label=label)
    for place, v in there:
        if v.low is not None:
            axes.plot([place, place], [v.low, v.high], color=colour, linewidth=1, alpha=0.6)


def _unmeasured(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, fontsize=8, transform=axes.transAxes)


def _positive(values: Sequence[float]) -> np.ndarray:
    """For a logarithmic axis: nothing where there is no pair."""
    values = np.array(values)
    return np.where(values > 0, values, np.nan)


def _power(y: float) -> str:
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in f"{y:.0f}")


def _percent(estimate: Estimate) -> str:
    return "" if estimate.value is None else f"{estimate.value:.0%}"


def _short(number: int) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)
