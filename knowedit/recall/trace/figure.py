"""Causal traces as heat maps, as in the paper: tokens down, layers across, the subject's tokens with a star.

`Trace`, `TraceAverage` and `Patched` draw themselves with these functions, so none of the three is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from ...display.drawing import BLUE, GREEN, GREY, RED, SKY, figure, heat_maps, save, shorten
from ...writing.counts import number_of
from ...writing.inert import inert

_LINES = {"first subject": SKY, "last subject": BLUE, "first after": GREEN, "last": RED}
_WIDTH, _BAR = 4.0, 1.2  # of a map, and of the colour bar
_LETTERS = 18  # of a token


def trace_figure(path: str | Path, trace) -> Path:
    """Draw all maps of one `Trace` side by side."""
    n = len(trace.effects)
    size = (_WIDTH * n + _BAR, _height(len(trace.tokens)))
    with figure(*size, columns=n, squeeze=False, sharey="row") as (fig, axes):
        draw_trace(axes[0], trace)
        said = f"{trace.high:.3f} clean, {trace.low:.3f} corrupted"
        said += " (approximated by gradients)" if trace.config.fast else ""
        title = f"{trace.prompt} → {trace.target}"
        title += "" if trace.says is None else f" (the model says {trace.says!r})"
        fig.suptitle(f"{shorten(title, 40 * n + 20)}\n{said}", x=0.01, ha="left")
        return save(fig, path)


def draw_trace(axes: Sequence[Axes], trace) -> None:
    """The maps of a trace, one on each of `axes`: the target's probability with something restored."""
    start, end = trace.subject_tokens
    names = [shorten(t.strip() or t, _LETTERS) + ("*" if start <= i < end else "") for i, t in enumerate(trace.tokens)]
    maps = {kind: trace.scores(kind) for kind in trace.effects}
    _maps(axes, maps, names, trace.window, label="probability", white=trace.low, mark=trace.high)


def average_figure(path: str | Path, average) -> Path:
    """Draw a `TraceAverage`: a map of each kind, and below it lines with their intervals."""
    kinds = list(average.effects)
    with figure(_WIDTH * len(kinds) + _BAR, 5.2, rows=2, columns=len(kinds), squeeze=False, sharey="row") as (
        fig,
        axes,
    ):
        maps = {
            kind: np.array([[e.value for e in row] for row in classes.values()])
            for kind, classes in average.effects.items()
        }
        te = average.total_effect
        _maps(
            axes[0], maps, list(average.effects[kinds[0]]), average.window, label="average indirect effect",
            white=0.0, mark=te.value,
        )  # fmt: skip
        for ax, kind in zip(axes[1], kinds, strict=True):
            draw_lines(ax, average, kind)
        axes[1, 0].legend(fontsize="small")
        title = f"{number_of(len(average.facts), 'fact')}, {average.model}: average total effect {te.text('.3f')}"
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
        rows, names = [str(i) for i in range(layers)], ("layer", "head, at all tokens")
    else:
        values = values.reshape(-1, layers)
        places = [site.position for site in sites[::layers]]
        words = [[shorten(token.strip() or token, _LETTERS) for token in patched.tokens[p]] for p in places]
        rows = [clean if clean == corrupt else f"{clean} → {corrupt}" for clean, corrupt in words]
        names = ("", f"layer whose {kind} is patched")
    title = f"{patched.prompts[0]} → {patched.target}"
    with figure(6.4, _height(len(rows))) as (fig, axes):
        heat_maps(
            [axes], [values], rows=rows, label=inert(patched.metric),
            white=("corrupt", patched.corrupt), mark=("clean", patched.clean),
        )  # fmt: skip
        axes.set_ylabel(names[0])
        axes.set_xlabel(names[1])
        axes.set_title(f"{shorten(title, 60)}\n{patched.clean:.3f} clean, {patched.corrupt:.3f} corrupt", color=BLUE)
        return save(fig, path)


def _maps(
    axes: Sequence[Axes], maps: dict[str, np.ndarray], rows: list[str], window: int, *, label: str, white: float,
    mark: float,
) -> None:  # fmt: skip
    """A map of each kind on one scale: white is the corrupted run, the clean one is marked."""
    heat_maps(axes, list(maps.values()), rows=rows, label=label, white=("corrupted", white), mark=("clean", mark))
    for ax, kind in zip(axes, maps, strict=True):
        ax.set_xlabel(_layers(kind, window))
        ax.set_title(f"{kind.replace('mlp', 'MLP')} restored")


def _layers(kind: str, window: int) -> str:
    return f"centre of {number_of(window, 'layer')}" if kind in ("mlp", "attention") else "layer"


def _height(rows: int) -> float:
    return 1.8 + 0.19 * min(rows, 40)
