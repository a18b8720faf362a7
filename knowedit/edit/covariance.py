"""The uncentred covariance of keys, C = E[k kᵀ]: which directions a down-projection's input usually takes.

    C = covariance(model, [1])[1]
    C.solve(k_star)                     # C⁻¹ k*

An edit of one key leaves the others alone as far as C tells them apart (Meng et al. 2022, eq. 2). C is estimated from
the keys of every token of some text, all wanted layers in one pass that ends at the highest of them, in float32. The
estimate is noisy where tokens are few, so C⁻¹ k is that of C + shrinkage · mean(diag C) · I, by Cholesky in float64,
on the model's device if it is a CUDA one.

What was computed is kept in the cache under everything that decides it (`tensor_cache.py`), and a run that was killed
goes on, to the same bits, from where it last kept its sums. Its factors lie beside it, where they are made on the CPU:
a GPU makes one in less time than it takes to read it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..hooks import Enough, bears_hooks, ending_early, hooked, on_input
from ..models.adapter import Model
from ..models.cache import cache_root, key_of
from ..models.passes.batches import halving
from ..models.tensor_cache import TensorCache, digest
from ..progress import Progress, silent
from ..texts.corpus import Corpus, corpus, kept_for
from ..texts.rows import text_of
from .apply import unedited

SHRINKAGE = 1e-2
MINIMUM = 2  # tokens a neuron, below which C is mostly its shrinkage

BATCH_ROWS = 16
BLOCK = 1024  # rows of C on their way to the device
_SAVE_SECONDS = 60.0  # at least, between two times that the sums are kept


@dataclass(frozen=True, eq=False)
class Covariance:
    """C of one layer's keys.

    - `layer`: whose down-projection the keys go into.
    - `C`: (n_neurons, n_neurons), float32 on the CPU, symmetric.
    - `tokens`: how many keys it is the mean of.
    - `source`: what text they come from, as JSON values.
    - `device`: where it is factored and solved, in float64.
    - `kept`: where its factors are kept, too.
    - `joined`: keys (m, n_neurons) that count beside the text's, and their weight (`plus`).
    """

    layer: int
    C: Tensor
    tokens: int
    source: dict
    device: torch.device = torch.device("cpu")
    kept: TensorCache | None = field(default=None, repr=False)
    joined: tuple[Tensor, float] | None = field(default=None, repr=False)
    _factors: dict = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self):
        if self.C.dim() != 2 or self.C.shape[0] != self.C.shape[1]:
            raise InputError(f"a covariance of shape {tuple(self.C.shape)}, expected (neurons, neurons)")
        if not torch.isfinite(self.C).all():  # wherever it is
            raise InputError(f"the covariance of layer {self.layer} holds NaN or infinity; the model's keys overflow")
        object.__setattr__(self, "C", self.C.detach().to("cpu", torch.float32))

    def solve(self, k: Tensor, shrinkage: float | None = None) -> Tensor:
        """(C + shrinkage · mean(diag C) · I)⁻¹ k in float64 on `device`, for k (n_neurons,) or (n_neurons, m).

        The factor is computed once for each shrinkage (`SHRINKAGE` by default). Raises `InputError` for another shape,
        values that are not finite, and a C that is not positive definite.
        """
        if k.dim() not in (1, 2) or k.shape[0] != self.C.shape[0]:
            raise InputError(f"keys of shape {tuple(k.shape)}, expected ({self.C.shape[0]},) or ({self.C.shape[0]}, m)")
        if not torch.isfinite(k).all():
            raise InputError("the key holds NaN or infinity; the model's activations overflow, load it as float32")
        factor = self._factor(shrinkage)
        keys = k.detach().to(factor).reshape(len(factor), -1)
        # not by cholesky_solve, which copies the factor
        half = torch.linalg.solve_triangular(factor.mT, keys, upper=False)
        return torch.linalg.solve_triangular(factor, half, upper=True).reshape(k.shape)

    def plus(self, keys: Tensor, weight: float) -> Covariance:
        """C + weight · mean(k kᵀ) over `keys` (m, n_neurons): these count as `weight` times what the text says.

        The sum is made where it is needed, which it is not where its factor is kept: `C` stays that of the text.
        """
        return replace(self, joined=(keys.detach().to("cpu", torch.float64).contiguous(), weight))

    def conditioning(self, shrinkage: float | None = None) -> dict:
        """How well C is known and can be solved, as JSON values; one eigenvalue problem in float64.

        `effective_rank` is exp of the entropy of the eigenvalues' shares (Roy & Vetterli 2007); `condition` is the
        largest over the smallest eigenvalue with the shrinkage, None without one where C is singular.
        """
        shrinkage = _checked_shrinkage(shrinkage)
        values = torch.linalg.eigvalsh(self._double()).cpu().numpy().clip(min=0)
        shares = values / max(values.sum(), np.finfo(float).tiny)
        shares = shares[shares > 0]
        ridge = shrinkage * values.mean()
        neurons = len(values)
        return {
            "tokens": self.tokens,
            "neurons": neurons,
            "tokens_per_neuron": self.tokens / neurons,
            "fewer_tokens_than_neurons": self.tokens < neurons,
            "trace": float(values.sum()),
            "shrinkage": shrinkage,
            "condition": float((values[-1] + ridge) / (values[0] + ridge)) if values[0] + ridge > 0 else None,
            "effective_rank": float(np.exp(-(shares * np.log(shares)).sum())),
            "largest_share": float(shares.max(initial=0)),
        }

    def shrunk(self, shrinkage: float) -> Tensor:
        """C + shrinkage · mean(diag C) · I, float64 on `device`."""
        matrix = self._double()
        matrix.diagonal().add_(shrinkage * matrix.diagonal().mean())
        return matrix

    def _double(self) -> Tensor:
        """C in float64 on `device`, with the keys that joined it: a copy, for C is float32."""
        matrix = torch.empty(self.C.shape, dtype=torch.float64, device=self.device)
        for part, rows in zip(matrix.split(BLOCK), self.C.split(BLOCK), strict=True):
            part.copy_(rows.to(self.device))  # float32 travels, and only little of it is there at once
        if self.joined:
            keys, weight = self.joined[0].to(self.device), self.joined[1]
            matrix.addmm_(keys.T, keys, alpha=weight / len(keys))
        return matrix

    def _factor(self, shrinkage: float | None) -> Tensor:
        """The upper Cholesky factor R, (n_neurons, n_neurons): what is factored is Rᵀ R."""
        shrinkage = _checked_shrinkage(shrinkage)
        if shrinkage not in self._factors:
            make = partial(self._made_factor, shrinkage)
            if self.kept is None or self.device.type != "cpu":
                self._factors[shrinkage] = make()
            else:
                keys, weight = self.joined or (self.C[:0], 0.0)
                whole = digest("", {"C": self.C.contiguous(), "keys": keys})
                request = {"upper factor of": whole, "weight": weight, "shrinkage": shrinkage}
                self._factors[shrinkage] = self.kept.remembered(request, tuple(self.C.shape), torch.float64, make)
        return self._factors[shrinkage]

    def _made_factor(self, shrinkage: float) -> Tensor:
        matrix = self.shrunk(shrinkage).mT  # which LAPACK takes as it is: nothing is held twice
        factor, failed = torch.linalg.cholesky_ex(
            matrix, out=(matrix, torch.empty((), dtype=torch.int32, device=self.device))
        )
        if failed:
            raise InputError(
                f"the covariance of layer {self.layer} from {self.tokens} tokens is not positive definite with a "
                f"shrinkage of {shrinkage:g}; take more tokens or a larger shrinkage, such as {SHRINKAGE:g}"
            )
        return factor.mT


def _device(model: Model, layer: int) -> torch.device:
    """Where a layer's covariance is solved: where its weights are, unless there is no float64."""
    device = model.down(layer).weight.device
    return device if device.type == "cuda" else torch.device("cpu")


