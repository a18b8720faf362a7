"""The geometry of value vectors: how many directions fit, how much they interfere, how many dimensions they use.

A layer has n_neurons value vectors (columns of its down-projection) in d_model dimensions, more than can be
orthogonal. What high dimensions offer instead (Elhage et al. 2022, "Toy Models of Superposition"):

    random unit vectors     cos² ~ Beta(1/2, (d − 1)/2), so that P(|cos| > ε) is known exactly
    Johnson-Lindenstrauss   by P(|cos| > ε) ≤ 2 exp(−d ε²/2), about exp(d ε²/4) keep every |cos| below ε
    interference of i       Σ_{j≠i} cos²(i, j), about (n − 1)/d for random directions
    effective dimension     (Σ λ)² / Σ λ², λ the eigenvalues of the second moment (participation ratio)

`fitting` uses the exact tail in place of the bound: n random directions have less than one pair that is too close on
average as long as n(n − 1)/2 · P < 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy
import torch
from torch import Tensor

from ..display.result import Record, Table
from ..errors import InputError
from ..models.adapter import Model
from ..statistics import Estimate, mean
from .and_gate import Gates

ANGLES = (89.0, 88.0, 87.0, 86.0, 85.0, 80.0, 75.0, 70.0, 60.0)
GPT3_WIDTH = 12_288
BINS = 90  # of angles between 0° and 180°


@dataclass(frozen=True)
class Fitting:
    """How many directions of `d` dimensions keep `angle` degrees between each other and each other's opposites.

    - `expected`: log10 of how many random ones have less than one pair too close on average, by the exact tail.
    - `bound`: log10 of exp(d ε²/4), the Johnson-Lindenstrauss expectation. Never below `d`, which fit at right angles.
    """

    d: int
    angle: float
    expected: float
    bound: float


@dataclass(frozen=True)
class LayerGeometry:
    """The value vectors of one layer; those of length zero are left out.

    - `vectors`: how many there are; `pairs`: of them, whose angles are counted.
    - `angles`: share of pairs by angle, `BINS` bins over 0° to 180°; `closest`: the smallest angle of any pair, of
      lines (vectors and their opposites alike). `closest_random`: where one pair of as many random directions is
      expected, `closest_bound`: the same by Johnson-Lindenstrauss, cos = 2 √(ln n / d).
    - `cosine`: mean |cos|, with its interval over vectors; `cosine_random`: the same expected of random directions.
    - `beyond`: the share of pairs with a |cos| that one random pair in a thousand exceeds.
    - `interference`: mean over vectors of Σ cos² with all others, with its interval; `interference_random`: expected of
      as many random directions.
    - `dimension`, `dimension_random`: effective dimension of the unit value vectors, and of as many random directions.
    """

    layer: int
    vectors: int
    pairs: int
    angles: tuple[float, ...]
    closest: float
    closest_random: float
    closest_bound: float
    cosine: Estimate
    cosine_random: float
    beyond: float
    interference: Estimate
    interference_random: float
    dimension: float
    dimension_random: float


@dataclass(frozen=True)
class Geometry(Record):
    """The value vectors of some layers, and what fits into their width and GPT-3's; `gates` where they were tested."""

    model: str
    d: int
    layers: tuple[LayerGeometry, ...]
    fits: tuple[Fitting, ...]
    gates: Gates | None = None

    def random_angles(self) -> list[float]:
        """The share of pairs of random directions by angle."""
        return random_angles(self.d)

    def table(self, layer: int | None = None) -> Iterator[str | Table]:
        """All layers against random directions, how many directions fit, and the gates of one layer."""
        yield f"Geometry of the value vectors of {self.model}, {self.d} dimensions"
        rows = [
            (
                shown.layer,
                *(f"{angle:.1f}°" for angle in (shown.closest, shown.closest_random)),
                *(f"{cosine:.4f}" for cosine in (shown.cosine.value, shown.cosine_random)),
                *(f"{size:.2f}" for size in (shown.interference.value, shown.interference_random)),
                *(f"{dimension:.0f}" for dimension in (shown.dimension, shown.dimension_random)),
            )
            for shown in self.layers
        ]
        columns = ("closest", "random", "mean |cos|", "random", "interference", "random", "dimension", "random")
        yield Table(("layer", *columns), rows)
        yield ""
        yield "How many directions fit: random ones with less than one pair closer, and e^(d cos²/4)"
        widths = list(dict.fromkeys(fit.d for fit in self.fits))
        by_angle: dict[float, dict[int, Fitting]] = {}
        for fit in self.fits:
            by_angle.setdefault(fit.angle, {})[fit.d] = fit
        heads = ("angle", *(name for d in widths for name in (f"d = {d}", "bound")))
        numbers = {
            angle: [n for d in widths for n in (fits[d].expected, fits[d].bound)] for angle, fits in by_angle.items()
        }
        yield Table(heads, [(f"{angle:g}°", *map(_power, row)) for angle, row in numbers.items()])
        yield ""
        if self.gates is None:
            yield "No AND-gate test: no subject has two words or more."
        else:
            yield from self.gates.table(self.layers[len(self.layers) // 2].layer if layer is None else layer)

    def figure(self, path: str | Path, layer: int | None = None) -> Path:
        """Draw angles of one layer, by default the middle one, what fits, all layers against chance, and the gates."""
        from .figure import geometry_figure

        return geometry_figure(path, self, layer)


def geometry(model: Model, layers: Sequence[int] | None = None, angles: Sequence[float] = ANGLES) -> Geometry:
    """The geometry of the value vectors of `layers`, all by default.

    Raises `InputError` for a layer that is none, an angle that is not above 0° and below 90°, or vectors that are all
    zero.
    """
    chosen = [model.check_layer(layer) for layer in (range(model.n_layers) if layers is None else layers)]
    fits = tuple(fitting(d, angle) for d in dict.fromkeys((model.d_model, GPT3_WIDTH)) for angle in angles)
    by_layer = tuple(_layer(layer, model.down_weight(layer).detach().float().T, model.name) for layer in chosen)
    return Geometry(model.name, model.d_model, by_layer, fits)


def fitting(d: int, angle: float) -> Fitting:
    """How many directions fit into `d` dimensions at `angle` degrees and more. Raises `InputError` for other angles."""
    if not isinstance(d, int) or d < 2:
        raise InputError(f"{d!r} dimensions are given, expected 2 or more")
    if not isinstance(angle, int | float) or not 0 < angle < 90:
        raise InputError(f"the angle is {angle!r}, expected degrees above 0 and below 90")
    epsilon = math.cos(math.radians(angle))
    # n(n − 1)/2 · P = 1, solved for n: (1 + √(1 + 8/P))/2, about √(2/P) where P is beyond floating point
    log_p = log_tail(d, epsilon)
    log_n = math.log((1 + math.sqrt(1 + 8 * math.exp(-log_p))) / 2) if log_p > -600 else (math.log(2) - log_p) / 2
    least = math.log10(d)
    return Fitting(d, angle, max(log_n / math.log(10), least), max(d * epsilon**2 / 4 / math.log(10), least))


def log_tail(d: int, epsilon: float) -> float:
    """log P(|cos| > ε) of two random directions in `d` dimensions, exact also where P is below any float.

    P = I_x(a, 1/2) with a = (d − 1)/2 and x = 1 − ε², as x^a √(1 − x) / (a B(a, 1/2)) · ₂F₁(a + 1/2, 1; a + 1; x).
    """
    a, x = (d - 1) / 2, 1 - epsilon**2
    log = float(scipy.stats.beta.logsf(epsilon**2, 0.5, a))
    if log > -600:
        return log
    series = scipy.special.hyp2f1(a + 0.5, 1, a + 1, x)
    return float(a * math.log(x) + math.log(epsilon) - math.log(a) - scipy.special.betaln(a, 0.5) + math.log(series))


def effective_dimension(rows: Tensor) -> float:
    """The participation ratio (Σ λ)² / Σ λ² of the second moment of `rows` (n, d): between 1 and min(n, d).

    Not centred: a direction that all rows share counts as one dimension. With few rows it is lower than with many.
    """
    rows = rows.double()
    gram = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    trace, squares = gram.trace().item(), gram.square().sum().item()
    return trace**2 / squares if squares else 0.0


def _layer(layer: int, values: Tensor, name: str) -> LayerGeometry:
    norms = values.norm(dim=1)
    unit = values[norms > 0] / norms[norms > 0, None]
    n, d = unit.shape
    if n < 2:
        raise InputError(f"layer {layer} of {name} has {n} value vectors that are not zero, expected two or more")
    counts = np.zeros(BINS)
    squares, sizes, close, far = [], [], 0.0, 0
    limit = scipy.special.betaincinv(0.5, (d - 1) / 2, 1 - 1e-3) ** 0.5
    for start in range(0, n, 2048):  # rows of cosines at a time
        cosines = (unit[start : start + 2048] @ unit.T).clamp(-1, 1)
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = 0
        squares.append(cosines.square().sum(1))
        sizes.append(cosines.abs().sum(1) / (n - 1))
        close = max(close, cosines.abs().max().item())
        far += int((cosines.abs() > limit).sum())
        cosines[rows, start + rows] = 2  # no angle: left out of the histogram
        degrees = torch.rad2deg(torch.acos(cosines[cosines <= 1]))
        counts += torch.histc(degrees, BINS, 0, 180).double().cpu().numpy()
    interference = torch.cat(squares).double().cpu().numpy()
    return LayerGeometry(
        layer=layer,
        vectors=n,
        pairs=n * (n - 1) // 2,
        angles=tuple((counts / (n * (n - 1))).tolist()),
        closest=_degrees(close),
        closest_random=_degrees(scipy.special.betaincinv(0.5, (d - 1) / 2, 1 - 2 / (n * (n - 1))) ** 0.5),
        closest_bound=_degrees(min(1.0, 2 * math.sqrt(math.log(n) / d))),
        cosine=mean(torch.cat(sizes).double().cpu().numpy()),
        cosine_random=math.exp(scipy.special.gammaln(d / 2) - scipy.special.gammaln((d + 1) / 2)) / math.sqrt(math.pi),
        beyond=far / (n * (n - 1)),
        interference=mean(interference),
        interference_random=(n - 1) / d,
        dimension=effective_dimension(unit),
        dimension_random=n**2 / (n + n * (n - 1) / d),
    )


def _power(exponent: float) -> str:
    """10 to the `exponent`: the number while it is short."""
    return f"{10**exponent:,.0f}" if exponent < 7 else f"10^{exponent:.1f}"


def _degrees(cosine: float) -> float:
    return math.degrees(math.acos(cosine))


def random_angles(d: int) -> list[float]:
    """The share of pairs of random directions in each of the `BINS` bins of angles."""
    edges = np.cos(np.radians(np.linspace(0, 180, BINS + 1)))
    below = 0.5 + 0.5 * np.sign(edges) * scipy.special.betainc(0.5, (d - 1) / 2, edges**2)
    return (below[:-1] - below[1:]).tolist()
