"""Integrated gradients over the neurons of every layer.

The score of neuron i in layer l for a target is (Dai et al. 2022, "Knowledge Neurons in Pretrained Transformers",
equation 4, with any quadrature and baseline)

    score_i = (a_i − b_i) · Σ_k w_k ∂F(b + α_k (a − b)) / ∂a_i

along the straight path from a baseline b (zero by default) to the layer's neurons a, at the read position, all
neurons of the layer together and the other layers free. F is the target's probability by default.

Completeness (Sundararajan et al. 2017): the scores of a layer add up to F(a) − F(b). What the quadrature misses of
that is its *gap*, which every result carries. `nodes="auto"` splits intervals until each layer's gap is small.

Weights in half precision are taken as float32 for as long as it takes: F rounded to 8 bits has no gradient to speak of.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor

from ..errors import InputError, did_you_mean
from ..models.adapter import Model
from ..models.passes.batches import halving
from ..models.passes.float32 import in_float32
from ..models.passes.objective import KINDS, Objective
from ..prompts import Prompt, Query
from .integration_path import BASELINES, IntegrationPaths, Reading, integration_paths
from .quadrature import ENDS, RULES, Integral, integrate, refine, rule

ENGINES = ("sweep", "captum")
TOGETHER = 32  # prompts and target tokens whose paths are laid at once
INCOMPLETE = 0.05  # of F: a layer whose scores miss more is warned of, and `nodes="auto"` goes on
UNLIKELY = 1e-3  # a probability that is less counts as this much there: the model does not give such an answer at all


@dataclass(frozen=True)
class AttributionConfig:
    """How to integrate.

    - `of`: the F that is attributed: `probability`, `log_probability`, `logit`, or `logit_difference` to `foil`.
    - `quadrature`: a rule of `quadrature.RULES`; `nodes`: points a layer, or `"auto"`: Gauss-Legendre, refined where
      the layer's gap exceeds `tolerance`, in units of F, or `INCOMPLETE` of a probability F (of `UNLIKELY` at least).
    - `budget`: the gradients that `"auto"` may spend, a layer on average, for each token of the target.
    - `baseline`: `"zero"`, `"mean"` (over built-in prompts), a tensor (n_layers, n_neurons) such as `mean_activation`
      gives, or where a fact is located `"patch"`: the same prompt about another subject (`proof/ablation.py`).
    - `position`: `"read"`, `"lookup"`, `"both"` scaled together, or a token index of the prompt.
    - `joint`: for targets of several tokens, scale all read positions together and attribute the product of the
      conditional probabilities; otherwise each token is attributed at its own read position and scores are averaged.
    - `row_limit`: row-layers alive at once; None derives it from the size of the weights.
    - `engine`: `sweep`, or `captum` as a slow reference.
    """

    of: str = "probability"
    foil: str | None = None
    quadrature: str = "auto"
    nodes: int | str = "auto"
    tolerance: float = 1e-3
    budget: int = 512
    baseline: str | Tensor = "zero"
    position: str | int = "read"
    joint: bool = False
    row_limit: int | None = None
    engine: str = "sweep"

    def __post_init__(self):
        for name, value, known in (
            ("target function", self.of, KINDS),
            ("quadrature", self.quadrature, RULES),
            ("engine", self.engine, ENGINES),
        ):
            if value not in known:
                raise InputError(
                    f"no {name} is called {value!r}{did_you_mean(str(value), known)}; there are {', '.join(known)}"
                )
        if self.nodes == "auto":
            if self.quadrature not in ("auto", "gauss-legendre"):
                raise InputError(
                    f"nodes 'auto' refines gauss-legendre only; give a number of nodes for {self.quadrature}"
                )
        else:
            rule(self.quadrature, cast(int, self.nodes))
        if not isinstance(self.tolerance, int | float) or not 0 < self.tolerance < float("inf"):
            raise InputError(f"the tolerance is {self.tolerance!r}, expected a positive gap such as 1e-3")
        if not isinstance(self.budget, int) or self.budget < 1:
            raise InputError(f"the budget is {self.budget!r}, expected a number of gradients a layer such as 512")
        if self.row_limit is not None and (not isinstance(self.row_limit, int) or self.row_limit < 1):
            raise InputError(f"the row limit is {self.row_limit!r}, expected at least 1 row-layer")
        if not torch.is_tensor(self.baseline) and self.baseline not in BASELINES:
            raise InputError(
                f"the baseline is {self.baseline!r}, expected 'zero', 'mean', 'patch' or a tensor as `mean_activation` "
                "gives it"
            )
        if self.of != "logit_difference" and self.foil is not None:
            raise InputError(f"a foil is what a logit_difference compares with, {self.of} has none; leave it out")
        if self.of == "logit_difference" and self.foil is None:
            raise InputError("a logit difference needs a foil: the answer that the target is compared with")

    @property
    def baseline_name(self) -> str:
        """`zero`, `mean` or `tensor`."""
        return self.baseline if isinstance(self.baseline, str) else "tensor"


@dataclass(frozen=True)
class Attribution:
    """Scores of all neurons for one prompt and target.

    - `scores`: (n_layers, n_neurons), averaged over the target's tokens; `by_token`: the same for each of them.
    - `activations`: (n_layers, n_neurons), the clean neurons where they were scaled, averaged likewise.
    - `value`: F of the unaltered prompt, averaged over tokens; `span`: (n_layers,) F(a) − F(baseline).
    - `gap`: (n_layers,), |Σ scores − span|, the largest over tokens; `missing`: the same as a fraction of F, for a
      probability of `UNLIKELY` at least.
    - `nodes`: (n_layers,) gradients spent; `rows`, `row_layers`: forward and backward work of all sweeps.
    - `ended`: what ended the search for points, one of `quadrature.ENDS`.
    """

    prompt: Prompt
    target: str
    target_ids: tuple[int, ...]
    scores: Tensor
    by_token: Tensor
    activations: Tensor
    value: float
    span: Tensor
    gap: Tensor
    missing: Tensor
    nodes: list[int]
    rows: int
    row_layers: int
    ended: str
    seconds: float
    config: AttributionConfig = field(repr=False, default=AttributionConfig())

    def share(self, layer: int, index: int) -> float:
        """The neuron's score over its layer's F(a) − F(baseline); shares of different layers never add."""
        return (self.scores[layer, index] / self.span[layer]).item()


def attribute(
    model: Model,
    prompt: str | Query,
    target: str | None = None,
    config: AttributionConfig | None = None,
    *,
    subject: str | None = None,
    chat: bool = False,
) -> Attribution:
    """Integrated gradients of `target` for every neuron of `model` on one prompt.

    ```python
    model = knowedit.load("smollm2-135m")
    attribution = knowedit.attribute(model, "The Eiffel Tower is located in the city of", "Paris")
    attribution.scores.flatten().topk(5)
    ```

    Raises `InputError` for an unusable prompt, target or option.
    """
    query = prompt if isinstance(prompt, Query) else model.query(prompt, target, subject, chat=chat)
    (attribution,) = attribute_many(model, [query], config)
    return attribution


def attribute_many(
    model: Model,
    queries: Iterable[Query],
    config: AttributionConfig | None = None,
    baselines: Iterable[Tensor | None] = (),
) -> Iterator[Attribution]:
    """Attribute many prompts, some `TOGETHER` in one sweep; they differ by rounding from what each gives alone.

    `baselines`: of the prompts, in their order; where there is none, or None, paths start at that of `config`. Errors
    as for `attribute`.
    """
    config = config or AttributionConfig()

    def work(group: Sequence[tuple[Query, list[Reading]]]) -> list[Attribution]:
        started = time.perf_counter()
        with in_float32(model):
            parts = iter(_integrate(model, [reading for _, part in group for reading in part], config))
        seconds = (time.perf_counter() - started) / len(group)
        return [_attribution(model, query, [next(parts) for _ in part], seconds, config) for query, part in group]

    for _, attributions in halving(model, grouped_readings(model, queries, config, baselines), work, "prompts"):
        yield from attributions


def grouped_readings(
    model: Model, queries: Iterable[Query], config: AttributionConfig, baselines: Iterable[Tensor | None] = ()
) -> Iterator[list[tuple[Query, list[Reading]]]]:
    """What is scaled and read for each query; those that share sweeps: `TOGETHER` readings of one shape."""
    group: list[tuple[Query, list[Reading]]] = []
    for query, baseline in zip(queries, itertools.chain(baselines, itertools.repeat(None)), strict=False):
        readings = [_joint(model, query, config)] if config.joint else _single(model, query, config)
        readings = [replace(reading, baseline=baseline) for reading in readings]
        full = len(readings) + sum(len(others) for _, others in group) > TOGETHER
        if group and (full or _shape(readings[0]) != _shape(group[0][1][0])):
            yield group
            group = []
        group.append((query, readings))
    if group:
        yield group


def _shape(reading: Reading) -> tuple[int, int]:
    return len(reading.positions), len(reading.reads)


def _attribution(
    model: Model, query: Query, parts: list[_Part], seconds: float, config: AttributionConfig
) -> Attribution:
    by_token = torch.stack([p.scores for p in parts])
    return Attribution(
        prompt=query.prompt,
        target=model.tokenizer.decode(list(query.target_ids)).strip(),
        target_ids=query.target_ids,
        scores=by_token.mean(0),
        by_token=by_token,
        activations=torch.stack([p.activations for p in parts]).mean(0),
        value=sum(p.value for p in parts) / len(parts),
        span=torch.stack([p.span for p in parts]).mean(0),
        gap=torch.stack([p.gap for p in parts]).amax(0),
        missing=torch.stack([p.gap / max(p.size, 1e-30) for p in parts]).amax(0),
        nodes=[sum(n) for n in zip(*(p.nodes for p in parts), strict=True)],
        rows=sum(p.rows for p in parts),
        row_layers=sum(p.row_layers for p in parts),
        ended=max((p.ended for p in parts), key=ENDS.index),
        seconds=seconds,
        config=config,
    )


@dataclass
class _Part:
    scores: Tensor
    activations: Tensor
    value: float
    size: float
    span: Tensor
    gap: Tensor
    nodes: list[int]
    rows: int
    row_layers: int
    ended: str


def _single(model: Model, query: Query, config: AttributionConfig) -> list[Reading]:
    """Each target token: the neurons scaled at one position, F read where the token is predicted."""
    readings = []
    for step, token in zip(query.steps, query.target_ids, strict=True):
        # an index is one of the prompt's tokens, also where the target's first tokens stand behind them
        positions = query.scaled_at(config.position, [step.read])
        if not model.masked and positions[-1] > step.read:
            raise InputError(
                f"position {positions[-1]} lies behind the read position {step.read}, where it can change nothing"
            )
        objective = Objective(config.of, token, _foil(model, step, config, query.separator))
        readings.append(Reading(step.ids, positions, [step.read], [objective]))
    return readings


def _joint(model: Model, query: Query, config: AttributionConfig) -> Reading:
    """All target tokens at once: every read position scaled together, F the product of the conditionals."""
    if len(query.steps) == 1:
        return _single(model, query, config)[0]
    if model.masked:
        raise InputError(
            "joint=True needs a decoder: a masked model predicts the tokens of a target from different texts"
        )
    if config.of not in ("probability", "log_probability") or config.position != "read":
        raise InputError("joint=True attributes a probability or log_probability at the read positions")
    reads = [step.read for step in query.steps]
    return Reading(query.steps[-1].ids, reads, reads, [Objective(config.of, token) for token in query.target_ids])


def _foil(model: Model, step: Prompt, config: AttributionConfig, separator: str | None) -> int | None:
    if config.of != "logit_difference":
        return None
    text = step.text.replace(model.tokenizer.mask_token, "[MASK]") if model.masked else step.text
    return model.query(text, config.foil, separator=separator).target_ids[0]


def _integrate(model: Model, readings: Sequence[Reading], config: AttributionConfig) -> list[_Part]:
    paths = integration_paths(model, readings, config.baseline, config.row_limit)
    integrals, activations = _integrals(paths, config), paths.activations
    tensors = torch.stack([*(integral.scores.to(activations) for integral in integrals), *activations.unbind(1)]).cpu()
    parts = []
    for prompt, (integral, value) in enumerate(zip(integrals, paths.clean, strict=True)):
        span = torch.tensor([value - b for b in integral.baseline_values], dtype=torch.float64)
        scores, activation = tensors[prompt], tensors[len(integrals) + prompt]
        parts.append(
            _Part(
                scores=scores,
                activations=activation,
                value=value,
                # a probability is never far from its own size; of a logarithm or logit only differences have one
                size=_size(value) if config.of == "probability" else max(abs(value), span.abs().max().item()),
                span=span,
                gap=(scores.double().sum(1) - span).abs(),
                nodes=integral.nodes,
                rows=paths.rows[prompt],
                row_layers=paths.row_layers[prompt],
                ended=integral.ended,
            )
        )
    return parts


def _size(probability: float) -> float:
    """What the gaps of its scores are held against."""
    return max(probability, UNLIKELY)


def _integrals(paths: IntegrationPaths, config: AttributionConfig) -> list[Integral]:
    if config.engine == "captum":
        from .captum_engine import integrate as by_captum

        return by_captum(paths, config)
    if config.nodes == "auto":

        def tolerance(f: float) -> float:
            return min(config.tolerance, INCOMPLETE * _size(f)) if config.of == "probability" else config.tolerance

        return refine(paths, tolerance, config.budget * paths.model.n_layers, config.quadrature)
    return integrate(paths, config.quadrature, cast(int, config.nodes))
