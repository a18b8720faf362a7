"""How a layer's neurons are made: from the MLP's input, by one projection and a nonlinearity or by two and a product.

    plain   neurons = act(up(x))                GPT-2, OPT, BERT, …
    gated   neurons = act(gate(x)) · up(x)      Llama, Qwen, Gemma, …; Phi-3 and ModernBERT have both in one module

The projections are found by structure: outside of the attention, they are what maps d_model to one or two times
n_neurons. Which of the two is the gate, and which module is the nonlinearity, is told by names and then checked: an
`Expansion` is handed out only if it makes the very neurons that the model made. `Layout.up` and `Layout.gate`
overrule the search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from ..errors import LayoutError
from ..hooks import hooked, on_input, on_output
from .adapter import Model
from .layouts import Layout

_NO_ACTIVATIONS = (nn.Dropout, nn.Identity, nn.ModuleDict, nn.ParameterDict)
PARTS = ("mlp", "attention")
_REMEDY = "pass layout=knowedit.Layout(…, up=…, gate=…) with the paths of its expanding projections in a block"


@dataclass(frozen=True)
class Expansion:
    """The way into one layer's neurons.

    - `up`, `gate`: paths inside the block; `gate` is None in a plain MLP, and equals `up` where one module holds both,
      the gate's half first. `act` is the nonlinearity, elementwise.
    """

    up: str
    gate: str | None
    act: Callable[[Tensor], Tensor]

    @property
    def gated(self) -> bool:
        return self.gate is not None

    @property
    def fused(self) -> bool:
        return self.gate == self.up

    def neurons(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """The neurons of given pre-activations, all (…, n_neurons)."""
        return self.act(up) if gate is None else self.act(gate) * up


@dataclass
class Seen:
    """What went through one layer's MLP in a pass, each (tokens of all rows, width); `gate` is None where plain.

    `output` is the down-projection's, before a norm or residual that some families put behind it.
    """

    input: Tensor
    up: Tensor
    gate: Tensor | None
    neurons: Tensor
    output: Tensor


def projections(hf: nn.Module, layout: Layout, layer: int) -> dict[str, dict[str, nn.Module]]:
    """The projections of a block by part, `mlp` and `attention`, each path (inside the block) → module."""
    found: dict[str, dict[str, nn.Module]] = {part: {} for part in PARTS}
    adapted: list[str] = []
    for path, module in hf.get_submodule(layout.blocks)[layer].named_modules():
        if any(path.startswith(f"{whole}.") for whole in adapted):
            continue
        if hasattr(module, "base_layer"):  # of PEFT: one projection, whatever it is made of
            adapted.append(path)
        known = path in (layout.down, *adapted) and hasattr(module, "in_features")
        if known or isinstance(module, nn.Linear | Conv1D):
            attends = f"{path}.".startswith(f"{layout.attention}.")
            found["attention" if attends else "mlp"][path] = module
    return found


def expansion(model: Model, layer: int) -> Expansion:
    """The expansion of a layer, checked on a few tokens. Raises `LayoutError` where none makes the layer's neurons."""
    candidates = list(_candidates(model, model.check_layer(layer)))
    for up, gate in candidates:
        seen = _glance(model, {layer: Expansion(up, gate, _identity)})[layer]
        for act in _activations(model, model.blocks[layer]):
            if _makes(made := Expansion(up, gate, act), seen):
                return made
    raise LayoutError(
        f"{model.name}: no projection and nonlinearity of layer {layer} makes its neurons "
        f"(tried {', '.join(up if gate is None else f'{gate} × {up}' for up, gate in candidates) or 'none'}); {_REMEDY}"
    )


def expansions(model: Model) -> dict[int, Expansion]:
    """The expansion of every layer. Layers mostly agree, so that of the first is tried on all in one pass."""
    first = expansion(model, 0)
    seen = _glance(model, dict.fromkeys(range(model.n_layers), first))
    return {layer: first if _makes(first, found) else expansion(model, layer) for layer, found in seen.items()}


@torch.no_grad()
def _glance(model: Model, expansions: dict[int, Expansion]) -> dict[int, Seen]:
    tokens = torch.tensor([[(7 * i + 5) % model.vocabulary for i in range(4)]], device=model.device)
    with watching(model, expansions) as seen:
        model.run(tokens, attention_mask=torch.ones_like(tokens))
    return seen


def _makes(one: Expansion, seen: Seen) -> bool:
    scale = seen.neurons.float().abs().max().item() or 1.0
    gap = (one.neurons(seen.up, seen.gate) - seen.neurons).float().abs().max().item()
    return gap <= (1e-5 if seen.neurons.dtype in (torch.float32, torch.float64) else 2e-2) * scale


@contextmanager
def watching(model: Model, expansions: dict[int, Expansion]) -> Iterator[dict[int, Seen]]:
    """Keep what goes through the MLPs of some layers in the last pass, in the dict that is handed out."""
    seen = {layer: Seen(*[None] * 5) for layer in expansions}

    def keep(layer: int, name: str):
        def kept(values: Tensor) -> None:
            # a copy: Falcon adds attention to the MLP's output in place
            setattr(seen[layer], name, values.reshape(-1, values.shape[-1]).clone())

        return kept

    def halves(layer: int):
        def kept(values: Tensor) -> None:
            seen[layer].gate, seen[layer].up = values.reshape(-1, values.shape[-1]).chunk(2, -1)

        return kept

    hooks = []
    for layer, one in expansions.items():
        up, down = model.blocks[layer].get_submodule(one.up), model.down(layer)
        hooks += [on_input(up, keep(layer, "input")), on_input(down, keep(layer, "neurons"))]
        hooks += [on_output(down, keep(layer, "output"))]
        if one.fused:
            hooks += [on_output(up, halves(layer))]
            continue
        hooks += [on_output(up, keep(layer, "up"))]
        if one.gated:
            hooks += [on_output(model.blocks[layer].get_submodule(one.gate), keep(layer, "gate"))]
    with hooked(*hooks):
        yield seen


def _candidates(model: Model, layer: int) -> Iterator[tuple[str, str | None]]:
    """(up, gate) in the order in which they are tried."""
    layout = model.layout
    if layout.up:
        block = model.blocks[layer]
        for path in filter(None, (layout.up, layout.gate)):
            try:
                block.get_submodule(path)
            except AttributeError:
                raise LayoutError(f"{type(block).__name__} has no {path!r}; {_REMEDY}") from None
        yield layout.up, layout.gate or None
        return
    paths = [p for p in projections(model.hf, layout, layer)["mlp"] if p != layout.down]
    widths = {path: _width(model.blocks[layer].get_submodule(path)) for path in paths}
    single = [p for p, (source, out) in widths.items() if (source, out) == (model.d_model, model.n_neurons)]
    double = [p for p, (source, out) in widths.items() if (source, out) == (model.d_model, 2 * model.n_neurons)]
    if len(single) > 1:
        ordered = sorted(single, key=lambda path: "gate" in path.rsplit(".", 1)[-1])
        yield from ((up, gate) for gate in reversed(ordered) for up in ordered if up != gate)
    yield from ((path, None) for path in single)
    yield from ((path, path) for path in double)


def _width(module: nn.Module) -> tuple[int, int]:
    return (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)


def _activations(model: Model, block: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Modules without weights that the block has outside of its attention, then what the config names."""
    for path, module in block.named_modules():
        plain = not any(True for _ in module.parameters()) and not isinstance(module, _NO_ACTIVATIONS)
        if plain and not list(module.children()) and not f"{path}.".startswith(f"{model.layout.attention}."):
            yield module
    text = model.config
    names = (getattr(text, key, None) for key in ("hidden_act", "hidden_activation", "activation_function"))
    yield from (ACT2FN[name] for name in names if isinstance(name, str) and name in ACT2FN)
    yield _identity


def _identity(x: Tensor) -> Tensor:
    return x
