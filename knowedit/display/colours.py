"""One colour for each thing, wherever it is drawn: in figures, on the page of one fact, and in the dashboard.

`THINGS` are told apart by the colour-blind too, and stand out from the paper by 3 : 1 at least, on light and dark.
"""

from __future__ import annotations

# (on light paper, on dark)
THINGS = {
    "mlp": ("#D55E00", "#F2A365"),
    "attention": ("#0072B2", "#78BDEC"),
    "old": ("#AA4499", "#E08FD0"),  # the answer before an edit
    "new": ("#00795C", "#6CCBA6"),  # the answer that an edit is to give
    "random": ("#767676", "#A9A59B"),  # what chance does
}
PAPER = {
    "paper": ("#fbfaf7", "#14161a"),
    "raised": ("#f3f1eb", "#1c1f24"),
    "ink": ("#1d1c1a", "#e8e5de"),
    "soft": ("#5a5751", "#a9a59b"),
    "line": ("#dfdbd1", "#33373e"),
    "faint": ("#ece8df", "#262a30"),
    "mark": ("#fdf0cf", "#3a3220"),
    "one": ("#0b5a8c", "#78bdec"),
    "two": ("#a8450a", "#f2a365"),
    "three": ("#2f6b3a", "#86c58f"),
}
MLP, ATTENTION, OLD, NEW, RANDOM = (light for light, _ in THINGS.values())


def variables(dark: bool) -> str:
    """The colours as CSS variables."""
    return " ".join(f"--{name}: {pair[dark]};" for name, pair in (PAPER | THINGS).items())
