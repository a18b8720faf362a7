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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import InputError, LayoutError, ModelError
from ...hooks import hooked, on_input, on_output
from ...models.adapter import Model, frozen
from ...models.passes.replay import Recording, record
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


def logit_attribution(
    model: Model,
    prompt: str | Aim,
    target: str | None = None,
    foil: str | None = None,
    *,
    subject: str | None = None,
    position: str | int = "read",
    chat: bool = False,
) -> Contributions:
    """What each part of the model adds to the logit of `target` (less that of `foil`), read at `position`.

    Targets are those of `lens`: the model's own first choice by default, of several tokens the first.

    Raises `ModelError` for masked models and for blocks that do not add to a residual stream, `InputError` for a
    prompt, target or position that cannot be used.
    """
    check_additive(model)
    asked = prompt if isinstance(prompt, Aim) else aim(model, prompt, target, foil, subject=subject, chat=chat)
    place = asked.prompt.position(position)
    run = _run(model, asked.prompt.ids, place)
    with frozen(model), torch.enable_grad():
        head = _head(model, run.recording.output.reshape(-1), asked)
        parts = [_layer(model, run, layer, head.direction) for layer in range(model.n_layers)]
    columns = {name: torch.stack([getattr(part, name) for part in parts]) for name in _Layer.__dataclass_fields__}
    constant = columns.pop("constant").sum().item()
    found = Contributions(
        model=model.name,
        position=place,
        target=model.tokenizer.decode([asked.target]),
        foil=None if asked.foil is None else model.tokenizer.decode([asked.foil]),
        logit=head.logit,
        capped=head.capped,
        embedding=_dot(head.direction, run.recording.inputs[0]).item(),
        bias=head.bias + constant,
        activations=torch.stack([_double(neurons) for neurons in run.recording.neurons]),
        **columns,
    )
    return _checked(found, model)


def check_additive(model: Model) -> None:
    """Raise `ModelError` for models whose logits are no sum over their layers."""
    if model.masked:
        raise ModelError(
            f"{model.name} is a masked model, whose logits are no sum over its layers: its head transforms the last "
            "state before it is read; look at the lens alone, or take a decoder"
        )


# ---------------------------------------------------------------- one run


@dataclass
class _Run:
    """The prompt up to the position, and there of each layer the joined heads, attention's and the MLP's output."""

    recording: Recording
    joined: list[Tensor]
    attention: list[Tensor]
    mlp: list[Tensor]


def _run(model: Model, ids: Sequence[int], position: int) -> _Run:
    kept: dict[tuple[str, int], Tensor] = {}  # of the last call: the suffix, after the prefix

    def keep(what: str, layer: int):  # a copy: Falcon adds attention's output to the MLP's in place
        return lambda tensor: kept.__setitem__((what, layer), tensor[..., -1, :].reshape(-1).clone())

    hooks = []
    for layer in range(model.n_layers):
        heads, down = model.heads(layer), model.down(layer)
        hooks += [on_input(heads, keep("joined", layer)), on_output(heads, keep("attention", layer))]
        hooks += [on_output(down, keep("mlp", layer))]
    with hooked(*hooks):
        recording = record(model, ids[: position + 1], start=position)
    try:
        columns = [[kept[what, layer] for layer in range(model.n_layers)] for what in ("joined", "attention", "mlp")]
    except KeyError as error:
        what, layer = error.args[0]
        raise LayoutError(
            f"{model.name}: layer {layer} ran without the projection that gives its {what}; pass layout=knowedit.Layout"
        ) from None
    return _Run(recording, *columns)


# ---------------------------------------------------------------- the head


@dataclass
class _Head:
    """The logit as `direction` · h + `bias`, and its values."""

    direction: Tensor
    bias: float
    logit: float
    capped: float


def _head(model: Model, hidden: Tensor, asked: Aim) -> _Head:
    tokens = [asked.target] if asked.foil is None else [asked.target, asked.foil]
    zeros = torch.zeros(2, len(hidden), dtype=hidden.dtype, device=hidden.device, requires_grad=True)
    at_zero = model.normed(zeros)  # the final norm's bias, twice
    normed = model.normed(hidden[None].detach())
    capped, rows = model.logits_of(normed, tokens)
    scale = float(model.logits_slope(torch.zeros(())))  # at a logit of zero a cap has slope one
    signs = torch.tensor([1.0, -1.0][: len(tokens)], dtype=torch.float64)
    u = scale * torch.einsum("t,td->d", signs, rows.detach().double().cpu())
    own = model.unembedding.bias
    own = 0.0 if own is None else scale * (signs @ _double(own[tokens])).item()
    moved = (normed - at_zero[:1]).detach()[0]
    cotangents = torch.stack([u.to(moved), _unit(moved)])
    (pulled,) = torch.autograd.grad(at_zero, zeros, cotangents)
    constant = _double(at_zero[0])
    return _Head(
        direction=_frozen(pulled[0], pulled[1], hidden, moved),
        bias=(u @ constant).item() + own,
        logit=(u @ _double(normed[0])).item() + own,
        capped=(signs @ _double(capped[0])).item(),
    )


