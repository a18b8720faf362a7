"""Rules by name for the integral over the path: points in [0, 1] and weights.

`left`, `right`, `midpoint`, `trapezoid` and `gauss-legendre` are the textbook rules. Two more reproduce published
code exactly: `dai` is the left Riemann sum of the knowledge-neurons paper's code (α = k/m, k = 0 … m−1), and
`eleuther` is that of the PyPI package `knowledge-neurons`, which weighs both ends of an inclusive grid fully.
"""

from __future__ import annotations

import numpy as np

from ..errors import InputError, did_you_mean

RULES = ("gauss-legendre", "midpoint", "trapezoid", "left", "right", "dai", "eleuther")


def rule(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` points in [0, 1] and their weights, as float64 arrays; raises `InputError` for an unknown rule or n < 1."""
    if name not in RULES:
        raise InputError(f"no quadrature is called {name!r}{did_you_mean(name, RULES)}; there are {', '.join(RULES)}")
    if not isinstance(n, int) or n < (2 if name in ("trapezoid", "eleuther") else 1):
        raise InputError(f"{n!r} nodes are too few for the {name} rule; give at least 2 (1 for the others)")
    steps = np.arange(n)
    equal = np.full(n, 1 / n)
    if name == "gauss-legendre":
        x, w = np.polynomial.legendre.leggauss(n)
        return (x + 1) / 2, w / 2
    if name in ("left", "dai"):
        return steps / n, equal
    if name == "right":
        return (steps + 1) / n, equal
    if name == "midpoint":
        return (steps + 0.5) / n, equal
    if name == "eleuther":
        return np.linspace(0, 1, n), equal
    weights = np.full(n, 1 / (n - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights
