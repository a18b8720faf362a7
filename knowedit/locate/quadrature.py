"""Integrals along the paths of all layers: by a fixed number of points, or by as many as their own check asks for.

`rule` gives the points and weights of a quadrature by name. `left`, `right`, `midpoint`, `trapezoid` and
`gauss-legendre` are the textbook rules. Two more reproduce published code exactly: `dai` is the left Riemann sum of the
knowledge-neurons paper's code (α = k/m, k = 0 … m−1), and `eleuther` is that of the PyPI package `knowledge-neurons`,
which weighs both ends of an inclusive grid fully. `auto` is Gauss-Legendre, in another variable where a norm stands
behind the MLP.

With such a norm F changes around its corner c (`models/passes/corner.py`) and hardly anywhere else, while the shares of
the neurons go on changing: ∂F/∂a ~ 1/√(α² + c²). In τ = asinh(α / c), which runs like α below the corner and like log α
above it, both are smooth; F is done with at τ ≈ 3, and the rest up to asinh(1/c) ≈ 10 takes few points. So `auto` has

    α = c sinh(sinh(k x)),      k = asinh(asinh(1/c)),      0 ≤ x ≤ 1

with x at the points of the rule; α = 0 and α = 1 are the ends as they are.

The scores of a piece of a path have to add up to the difference of F between its ends; what is missing is its *gap*.
`refine` splits the pieces with the largest gaps until each layer is within a tolerance. A piece is replaced only by
parts that are evaluated. It is left as it is where its gap is the rounding of F, or splitting has not lowered it. A
budget of gradients bounds the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, did_you_mean
from ..models.passes.corner import NORMALISED, corners
from .integration_path import IntegrationPaths, Node

RULES = ("auto", "gauss-legendre", "midpoint", "trapezoid", "left", "right", "dai", "eleuther")


def rule(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` points in [0, 1] and their weights, as float64 arrays; raises `InputError` for an unknown rule or n < 1."""
    if name not in RULES:
        raise InputError(f"no quadrature is called {name!r}{did_you_mean(name, RULES)}; there are {', '.join(RULES)}")
    if not isinstance(n, int) or n < (2 if name in ("trapezoid", "eleuther") else 1):
        raise InputError(f"{n!r} nodes are too few for the {name} rule; give at least 2 (1 for the others)")
    steps = np.arange(n)
    equal = np.full(n, 1 / n)
    if name in ("auto", "gauss-legendre"):
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


START = 6  # Gauss-Legendre points that a piece has under `refine`
STALLS = 2  # splits in a row that may leave the gap as it is: an oscillation may look better before it is resolved
FLOOR = 4  # roundings of F: a smaller gap says nothing
ENDS = ("nodes", "tolerance", "rounding", "budget")


@dataclass(frozen=True)
class Integral:
    """The scores of all layers for one prompt and what they cost.

    - `scores`: (n_layers, n_neurons). `baseline_values`: F(baseline) by layer. `nodes`: gradients by layer.
    - `ended`: what ended the search, the worst of `ENDS`: the number of points that was asked for, the tolerance,
      rounding that splitting does not lower, or the budget.
    """

    scores: Tensor
    baseline_values: list[float]
    nodes: list[int]
    ended: str


@dataclass
class Piece:
    """An interval of one layer's path with F at its ends and, once evaluated, its part of the scores and its gap.

    `stalls` counts the splits in a row, up to this piece, that have not lowered the gap.
    """

    prompt: int
    layer: int
    lo: float
    hi: float
    f_lo: float | None
    f_hi: float | None
    stalls: int = 0
    scores: Tensor | None = None
    gap: float = 0.0

    def split(self, tolerance: float) -> list[Piece]:
        """2, 4 or 8 equal parts, the more the larger the gap: fewer rounds of larger batches, less thrown away."""
        parts = 2 if self.gap < 2 * tolerance else 4 if self.gap < 16 * tolerance else 8
        ends = [self.lo + (self.hi - self.lo) * i / parts for i in range(parts + 1)]
        inner = [None] * (parts - 1)
        values = [self.f_lo, *inner, self.f_hi]
        return [Piece(self.prompt, self.layer, ends[i], ends[i + 1], values[i], values[i + 1]) for i in range(parts)]


def integrate(paths: IntegrationPaths, quadrature: str, nodes: int) -> list[Integral]:
    """The integrals of each prompt by `nodes` points of a rule in every layer."""
    searches = _searches(_Points(paths, quadrature, nodes))
    return [search.integral("nodes") for search in searches]


def refine(
    paths: IntegrationPaths, tolerance_of: Callable[[float], float], budget: int, quadrature: str = "auto"
) -> list[Integral]:
    """The integrals of each prompt by Gauss-Legendre, by at most `budget` gradients a prompt.

    The gap of each layer is within the prompt's tolerance, which is that of its F. Pieces of all prompts are evaluated
    together. The first points of every layer are evaluated whatever the budget is.
    """
    points = _Points(paths, quadrature, START)
    floor = FLOOR * torch.finfo(paths.model.dtype).eps
    searches = _searches(points)
    tolerances = [tolerance_of(f) for f in paths.clean]
    ended = ["tolerance"] * len(searches)
    while True:
        splits = {}
        for prompt, (search, tolerance) in enumerate(zip(searches, tolerances, strict=True)):
            open_pieces = [piece for layer in search.pieces for piece in _open(layer, tolerance, floor)]
            splits[prompt] = _affordable(open_pieces, tolerance, (budget - sum(search.spent)) // START)
            ended[prompt] = "budget" if open_pieces and not splits[prompt] else "tolerance"
        parts = [part for split in splits.values() for _, pieces in split for part in pieces]
        if not parts:
            break
        points.evaluate(parts)
        for prompt, split in splits.items():
            for piece, pieces in split:
                searches[prompt].replace(piece, pieces)
    for prompt, (search, tolerance) in enumerate(zip(searches, tolerances, strict=True)):
        if ended[prompt] == "tolerance" and any(_gap(layer) > tolerance for layer in search.pieces):
            ended[prompt] = "rounding"
    return [search.integral(end) for search, end in zip(searches, ended, strict=True)]


@dataclass
class _Search:
    """The pieces of the paths of one prompt by layer, and the gradients that were spent on each layer."""

    pieces: list[list[Piece]]
    spent: list[int]

    def replace(self, piece: Piece, parts: Sequence[Piece]) -> None:
        """Put the evaluated parts of a piece in its place."""
        lowered = sum(part.gap for part in parts) < piece.gap
        for part in parts:
            part.stalls = 0 if lowered else piece.stalls + 1
        layer = self.pieces[piece.layer]
        layer[:] = [other for other in layer if other is not piece] + list(parts)
        self.spent[piece.layer] += START * len(parts)

    def integral(self, ended: str) -> Integral:
        """What the pieces add up to."""
        scores = torch.stack([sum(piece.scores for piece in layer) for layer in self.pieces])
        baseline_values = [next(piece.f_lo for piece in layer if piece.lo == 0) for layer in self.pieces]
        return Integral(scores, baseline_values, self.spent, ended)


def _searches(points: _Points) -> list[_Search]:
    """One piece for each layer of each prompt: its whole path."""
    layers, prompts = range(points.paths.model.n_layers), range(len(points.paths.readings))
    pieces = [[Piece(prompt, layer, 0.0, 1.0, None, None) for layer in layers] for prompt in prompts]
    points.evaluate([piece for search in pieces for piece in search])
    return [_Search([[piece] for piece in search], [len(points.points)] * len(layers)) for search in pieces]


def _gap(pieces: Sequence[Piece]) -> float:
    """The largest gap that the pieces of a layer can have together."""
    return sum(piece.gap for piece in pieces)


def _open(pieces: Sequence[Piece], tolerance: float, floor: float) -> list[Piece]:
    """The pieces of one layer that are to be split: where the gap sits, not those below their share of `tolerance`."""
    if _gap(pieces) <= tolerance:
        return []
    share = tolerance / (2 * len(pieces))
    return [
        piece
        for piece in pieces
        if piece.gap > max(share, floor * max(abs(piece.f_lo), abs(piece.f_hi))) and piece.stalls < STALLS
    ]


def _affordable(pieces: Sequence[Piece], tolerance: float, most: int) -> list[tuple[Piece, list[Piece]]]:
    """The parts of as many of `pieces` as `most` parts in all allow, the largest gaps first."""
    splits = []
    for piece in sorted(pieces, key=lambda piece: -piece.gap):
        parts = piece.split(tolerance)
        if len(parts) > most:
            break
        most -= len(parts)
        splits.append((piece, parts))
    return splits


class _Points:
    """Where on the paths a piece is evaluated. Pieces lie in [0, 1]: x is α itself, or what gives it with a norm."""

    def __init__(self, paths: IntegrationPaths, quadrature: str, nodes: int):
        self.paths = paths
        self.points, self.weights = (values.tolist() for values in rule(quadrature, nodes))
        n_layers = paths.model.n_layers
        self.corners = [[math.inf] * len(paths.readings)] * n_layers
        if quadrature == "auto" and paths.model.normalised and not paths.baseline.any():
            self.corners = [corners(paths.batch, layer, paths.positions.tolist()) for layer in range(n_layers)]

    def at(self, piece: Piece, x: float) -> tuple[float, float]:
        """α and dα/dx."""
        c = self.corners[piece.layer][piece.prompt]
        if x == 0 or c >= NORMALISED:
            return x, 1.0
        k = math.asinh(math.asinh(1 / c))
        tau = math.sinh(k * x)
        return c * math.sinh(tau), c * k * math.cosh(k * x) * math.cosh(tau)

    def evaluate(self, pieces: Sequence[Piece]) -> None:
        """Fill in the scores and gaps of `pieces`, and F at those of their ends that are not known yet."""
        ends: dict[tuple[int, int, float], Node] = {}
        nodes: list[Node] = []
        for i, s in enumerate(pieces):
            width = s.hi - s.lo
            for point, weight in zip(self.points, self.weights, strict=True):
                alpha, slope = self.at(s, s.lo + width * point)
                nodes.append(Node(s.layer, s.prompt, i, alpha, width * weight * slope))
            for x, known in ((s.lo, s.f_lo), (s.hi, s.f_hi)):
                if known is None and x < 1:  # where every path ends, F is that of the unaltered prompt
                    ends.setdefault((s.layer, s.prompt, x), Node(s.layer, s.prompt, i, self.at(s, x)[0]))
        values, scores, sums = self.paths.integrate(nodes + list(ends.values()))
        for i, s in enumerate(pieces):
            s.f_lo = values[ends[s.layer, s.prompt, s.lo]] if s.f_lo is None else s.f_lo
            if s.f_hi is None:
                s.f_hi = self.paths.clean[s.prompt] if s.hi == 1 else values[ends[s.layer, s.prompt, s.hi]]
            s.scores = scores[i]
            s.gap = abs(sums[i] - (s.f_hi - s.f_lo))
