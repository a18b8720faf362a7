"""One prompt run clean and, with noise in its subject, corrupted: what every way of tracing starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...hooks import hooked, on_input, on_output
from ...models.adapter import Model
from ...models.passes.replay import Recording, cache_of, capture, is_cache, keys_values, leaves, record
from .noise import on_noise

SUBLAYERS = ("mlp", "attention")


def sublayer(model: Model, kind: str, layer: int):
    """The module whose output is what a sublayer puts out, before any norm or factor that follows it."""
    return model.down(layer) if kind == "mlp" else model.heads(layer)


@dataclass(frozen=True)
class Run:
    """Rows of one prompt, run through all blocks.

    - `states[l]`: what block `l` received, (rows, tokens, d_model); `states[n_layers]` is what the last block gave.
    - `outputs[kind][l]`: what the MLP or the attention of layer `l` put out, (rows, tokens, d_model).
    - `inputs[kind][l]`: what went into its projection, (rows, tokens, width): the neurons, or the joined heads.
    - `prefix[l]`: keys and values of all tokens, each (rows, heads, tokens, width); None without a cache.
    """

    states: list[Tensor]
    outputs: dict[str, list[Tensor]]
    inputs: dict[str, list[Tensor]]
    prefix: list[tuple[Tensor, Tensor] | None]


@dataclass
class Corruption:
    """A prompt, clean and corrupted by `noise` (draws, tokens, width) from token `start` on.

    Where a layer's cache drops tokens (a sliding window), prefixes of the corrupted prompt are run once more.
    """

    model: Model
    ids: tuple[int, ...]
    start: int
    noise: Tensor

    @property
    def draws(self) -> int:
        return len(self.noise)

    @cached_property
    def clean(self) -> Run:
        return self._run(1)

    @cached_property
    def corrupted(self) -> Run:
        with hooked(on_noise(self.model, self.noise, self.start)):
            return self._run(self.draws)

    @property
    def first(self) -> int:
        """The first token in which corrupted and clean prompts can differ."""
        return self.start if self.model.cached else 0

    def recording(self, token: int, end: int | None = None) -> Recording:
        """Something to run the corrupted prompt's tokens from `token` up to `end` again with, `draws` rows in turn.

        Where the model is not `cached`, it begins at the first token, whatever `token` is.
        """
        recording = record(self.model, self.ids if self.model.masked else self.ids[:end], token)
        return replace(recording, prefix=self._prefix(recording.start))

    def _prefix(self, length: int) -> list[tuple[Tensor, Tensor] | None]:
        if not length:
            return [None] * self.model.n_layers
        kept = self.corrupted.prefix
        if all(keys.shape[-2] == len(self.ids) for keys, _ in kept):
            return [(keys[..., :length, :], values[..., :length, :]) for keys, values in kept]
        with torch.no_grad(), hooked(on_noise(self.model, self.noise, self.start)):
            cache = cache_of(self.model.run(self._tokens(self.draws)[:, :length], use_cache=True))
        return [keys_values(cache, layer) for layer in range(self.model.n_layers)]

    def _tokens(self, rows: int) -> Tensor:
        return torch.tensor([self.ids] * rows, device=self.model.device)

    def _run(self, rows: int) -> Run:
        return run(self.model, self._tokens(rows))


@torch.no_grad()
def run(model: Model, tokens: Tensor, inputs: bool = False) -> Run:
    """Run `tokens` (rows, length); with `inputs` keep what goes into the sublayers' projections as well."""
    kinds = SUBLAYERS if model.attends else ("mlp",)
    kept: dict[str, tuple[list[Tensor], list[Tensor]]] = {kind: ([], []) for kind in kinds}
    hooks = []
    for kind in kinds:
        for layer in range(model.n_layers):
            module = sublayer(model, kind, layer)
            hooks.append(on_output(module, _keeper(kept[kind][0], tokens.shape)))
            hooks += [on_input(module, _keeper(kept[kind][1], tokens.shape))] if inputs else []
    with hooked(*hooks):
        calls, states, _, output = capture(model, tokens)
    cache = next((leaf for _, leaf in leaves(list(calls[0])) if is_cache(leaf)), None)
    return Run(
        states=[*states, output],
        outputs={kind: outputs for kind, (outputs, _) in kept.items()},
        inputs={kind: taken for kind, (_, taken) in kept.items()},
        prefix=[keys_values(cache, layer) for layer in range(model.n_layers)],
    )


def _keeper(kept: list[Tensor], shape: torch.Size):
    """Some families flatten rows and tokens."""

    def keep(values: Tensor) -> None:
        kept.append(values.reshape(*shape, -1).clone())  # a block may add to it in place

    return keep


def set_output(model: Model, kind: str, layer: int, length: int, at: int, rows: Sequence[int] | slice, values: Tensor):
    """Set what a sublayer puts out in `rows`, token `at` of `length`, to `values`. For `hooks.hooked`."""

    def put(output: Tensor) -> Tensor:
        placed = output.reshape(-1, length, output.shape[-1]).clone()
        placed[rows, at] = values.to(placed)
        return placed.reshape(output.shape)

    return on_output(sublayer(model, kind, layer), put)