def kept_statistics() -> TensorCache:
    """The cache's folder for covariances, their factors and the keys that join them."""
    return TensorCache(cache_root() / "covariance")


def default_tokens(model: Model) -> int:
    """How many tokens C is estimated from where nothing else is asked for: four a neuron, and at least 8192."""
    return max(8192, 4 * model.n_neurons)


def covariance(
    model: Model,
    layers: Sequence[int],
    *,
    source: str | Corpus | None = None,
    tokens: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    few: bool = False,
    weights_hash: str | None = None,
    progress: Progress = silent,
) -> dict[int, Covariance]:
    """C of the keys of `layers` of the unedited model, from the cache where it is there.

    - `source`: as `corpus` takes it; by default the model's own samples, for a masked model the built-in facts.
    - `tokens`: exactly so many; None for `default_tokens`, or all of a text that has fewer.
    - `seed`: for samples.
    - `cache`: a folder; None for `kept_statistics`.
    - `weights_hash`: that of the unedited model, if it is known.
    - `few`: also with fewer than `MINIMUM` tokens a neuron.
    - `progress`: counts tokens.

    Two processes at once do the work once. Raises `InputError` for layers, a source or a budget that cannot be used,
    a text that is too short, and `ModelError` where the cache cannot be written.
    """
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
        raise InputError(f"the layers are {layers!r}, expected one or more of 0 to {model.n_layers - 1} in a list")
    layers = sorted({model.check_layer(layer) for layer in layers})
    budget = default_tokens(model) if tokens is None else tokens
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise InputError(f"{tokens!r} tokens are wanted, expected a number from 1 on")
    _check_enough(model, budget, few)
    text = corpus(source or ("builtin" if model.masked else "samples"), seed=seed)
    with unedited(model), ExitStack() as stack:
        weights = weights_hash or model.weights_hash()
        if altered := bears_hooks(model.hf):  # what comes of it is none of these weights'
            cache = stack.enter_context(TemporaryDirectory())
        if cache is None:
            text = kept_for(text, weights)
        request = {
            "weights": weights,
            "dtype": str(model.dtype),
            "tokens": budget,
            "source": text.identity(model),
        }
        kept = kept_statistics() if cache is None else TensorCache(Path(cache))
        covariances = _cached(kept, request, layers, model)
        if missing := [layer for layer in layers if layer not in covariances]:
            run = key_of({**request, "layers": missing})
            with kept.locked(run):
                covariances |= _cached(kept, request, missing, model)  # of another process, while this one waited
                missing = [layer for layer in missing if layer not in covariances]
                if missing:
                    covariances |= _computed(model, missing, text, request, kept, run, progress)
    counted = min(C.tokens for C in covariances.values())
    if tokens is not None and counted < tokens:
        raise InputError(
            f"the text holds {counted} tokens, {tokens} are wanted; give a longer text or tokens={counted}"
        )
    _check_enough(model, counted, few)
    return {layer: replace(covariances[layer], kept=None) if altered else covariances[layer] for layer in layers}