def _frozen(pulled: Tensor, probe: Tensor, at: Tensor, moved: Tensor) -> Tensor:
    """Jᵀ u, the pull-back at zero of a norm f, brought to its scale at `at`.

    `moved` is f(at) − f(0) = r J at, and `probe` the pull-back of its unit vector: probe · at = |moved| / r.
    """
    seen = _double(probe) @ _double(at)
    ratio = _double(moved).norm() / seen if seen else seen  # a part that is zero adds nothing
    return _double(pulled) * ratio


# ---------------------------------------------------------------- one layer


@dataclass
class _Layer:
    attention: Tensor  # ()
    mlp: Tensor  # ()
    constant: Tensor  # (): what a norm adds to nothing at all
    heads: Tensor  # (n_heads,)
    attention_bias: Tensor  # ()
    neurons: Tensor  # (n_neurons,)
    mlp_bias: Tensor  # ()


def _layer(model: Model, run: _Run, layer: int, direction: Tensor) -> _Layer:
    """One call of the block on zeros, where attention and the MLP put out what its five rows say.

    Rows 0 to 2 are zero, for the pull-backs of the direction and of the unit vectors of what attention and the MLP
    add; row 3 has attention's own output, row 4 the MLP's.
    """
    attention, mlp = run.attention[layer], run.mlp[layer]
    put = torch.zeros(2, 5, model.d_model, dtype=attention.dtype, device=attention.device)
    put[0, 3], put[1, 4] = attention, mlp.to(put)
    put.requires_grad_()
    received = run.recording.inputs[layer]
    with hooked(
        on_output(model.heads(layer), lambda out: put[0].clone().to(out).reshape(out.shape)),
        on_output(model.down(layer), lambda out: put[1].clone().to(out).reshape(out.shape)),
    ):
        added = run.recording.block(layer, torch.zeros_like(received).repeat(5, 1, 1))[:, 0]
    nothing, by_attention, by_mlp = (row.detach() for row in (added[0], added[3] - added[0], added[4] - added[0]))
    gives = run.recording.inputs[layer + 1] if layer + 1 < model.n_layers else run.recording.output
    _check_adds(model, layer, received[0, 0] + nothing + by_attention + by_mlp, gives[0, 0])
    rows = [direction.to(added), _unit(by_attention), _unit(by_mlp)]
    cotangents = torch.stack([*rows, torch.zeros_like(nothing), torch.zeros_like(nothing)])
    (pulled,) = torch.autograd.grad(added, put, cotangents)
    to_heads = _frozen(pulled[0, 0], pulled[0, 1], attention, by_attention)
    to_neurons = _frozen(pulled[1, 0], pulled[1, 2], mlp, by_mlp)
    heads, attention_bias = _through(to_heads, model.heads(layer), run.joined[layer])
    neurons, mlp_bias = _through(to_neurons, model.down(layer), run.recording.neurons[layer])
    return _Layer(
        attention=_dot(direction, by_attention),
        mlp=_dot(direction, by_mlp),
        constant=_dot(direction, nothing),
        heads=heads.reshape(model.n_heads, -1).sum(1),
        attention_bias=attention_bias,
        neurons=neurons,
        mlp_bias=mlp_bias,
    )


def _through(direction: Tensor, projection: nn.Module, values: Tensor) -> tuple[Tensor, Tensor]:
    """What each input of a projection adds along `direction`, and what its bias adds.

    The projection itself is pulled back, so weights may be packed or offloaded and edits may sit on it as hooks.
    """
    zeros = torch.zeros_like(values).reshape(1, 1, -1).requires_grad_()
    at_zero = projection(zeros)
    (pulled,) = torch.autograd.grad(at_zero, zeros, direction.to(at_zero).reshape(at_zero.shape))
    return _double(pulled) * _double(values), _dot(direction, at_zero)


def _check_adds(model: Model, layer: int, sum_of_parts: Tensor, gives: Tensor) -> None:
    reach = gives.float().abs().max().item() or 1.0
    gap = (sum_of_parts.float() - gives.float()).abs().max().item() / reach
    if not gap <= _allowed(model):
        raise ModelError(
            f"layer {layer} of {model.name} gives something else than what it received plus what attention and MLP add "
            f"(off by {gap:.1e} of the largest), as blocks do that normalise the sum; look at the lens alone"
        )


def _checked(found: Contributions, model: Model) -> Contributions:
    reach = abs(found.embedding) + (found.attention.abs().sum() + found.mlp.abs().sum()).item() + abs(found.bias)
    if not max(found.gap, found.sublayer_gap) <= 10 * _allowed(model) * reach:
        raise ModelError(
            f"the parts of {model.name} add up to {found.total:.4g}, its logit is {found.logit:.4g}: what stands "
            "between its layers and its logits is more than norms and linear maps; look at the lens alone"
        )
    return found


def _allowed(model: Model) -> float:
    return 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2


# ---------------------------------------------------------------- arithmetic


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).cpu().double()


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return _double(one) @ _double(other)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)


def _strongest(values: Tensor, n: int) -> list[tuple[int, int, float]]:
    if not isinstance(n, int) or n < 0:
        raise InputError(f"the strongest {n!r} are wanted, expected a number from 0 on")
    flat = values.flatten()
    best = flat.abs().argsort(descending=True, stable=True)[:n].tolist()
    return [(*divmod(i, values.shape[1]), flat[i].item()) for i in best]
