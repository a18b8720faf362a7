"""Direct logit attribution: what each part of a model adds to a target's logit (Elhage et al. 2021).

The residual stream at a position is a sum, h = e + Σ_l (attention_l + MLP_l), and with the final norm's scale frozen at
its actual value the logit before a cap is a linear map of it,

    z = g · h + b,      g = Aᵀ u,

where u is the target's row of the unembedding (less the foil's), times the family's logit scale, A the final norm's
linear part, b its bias and the unembedding's. So z is the sum of g · e, of every g · attention_l and g · MLP_l, and
of b. Inside a sublayer the same holds: g · attention_l is a sum over heads and the bias of their projection, g · MLP_l
one over neurons and the down-projection's bias. A norm or factor between a projection and the residual stream (Gemma,
OLMo 2, Granite) is frozen at its actual scale too.

Nothing here knows a family. A norm (LayerNorm or RMSNorm, whatever its weights) is f(y) = s(y)·M y + b with a scalar s
that is flat at y = 0, so its Jacobian there is s(0)·M: it gives the frozen map but for a factor, and f(y) gives the
factor. A block that receives zeros and whose projections put out what we choose shows what it adds to the stream.

These are direct effects only: what a part does by way of later layers is not in its number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...display.result import Table
from ...errors import InputError, ModelError
from ...models.adapter import Model, frozen
from .parts import LayerParts, dot, double, head_of, layer_parts, run_upto, tolerance
from .projection import Aim, aim


@dataclass(frozen=True)
class Contributions:
    """The parts of a logit, or of a logit difference to a foil, in float64.

    - `logit`: before a cap, as the model computes it; `capped`: what the model gives out (the same without a cap).
    - `embedding`, `bias`: of what the first block receives, and of the final norm and the unembedding.
    - `attention`, `mlp`: of each layer, (n_layers,). They hold their biases.
    - `heads` (n_layers, n_heads) and `attention_bias` (n_layers,) add up to `attention`; `neurons`
      (n_layers, n_neurons) and `mlp_bias` (n_layers,) to `mlp`.
    - `activations`: the neurons' values, (n_layers, n_neurons).
    """

    model: str
    position: int
    target: str
    foil: str | None
    logit: float
    capped: float
    embedding: float
    bias: float
    attention: Tensor
    mlp: Tensor
    heads: Tensor
    attention_bias: Tensor
    neurons: Tensor
    mlp_bias: Tensor
    activations: Tensor

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return self.embedding + self.bias + (self.attention.sum() + self.mlp.sum()).item()

    @property
    def gap(self) -> float:
        """|sum of the parts − logit|: rounding, where all is right."""
        return abs(self.total - self.logit)

    @property
    def sublayer_gap(self) -> float:
        """The largest |sum of heads or neurons and bias − their sublayer| of any layer."""
        attention = self.heads.sum(1) + self.attention_bias - self.attention
        mlp = self.neurons.sum(1) + self.mlp_bias - self.mlp
        return torch.stack([attention, mlp]).abs().max().item()

    def strongest_heads(self, n: int) -> list[tuple[int, int, float]]:
        """The `n` heads that add or take away most, as (layer, head, contribution)."""
        return _strongest(self.heads, n)

    def strongest_neurons(self, n: int) -> list[tuple[int, int, float]]:
        """The `n` neurons that add or take away most, as (layer, index, contribution)."""
        return _strongest(self.neurons, n)

    def as_dict(self, heads: int = 10, neurons: int = 10) -> dict:
        """JSON values, with so many of the strongest heads and neurons."""
        names = ("attention", "mlp", "attention_bias", "mlp_bias")
        return {
            "target": self.target,
            "foil": self.foil,
            "position": self.position,
            "logit": self.logit,
            "capped": self.capped,
            "total": self.total,
            "gap": self.gap,
            "sublayer_gap": self.sublayer_gap,
            "embedding": self.embedding,
            "bias": self.bias,
            "layers": [
                {"layer": layer, **{name: getattr(self, name)[layer].item() for name in names}}
                for layer in range(len(self.mlp))
            ],
            "heads": [
                {"layer": layer, "head": head, "contribution": value}
                for layer, head, value in self.strongest_heads(heads)
            ],
            "neurons": [
                {"layer": layer, "index": index, "activation": self.activations[layer, index].item(),
                 "contribution": value}
                for layer, index, value in self.strongest_neurons(neurons)
            ],
        }  # fmt: skip

    def table(self, heads: int = 10, neurons: int = 10) -> Iterator[str | Table]:
        """What embeddings, layers and biases add, then the strongest heads and neurons."""
        yield from attribution_tables(self.as_dict(heads, neurons))

    def figure(self, path: str | Path) -> Path:
        """Draw what each layer adds, and the strongest heads and neurons."""
        from .figure import contributions_figure

        return contributions_figure(path, self)


def logit_attribution(
    model: Model,
    prompt: str | Aim,
    target: str | None = None,
    foil: str | None = None,
    *,
    subject: str | None = None,
    position: str | int = "read",
    chat: bool = False,
    separator: str | None = None,
) -> Contributions:
    """What each part of the model adds to the logit of `target` (less that of `foil`), read at `position`.

    Targets are those of `lens`: the model's own first choice by default, of several tokens the first.

    Raises `ModelError` for masked models and for blocks that do not add to a residual stream, `InputError` for a
    prompt, target or position that cannot be used.
    """
    check_additive(model)
    aimed = (
        prompt
        if isinstance(prompt, Aim)
        else aim(model, prompt, target, foil, subject=subject, chat=chat, separator=separator)
    )
    place = aimed.prompt.position(position)
    run = run_upto(model, aimed.prompt.ids, place)
    with frozen(model), torch.enable_grad():
        head = head_of(model, run.recording.output.reshape(-1), aimed)
        parts = [layer_parts(model, run, layer, head.direction) for layer in range(model.n_layers)]
    columns = {name: torch.stack([getattr(part, name) for part in parts]) for name in LayerParts.__dataclass_fields__}
    constant = columns.pop("constant").sum().item()
    contributions = Contributions(
        model=model.name,
        position=place,
        target=model.token(aimed.target),
        foil=None if aimed.foil is None else model.token(aimed.foil),
        logit=head.logit,
        capped=head.capped,
        embedding=dot(head.direction, run.recording.inputs[0]).item(),
        bias=head.bias + constant,
        activations=torch.stack([double(neurons) for neurons in run.recording.neurons]),
        **columns,
    )
    return _checked(contributions, model)


def check_additive(model: Model) -> None:
    """Raise `ModelError` for models whose logits are no sum over their layers."""
    if model.masked:
        raise ModelError(
            f"{model.name} is a masked model, whose logits are no sum over its layers: its head transforms the last "
            "state before it is read; look at the lens alone, or take a decoder"
        )


def attribution_tables(record: dict, when: str = "") -> Iterator[str | Table]:
    """The record of `Contributions` for people; `when` says of which model."""
    what = f"the logit of {record['target']!r}" + ("" if record["foil"] is None else f" over {record['foil']!r}")
    same = abs(record["capped"] - record["logit"]) <= 1e-3  # but for rounding
    capped = "" if same else f" (after the cap {record['capped']:.3f})"
    yield f"Direct logit attribution{when}: {what} is {record['logit']:.3f}{capped}"
    layers = record["layers"]
    attention, mlp = (sum(row[name] for row in layers) for name in ("attention", "mlp"))
    yield (
        f"embeddings {record['embedding']:+.3f}, attention {attention:+.3f}, MLP {mlp:+.3f}, "
        f"biases of norm and head {record['bias']:+.3f}: together {record['total']:.3f}"
    )
    yield f"check: parts − logit {record['gap']:.1e}, heads and neurons − their sublayer {record['sublayer_gap']:.1e}"
    yield ""
    names, heading = ["attention", "mlp"], ["attention", "MLP"]
    if any(row["attention_bias"] or row["mlp_bias"] for row in layers):
        names, heading = [*names, "attention_bias", "mlp_bias"], [*heading, "attention's bias", "MLP's bias"]
    yield Table(("layer", *heading), [(row["layer"], *(f"{row[name]:+.3f}" for name in names)) for row in layers])
    if record["heads"]:
        rows = [(f"{h['layer']}.{h['head']}", f"{h['contribution']:+.3f}") for h in record["heads"]]
        yield ""
        yield "Strongest heads"
        yield Table(("head", "adds"), rows)
    if record["neurons"]:
        neurons = [
            (f"{n['layer']}/{n['index']}", f"{n['contribution']:+.3f}", f"{n['activation']:+.2f}")
            for n in record["neurons"]
        ]
        yield ""
        yield "Strongest neurons"
        yield Table(("neuron", "adds", "activation"), neurons)


def _checked(parts: Contributions, model: Model) -> Contributions:
    reach = abs(parts.embedding) + (parts.attention.abs().sum() + parts.mlp.abs().sum()).item() + abs(parts.bias)
    if not max(parts.gap, parts.sublayer_gap) <= 10 * tolerance(model) * reach:
        raise ModelError(
            f"the parts of {model.name} add up to {parts.total:.4g}, its logit is {parts.logit:.4g}: what stands "
            "between its layers and its logits is more than norms and linear maps; look at the lens alone"
        )
    return parts


def _strongest(values: Tensor, n: int) -> list[tuple[int, int, float]]:
    if not isinstance(n, int) or n < 0:
        raise InputError(f"the number of the strongest is {n!r}, expected a number from 0 on")
    flat = values.flatten()
    best = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
    return [(*divmod(i, values.shape[1]), flat[i].item()) for i in best]