def _check_enough(model: Model, tokens: int, few: bool) -> None:
    needed = MINIMUM * model.n_neurons
    if tokens < needed and not few:
        raise InputError(
            f"{tokens} tokens are too few for the covariance of {model.n_neurons} neurons, expected {needed} or more; "
            "take more tokens or a longer text (few=True in Python goes on all the same)"
        )


def _cached(kept: TensorCache, request: dict, layers: Sequence[int], model: Model) -> dict[int, Covariance]:
    covariances = {}
    for layer in layers:
        key = key_of({**request, "layer": layer})
        if read := kept.read(key, {"C": (model.n_neurons, model.n_neurons)}):
            record, tensors = read
            covariances[layer] = Covariance(
                layer, tensors["C"], record["tokens"], record["source"], _device(model, layer), kept
            )
    return covariances


def _computed(
    model: Model,
    layers: Sequence[int],
    text: Corpus,
    request: dict,
    kept: TensorCache,
    run: str,
    progress: Progress,
) -> dict[int, Covariance]:
    sums, done = _kept_sums(model, layers, kept, run)
    last = time.monotonic()
    for rows in text.batches(model, request["tokens"], done):
        parts = map(list, rows.split(BATCH_ROWS))
        for _, keys in halving(model, parts, partial(_keys, model, layers), "rows of text"):
            added = min(len(keys[layers[0]]), request["tokens"] - done)
            for layer, C in sums.items():
                k = keys[layer][:added].to(C)
                C.addmm_(k.T, k)
            done += added
            progress(done)
        if done == request["tokens"]:
            break
        if time.monotonic() - last >= _SAVE_SECONDS:
            kept.write(run, {"tokens": done}, {str(layer): C.cpu() for layer, C in sums.items()}, part=True)
            last = time.monotonic()
    if not done:
        raise InputError("the text holds no tokens; give a text that is not empty")
    covariances = {}
    for layer in layers:
        C = sums.pop(layer)
        C = (C + C.T) / (2 * done)  # a product kᵀk is symmetric only up to rounding
        covariances[layer] = Covariance(layer, C, done, request["source"], _device(model, layer), kept)
        record = {"layer": layer, "tokens": done, "source": request["source"]}
        kept.write(key_of({**request, "layer": layer}), record, {"C": covariances[layer].C})
    kept.remove(run)
    return covariances


