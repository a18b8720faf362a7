"""What each part of a block writes, pulled back through norms and projections: the arithmetic of logit attribution.

A block is called on zeros while its projections put out one part alone, and a direction of the residual stream is
pulled back through it, so norms and factors behind a projection (Gemma, OLMo 2, Granite) are the block's own. The
equations are in `decomposition`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import LayoutError, ModelError
from ...hooks import hooked, on_input, on_output
from ...models.adapter import Model
from ...models.passes.replay import Recording, record
from .projection import Aim

# ---------------------------------------------------------------- one run


@dataclass
class Run:
    """The prompt up to the position, and there of each layer the joined heads, attention's and the MLP's output."""

    recording: Recording
    joined: list[Tensor]
    attention: list[Tensor]
    mlp: list[Tensor]


def run_upto(model: Model, ids: Sequence[int], position: int) -> Run:
    kept: dict[tuple[str, int], Tensor] = {}  # of the last call: the suffix, after the prefix

    def keep(part: str, layer: int):  # a copy: Falcon adds attention's output to the MLP's in place
        return lambda tensor: kept.__setitem__((part, layer), tensor[..., -1, :].reshape(-1).clone())

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
    return Run(recording, *columns)


# ---------------------------------------------------------------- the head


@dataclass
class Head:
    """The logit as `direction` · h + `bias`, and its values."""

    direction: Tensor
    bias: float
    logit: float
    capped: float


def head_of(model: Model, hidden: Tensor, aim: Aim) -> Head:
    tokens = [aim.target] if aim.foil is None else [aim.target, aim.foil]
    zeros = torch.zeros(2, len(hidden), dtype=hidden.dtype, device=hidden.device, requires_grad=True)
    at_zero = model.normed(zeros)  # the final norm's bias, twice
    normed = model.normed(hidden[None].detach())
    capped, rows = model.logits_of(normed, tokens)
    scale = float(model.logits_slope(torch.zeros(())))  # at a logit of zero a cap has slope one
    signs = torch.tensor([1.0, -1.0][: len(tokens)], dtype=torch.float64)
    u = scale * torch.einsum("t,td->d", signs, rows.detach().double().cpu())
    bias = model.unembedding.bias
    bias = 0.0 if bias is None else scale * (signs @ double(bias[tokens])).item()
    moved = (normed - at_zero[:1]).detach()[0]
    cotangents = torch.stack([u.to(moved), _unit(moved)])
    (pulled,) = torch.autograd.grad(at_zero, zeros, cotangents)
    constant = double(at_zero[0])
    return Head(
        direction=_frozen(pulled[0], pulled[1], hidden, moved),
        bias=(u @ constant).item() + bias,
        logit=(u @ double(normed[0])).item() + bias,
        capped=(signs @ double(capped[0])).item(),
    )


def _frozen(pulled: Tensor, probe: Tensor, at: Tensor, moved: Tensor) -> Tensor:
    """Jᵀ u, the pull-back at zero of a norm f, brought to its scale at `at`.

    `moved` is f(at) − f(0) = r J at, and `probe` the pull-back of its unit vector: probe · at = |moved| / r.
    """
    seen = double(probe) @ double(at)
    ratio = double(moved).norm() / seen if seen else seen  # a part that is zero adds nothing
    return double(pulled) * ratio


# ---------------------------------------------------------------- one layer


@dataclass
class LayerParts:
    attention: Tensor  # ()
    mlp: Tensor  # ()
    constant: Tensor  # (): what a norm adds to nothing at all
    heads: Tensor  # (n_heads,)
    attention_bias: Tensor  # ()
    neurons: Tensor  # (n_neurons,)
    mlp_bias: Tensor  # ()


def layer_parts(model: Model, run: Run, layer: int, direction: Tensor) -> LayerParts:
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
    return LayerParts(
        attention=dot(direction, by_attention),
        mlp=dot(direction, by_mlp),
        constant=dot(direction, nothing),
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
    return double(pulled) * double(values), dot(direction, at_zero)


def _check_adds(model: Model, layer: int, sum_of_parts: Tensor, gives: Tensor) -> None:
    reach = gives.float().abs().max().item() or 1.0
    gap = (sum_of_parts.float() - gives.float()).abs().max().item() / reach
    if not gap <= tolerance(model):
        raise ModelError(
            f"layer {layer} of {model.name} gives something else than what it received plus what attention and MLP add "
            f"(off by {gap:.1e} of the largest), as blocks do that normalise the sum; look at the lens alone"
        )


def tolerance(model: Model) -> float:
    return 1e-3 if model.dtype in (torch.float32, torch.float64) else 5e-2


# ---------------------------------------------------------------- arithmetic


def double(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).cpu().double()


def dot(first: Tensor, second: Tensor) -> Tensor:
    return double(first) @ double(second)


def _unit(vector: Tensor) -> Tensor:
    return vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)
