"""Causal traces as heat maps, as in the paper: tokens down, layers across, the subject's tokens with a star.

`Trace`, `TraceAverage` and `Patched` draw themselves with these functions, so none of the three is imported here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from ...display.drawing import BLUE, GREEN, GREY, RED, SKY, figure, heat_map, save, shorten
from ...writing.inert import inert

_COLOURS = {"state": "Purples", "mlp": "Greens", "attention": "Reds"}
_LINES = {"first subject": SKY, "last subject": BLUE, "first after": GREEN, "last": RED}
_WIDTH = 4.2  # of a map
_LETTERS = 18  # of a token


def trace_figure(path: str | Path, trace) -> Path:
    """Draw all maps of one `Trace` side by side."""
    kinds = list(trace.effects)
    with figure(_WIDTH * len(kinds), _height(len(trace.tokens)), columns=len(kinds), squeeze=False) as (fig, axes):
        for ax, kind in zip(axes[0], kinds, strict=True):
            draw_trace(ax, trace, kind)
        approximate = " (approximated by gradients)" if trace.config.fast else ""
        title = f"{trace.prompt} → {trace.target}{approximate}: {trace.high:.3f} clean, {trace.low:.3f} corrupted"
        fig.suptitle(shorten(title, 30 * len(kinds) + 40), x=0.01, ha="left")
        return save(fig, path)


def draw_trace(axes: Axes, trace, kind: str) -> None:
    """One map of a trace: the target's probability with `kind` restored."""
    start, end = trace.subject_tokens
    names = [shorten(t.strip() or t, _LETTERS) + ("*" if start <= i < end else "") for i, t in enumerate(trace.tokens)]
    scores = trace.scores(kind)
    low = min(trace.low, scores.min())
    _map(axes, scores, names, kind, trace.window, label="probability", vmin=low, vmax=max(scores.max(), low + 1e-12))


def average_figure(path: str | Path, average) -> Path:
    """Draw a `TraceAverage`: a map of each kind, and below it lines with their intervals."""
    kinds = list(average.effects)
    with figure(_WIDTH * len(kinds), 5.2, rows=2, columns=len(kinds), squeeze=False) as (fig, axes):
        for column, kind in enumerate(kinds):
            classes = average.effects[kind]
            values = np.array([[e.value for e in row] for row in classes.values()])
            _map(axes[0, column], values, list(classes), kind, average.window, label="average indirect effect")
            draw_lines(axes[1, column], average, kind)
        axes[1, 0].legend(fontsize="small")
        te = average.total_effect
        title = f"{len(average.facts)} facts, {average.model}: average total effect {te.text('.3f')}"
        fig.suptitle(shorten(title, 120), x=0.01, ha="left")
        return save(fig, path)


def draw_lines(axes: Axes, average, kind: str) -> None:
    """The average indirect effect by layer at the tokens that matter most, with 95 % intervals over facts."""
    layers = range(average.n_layers)
    for name, colour in _LINES.items():
        row = average.effects[kind].get(name)
        if row is None:
            continue
        axes.plot(layers, [e.value for e in row], color=colour, label=f"{name} (n = {row[0].n})", linewidth=1.3)
        if row[0].low is not None:
            low, high = ([getattr(e, side) for e in row] for side in ("low", "high"))
            low, high = ([np.nan if v is None else v for v in side] for side in (low, high))
            axes.fill_between(layers, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.set_xlabel(_layers(kind, average.window))
    axes.set_ylabel("average indirect effect")


def patch_figure(path: str | Path, patched) -> Path:
    """Draw a `Patched` of a `grid`: (token, layer), or (layer, head), around the metric of the corrupt prompt."""
    sites = [group[0] for group in patched.sites]
    kind = sites[0].kind
    layers = 1 + max(site.layer for site in sites)
    values = np.array(patched.values)
    if kind == "head":
        values = values.reshape(layers, -1)
        rows, columns = [str(i) for i in range(layers)], [str(i) for i in range(values.shape[1])]
        names = ("layer", "head, at all tokens")
    else:
        values = values.reshape(-1, layers)
        places = [site.position for site in sites[::layers]]
        words = [[shorten(token.strip() or token, _LETTERS) for token in patched.tokens[p]] for p in places]
        rows = [clean if clean == corrupt else f"{clean} → {corrupt}" for clean, corrupt in words]
        columns, names = [str(i) for i in range(layers)], ("", f"layer whose {kind} is patched")
    title = f"{patched.prompts[0]} → {patched.target}"
    with figure(6.4, _height(len(rows))) as (fig, axes):
        heat_map(axes, values, columns=columns, rows=rows, label=inert(patched.metric), centre=patched.corrupt)
        axes.set_ylabel(names[0])
        axes.set_xlabel(names[1])
        axes.set_title(f"{shorten(title, 60)}\n{patched.clean:.3f} clean, {patched.corrupt:.3f} corrupt", color=BLUE)
        return save(fig, path)


def _map(axes: Axes, values: np.ndarray, rows: list[str], kind: str, window: int, *, label: str, **limits) -> None:
    heat_map(axes, values, columns=[str(i) for i in range(values.shape[1])], rows=rows, label=label, **limits)
    axes.images[0].set_cmap(_COLOURS.get(kind, "Purples"))
    layers = range(0, values.shape[1], max(1, -(-values.shape[1] // 10)))
    axes.set_xticks(layers, [str(layer) for layer in layers], rotation=0)
    axes.set_xlabel(_layers(kind, window))
    axes.set_title({"state": "state", "mlp": "MLP", "attention": "attention"}.get(kind, kind) + " restored")


def _layers(kind: str, window: int) -> str:
    return f"centre of {window} layers" if kind in ("mlp", "attention") else "layer"


def _height(rows: int) -> float:
    return 1.6 + 0.19 * min(rows, 40)