def _kept_sums(model: Model, layers: Sequence[int], kept: TensorCache, run: str) -> tuple[dict[int, Tensor], int]:
    """Sums of k kᵀ by layer and how many keys are in them, of a run that was cut short or of none."""
    shape = (model.n_neurons, model.n_neurons)
    devices = {layer: model.down(layer).weight.device for layer in layers}
    devices = {layer: "cpu" if device.type == "meta" else device for layer, device in devices.items()}
    if read := kept.read(run, {str(layer): shape for layer in layers}, part=True):
        record, tensors = read
        return {layer: tensors[str(layer)].to(devices[layer]) for layer in layers}, record["tokens"]
    return {layer: torch.zeros(shape, device=devices[layer]) for layer in layers}, 0


@torch.no_grad()
def _keys(model: Model, layers: Sequence[int], part: list[Tensor]) -> dict[int, Tensor]:
    """Of each layer the keys of the text's tokens in some rows of token ids, (tokens, n_neurons)."""
    text, rows = text_of(model), torch.stack(part)
    keys: dict[int, Tensor] = {}

    def keeping(layer: int) -> Callable[[Tensor], None]:
        def keep(x: Tensor) -> None:
            keys[layer] = x.reshape(*rows.shape, -1)[:, text].flatten(0, 1)
            if layer == layers[-1] and not offloaded:
                raise Enough

        return keep

    offloaded = model.offloaded
    with ending_early(), hooked(*(on_input(model.down(layer), keeping(layer)) for layer in layers)):
        if model.masked:
            model.run(rows, attention_mask=torch.ones_like(rows))
        else:
            model.run(rows, use_cache=model.cached)  # without a cache transformers looks, and waits, for packed rows
    return keys


def _checked_shrinkage(shrinkage: float | None) -> float:
    shrinkage = SHRINKAGE if shrinkage is None else shrinkage
    if isinstance(shrinkage, bool) or not isinstance(shrinkage, int | float) or not 0 <= shrinkage < math.inf:
        raise InputError(f"the shrinkage is {shrinkage!r}, expected a number from 0 on, such as {SHRINKAGE:g}")
    return float(shrinkage)
