"""The neurons of one fact as bars, and what they do to the answer beside what random neurons do."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from ..display.colours import RANDOM
from ..display.drawing import BLUE, GREY, ORANGE, RED, figure, save, shorten
from ..writing.inert import inert

_KINDS = {"fact": BLUE, "relation": ORANGE, "answer": RED}  # all others are grey
_CONTROLS = (("", "these neurons"), ("control_", "random, as active"), ("layer_control_", "random, same layers"))


def located_figure(path: str | Path, located, proof=None) -> Path:
    """Draw a `NeuronSet` and, where the model gives the answer, its `Proof`.

    Left: a bar a neuron, strongest or first taken on top: its score, and with a causal selection the joint effect of
    all down to it. Right: the change of the answer's probability with 95 % intervals; the band is that of random sets.
    """
    shown = proof if proof is not None and proof.recalled else None
    effects = shown is not None and all(n.suppress is not None for n in located.neurons)
    columns = 1 + effects + (shown is not None)
    height = 1.6 + 0.24 * max(len(located.neurons), 6)
    with figure(0.6 + 3.6 * columns, height, columns=columns, squeeze=False) as (fig, axes):
        left, *others = axes[0]
        _scores(left, located)
        if effects:
            _joint(others[0], located)
        if shown is not None:
            _proof(others[-1], shown)
        title = f"{located.prompt} → {located.target}: p = {located.probability:.3f}"
        fig.suptitle(shorten(title, 34 * columns + 12), x=0.01, ha="left")
        return save(fig, path)


def _scores(axes: Axes, located) -> None:
    neurons = located.neurons
    places = range(len(neurons))
    axes.barh(places, [n.score for n in neurons], color=[_KINDS.get(n.kind, GREY) for n in neurons])
    names = [f"{n.layer}/{n.index}" + (f"  {n.kind}" if n.kind else "") for n in neurons]
    axes.set_yticks(places, [inert(name) for name in names])
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel(f"score by {located.method}")
    given = located.rank in (None, 1)
    axes.set_title("located neurons" if given else f"not what the model says, but its choice number {located.rank}")


def _joint(axes: Axes, located) -> None:
    places = range(len(located.neurons))
    for what, colour in (("suppress", RED), ("amplify", BLUE)):
        axes.plot([100 * getattr(n, what) for n in located.neurons], places, marker="o", color=colour, label=what)
    axes.set_yticks(places, [f"{place + 1}" for place in places])
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("change on the locating prompts, %")
    axes.set_title("the first n together")
    axes.legend(fontsize="small")


def _proof(axes: Axes, proof) -> None:
    rows = [(what, *control) for what in ("suppress", "amplify") for control in _CONTROLS]
    for place, (what, prefix, _) in enumerate(rows):
        estimate = getattr(proof, prefix + what)
        if estimate.value is None:
            continue
        colour = RANDOM if prefix else {"suppress": RED, "amplify": BLUE}[what]
        axes.plot(100 * estimate.value, place, marker="o", color=colour)
        if estimate.low is not None:
            axes.plot([100 * estimate.low, 100 * estimate.high], [place, place], color=colour)
    bands = [getattr(proof, f"control_{what}") for what in ("suppress", "amplify")]
    ends = [100 * end for band in bands for end in (band.low, band.high) if end is not None]
    if ends:
        axes.axvspan(min(ends), max(ends), color=RANDOM, alpha=0.15, linewidth=0)
    axes.set_yticks(range(len(rows)), [f"{what}: {name}" for what, _, name in rows])
    axes.invert_yaxis()
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("change of the answer’s probability, %")
    axes.set_title(f"{proof.suppress.n} held-out prompts" if proof.heldout else "the locating prompt")
