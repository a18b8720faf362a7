"""Do facts, located neurons and edits survive fewer bits? Simulated quantization of MLPs, with attention as control.

The weights of all MLP projections are rounded, in place and for as long as a context lasts; attention's are rounded
alike for comparison. Symmetric, by output channel (a row w of the (out, in) weight), biases and activations kept:

    b ≥ 2 bits    w ← s · clip(round(w / s), −q, q),    q = 2^(b−1) − 1,    s = max|w| / q
    1 bit         w ← mean|w| · sign(w)                  (XNOR-Net, Rastegari et al. 2016)

So 2 bits have the three values −s, 0, s. It is the plainest rounding there is: methods that choose the grid by data
(GPTQ, AWQ) keep more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..answers import ask
from ..display.result import Record, Table
from ..edit.apply import stacked
from ..edit.edit import Edit
from ..edit.rewrite_quality import RewriteQuality, rewrite_quality
from ..errors import InputError, ModelError
from ..facts import Fact
from ..locate.attribution import AttributionConfig, attribute
from ..locate.refinement import coarse
from ..models.adapter import Model
from ..models.expansion import PARTS, projections
from ..models.passes.scaled_answers import ScaledAnswers
from ..progress import Progress, silent
from ..statistics import Estimate, mean, rate
from ..writing.counts import number_of

BITS = (8, 4, 2, 1)


@dataclass(frozen=True)
class PrecisionConfig:
    """`bits` of a weight; `parts` that are rounded in turn; `neurons`: facts whose neurons are located, at most; `t`:
    the threshold of coarse neurons, `nodes` of the attribution."""

    bits: tuple[int, ...] = BITS
    parts: tuple[str, ...] = PARTS
    neurons: int = 8
    t: float = 0.2
    nodes: int = 8

    def __post_init__(self):
        if not self.bits or not all(isinstance(b, int) and not isinstance(b, bool) and 1 <= b <= 16 for b in self.bits):
            raise InputError(f"the bits are {list(self.bits)!r}, expected whole numbers from 1 to 16 such as 8,4,2,1")
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise InputError(f"the parts to quantize are {list(self.parts)!r}, expected some of {', '.join(PARTS)}")
        if not isinstance(self.neurons, int) or self.neurons < 0:
            raise InputError(f"neurons is {self.neurons!r}, expected 0 or more facts")


@dataclass(frozen=True)
class Level:
    """What is left with one part at so many bits; `bits` None is the model as it is.

    - `known`: the share of facts whose target is the first choice; `probability`: mean probability of the target.
    - `error`: the rounding's ‖ΔW‖ / ‖W‖ over all weights of the part.
    - `found_again`: the share of each fact's located neurons that are located again; `suppressed`: what is added to the
      target's probability when the neurons that were located at full precision are set to 0.
    - `edited`: the share of edits whose new answer is the first choice, every token of it.
    - `efficacy`, `paraphrase`, `neighbourhood`: of the edits, as in ROME: how often the new answer is likelier than the
      old one on the edited prompts and in other words, and each neighbour's own answer likelier than the new one. They
      compare two probabilities also where both have become nothing: half of them is then chance.

    What there is nothing to measure from is None, with n = 0.
    """

    part: str
    bits: int | None
    error: float
    known: Estimate
    probability: Estimate
    found_again: Estimate
    suppressed: Estimate
    edited: Estimate
    efficacy: Estimate
    paraphrase: Estimate
    neighbourhood: Estimate


@dataclass(frozen=True)
class Precision(Record):
    """All levels; the first is full precision (part `none`)."""

    model: str
    facts: int
    neuron_facts: int
    edits: int
    levels: tuple[Level, ...]

    def table(self) -> Iterator[str | Table]:
        """What each level leaves of facts and neurons, then of edits."""
        yield (
            f"{self.model} at fewer bits: {number_of(self.facts, 'fact')}, neurons of {self.neuron_facts}, "
            f"{number_of(self.edits, 'edited fact')}"
        )
        names = [("full precision", "") if level.bits is None else (level.part, level.bits) for level in self.levels]
        rows = [
            (
                *name,
                f"{level.error:.3f}",
                level.known.text("share"),
                level.probability.text(),
                level.found_again.text("share"),
                level.suppressed.text(),
            )
            for name, level in zip(names, self.levels, strict=True)
        ]
        columns = ("‖ΔW‖/‖W‖", "known", "probability", "neurons found again", "suppressing them")
        yield Table(("quantized", "bits", *columns), rows)
        if not self.edits:
            return
        yield ""
        yield "How often an edit's new answer is the first choice, and likelier than the old one on the prompt and in"
        yield "other words; how often neighbours keep their answers. Where both are gone, half of that is chance."
        rows = [
            (*name, *(e.text("share") for e in (level.edited, level.efficacy, level.paraphrase, level.neighbourhood)))
            for name, level in zip(names, self.levels, strict=True)
        ]
        yield Table(("quantized", "bits", "first choice", "efficacy", "paraphrase", "neighbourhood"), rows)

    def figure(self, path: str | Path) -> Path:
        """Draw what is left by bits, MLPs beside attention."""
        from .figure import precision_figure

        return precision_figure(path, self)


def quantized_weight(weight: Tensor, bits: int) -> Tensor:
    """A weight (out, in) as `bits` bits would have it, channel by channel of its output, in its own dtype."""
    rows = weight.double()
    if bits == 1:
        return (rows.abs().mean(1, keepdim=True) * torch.where(rows < 0, -1.0, 1.0)).to(weight.dtype)
    q = 2 ** (bits - 1) - 1
    scale = rows.abs().amax(1, keepdim=True) / q
    steps = (rows / torch.where(scale == 0, 1.0, scale)).round().clamp(-q, q)
    return (steps * scale).to(weight.dtype)


@contextmanager
def quantized(model: Model, bits: int, part: str = "mlp") -> Iterator[float]:
    """The weights of `part` are as `bits` bits would have them while the context lasts; hands out ‖ΔW‖ / ‖W‖.

    Afterwards each weight has its own bits again, also after an exception. Raises `ModelError` where the weights
    cannot be written: packed, offloaded or shared with another module.
    """
    PrecisionConfig(bits=(bits,), parts=(part,))
    modules = _modules(model, part)
    kept: list[tuple[nn.Module, Tensor]] = []
    change, size = 0.0, 0.0
    try:
        with torch.no_grad():
            for module in modules:
                weight = module.weight
                kept.append((module, weight.detach().clone()))
                as_rows = weight.T if isinstance(module, Conv1D) else weight
                new = quantized_weight(as_rows, bits)
                change += (new.double() - as_rows.double()).square().sum().item()
                size += as_rows.double().square().sum().item()
                as_rows.copy_(new)
        yield (change / size) ** 0.5 if size else 0.0
    finally:
        with torch.no_grad():
            for module, weight in kept:
                module.weight.copy_(weight)


def precision(
    model: Model,
    facts: Sequence[Fact],
    edits: Sequence[Edit] = (),
    config: PrecisionConfig | None = None,
    progress: Progress = silent,
) -> Precision:
    """Ask `facts`, locate the neurons of some and measure `edits`, at full precision and at every level.

    Edits are applied to the model as it is and rounded with it. The model is afterwards as it was. `progress` counts
    levels. Raises `InputError` without facts.
    """
    config = config or PrecisionConfig()
    if not facts:
        raise InputError("there is no fact to ask; give at least one")
    for part in config.parts:
        _modules(model, part)  # refused before anything is computed
    queries = [model.query_of(fact) for fact in facts]
    traced = queries[: config.neurons]
    located = [_located(model, query, config) for query in traced]
    levels = [_level(model, "none", None, 0.0, queries, traced, located, config)]
    edited = [_edited(model, edits)]
    progress(1)
    for part, bits in product(config.parts, config.bits):
        with quantized(model, bits, part) as error:
            levels.append(_level(model, part, bits, error, queries, traced, located, config))
        edited.append(_edited(model, edits, bits, part))
        progress(len(levels))
    joined = tuple(Level(**level, **edit) for level, edit in zip(levels, edited, strict=True))
    return Precision(model.name, len(facts), len(traced), sum(len(e.facts) for e in edits), joined)


def _modules(model: Model, part: str) -> list[nn.Module]:
    modules = [m for layer in range(model.n_layers) for m in projections(model.hf, model.layout, layer)[part].values()]
    for module in modules:
        weight = module._parameters.get("weight")
        if not isinstance(module, nn.Linear | Conv1D) or type(weight) is not nn.Parameter or weight.is_meta:
            raise ModelError(
                f"weights of {model.name} are packed, offloaded or computed ({type(module).__name__}), so they cannot "
                "be rounded in place; load the model whole and unquantized"
            )
    if len({module.weight.data_ptr() for module in modules}) < len(modules):
        raise ModelError(f"modules of {model.name} share weights, which would be rounded twice; use another model")
    return modules


def _located(model: Model, query, config: PrecisionConfig) -> set[tuple[int, int]]:
    attribution = attribute(model, query, config=AttributionConfig(nodes=config.nodes))
    return set(coarse(attribution.scores, config.t))


def _level(model: Model, part, bits, error: float, queries, traced, located, config: PrecisionConfig) -> dict:
    answers = ask(model, queries, top=0)
    again, before, after = [], [], []
    for query, neurons in zip(traced, located, strict=True):
        if not neurons:
            continue
        now = neurons if bits is None else _located(model, query, config)
        again.append(len(neurons & now) / len(neurons))
        scaled = ScaledAnswers(model, [query])
        before.append(scaled.probability.item())
        after.append(scaled.scaled([sorted(neurons)], 0.0).item())
    return {
        "part": part,
        "bits": bits,
        "error": error,
        "known": rate([answer.known for answer in answers]),
        "probability": mean([answer.probability for answer in answers]),
        "found_again": mean(again),
        "suppressed": mean(np.subtract(after, before)),
    }


def _edited(model: Model, edits: Sequence[Edit], bits: int | None = None, part: str = "mlp") -> dict[str, Any]:
    """Efficacy, paraphrase and neighbourhood success of all edits, each on its own, over their facts."""
    qualities: list[RewriteQuality] = []
    for edit in edits:
        with stacked(model, [edit]):
            facts = [fact for fact in edit.facts if fact.target_new is not None]
            if bits is None:
                qualities += rewrite_quality(model, facts)
                continue
            with quantized(model, bits, part):  # restored before the edit is taken off, which checks its weights
                qualities += rewrite_quality(model, facts)
    return {
        "edited": rate([quality.prompt.says_new for quality in qualities]),
        "efficacy": rate([quality.prompt.prefers_new for quality in qualities]),
        "paraphrase": _mean_of([[p.prefers_new for p in quality.paraphrases] for quality in qualities]),
        "neighbourhood": _mean_of([[n.prefers_true for n in quality.neighbours] for quality in qualities]),
    }


def _mean_of(rows: list[list[bool]]) -> Estimate:
    return mean([float(np.mean(row)) for row in rows if row])
