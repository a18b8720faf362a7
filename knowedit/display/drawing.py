"""What all figures share: one look, text that is taken literally, and files written whole or not at all.

    with figure(7, 3) as (fig, axes):
        axes.plot(values, color=BLUE)
        axes.set_title(inert(prompt))
        save(fig, path)

Text from outside goes through `inert`; mathtext is off, so a `$` is a dollar sign. The same figure gives the same
bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from ..errors import InputError
from ..files import check_file, write_bytes
from ..writing.inert import inert

FORMATS = ("png", "svg", "pdf")
# distinguishable in print and by the colour-blind (Okabe and Ito)
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#767676",
)
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
DIVERGING, SEQUENTIAL = "RdBu_r", "Blues"

_LOOK = {
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "figure.constrained_layout.use": True,
    "figure.dpi": 150,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "knowedit",
    "text.parse_math": False,
}


@contextmanager
def figure(width: float = 7, height: float = 3, rows: int = 1, columns: int = 1, **options) -> Iterator[tuple]:
    """A figure of `width` × `height` inches and its axes (one, or an array of them), in knowedit's look.

    Everything that is drawn and saved inside the context looks alike. No window is ever opened.
    """
    with matplotlib.rc_context(_LOOK):
        fig = Figure(figsize=(width, height))
        yield fig, fig.subplots(rows, columns, **options)


def save(fig: Figure, path: str | Path) -> Path:
    """Write a figure as its suffix says, png, svg or pdf. Raises `InputError` for others, and where it cannot."""
    path = check_path(path)
    write_bytes(path, _rendered(fig, path.suffix[1:].lower()))
    return path


def check_path(path: str | Path) -> Path:
    """`path` with `~` expanded. Raises `InputError` for a suffix that no figure has, and where no file can be."""
    path = Path(path)
    if path.suffix[1:].lower() not in FORMATS:
        raise InputError(f"the figure {str(path)!r} ends in {path.suffix!r}, expected .png, .svg or .pdf")
    return check_file(path)


def svg(fig: Figure) -> str:
    """The figure as an `<svg>` element, to stand inside a page."""
    text = _rendered(fig, "svg").decode()
    return text[text.index("<svg") :]


def _rendered(fig: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"CreationDate": None} if kind == "pdf" else {}
    with matplotlib.rc_context(_LOOK):
        fig.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def drawable(text: object) -> str:
    """`text`, inert, with characters that the figures' font lacks spelled out."""
    font = get_font(findfont("DejaVu Sans"))
    return "".join(c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode() for c in inert(text))


def shorten(text: str, most: int) -> str:
    """`text`, drawable, in `most` letters at most."""
    text = drawable(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def heat_maps(
    axes: Sequence[Axes], maps: Sequence, *, rows: Sequence[str], label: str, white: tuple[str, float],
    mark: tuple[str, float],
) -> None:  # fmt: skip
    """Heat maps (rows, columns) on one scale around `white`, with one colour bar. The bar names the values of `white`
    and of `mark`, each given as (name, value)."""
    centre, marked = white[1], mark[1]
    lowest, highest = min(centre, marked, *map(np.nanmin, maps)), max(centre, marked, *map(np.nanmax, maps))
    reach = max(centre - lowest, highest - centre) or 1.0
    for ax, values in zip(axes, maps, strict=True):
        image = ax.imshow(
            values, aspect="auto", cmap=DIVERGING, vmin=centre - reach, vmax=centre + reach, interpolation="nearest"
        )
        ax.spines[:].set_visible(False)
        ax.set_xticks(*_ticks([str(i) for i in range(values.shape[1])], 10))
        ax.set_yticks(*_ticks(rows, 40))
    bar = axes[0].figure.colorbar(image, ax=list(axes), label=label)
    if lowest < highest:
        bar.ax.set_ylim(lowest, highest)  # no colours that no value has
    if abs(marked - centre) > (highest - lowest) / 5:
        names = {centre: f"{white[0]}\n(white)", marked: mark[0]}
    else:  # so near that one name would be written over the other
        names = {centre: f"{white[0]}\n(white),\n{mark[0]}"}
    bar.ax.secondary_yaxis("left").set_yticks(list(names), list(names.values()))


def _ticks(names: Sequence[str], most: int) -> tuple[range, list[str]]:
    """At most `most` of the names, evenly, with their places."""
    step = max(1, -(-len(names) // most))
    return range(0, len(names), step), [inert(name) for name in names[::step]]
