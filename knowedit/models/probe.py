"""Does a model lie as its layout says? Asked once, with a few tokens, when the model is wrapped."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ..errors import LayoutError, ModelError
from ..hooks import hooked, measuring, on_input
from .adapter import Model
from .layouts import REMEDY
from .passes.batch import mask_arguments
from .passes.batches import padded
from .passes.corner import NORMALISED, corners
from .passes.replay import Recording, capture, leaves, record

PROBE_TOKENS = 4
_log = logging.getLogger(__name__)
_HIDDEN = ((0,), ("hidden_states",))  # replaced in every call


@torch.no_grad()
def probe(model: Model) -> None:
    """Check blocks, down-projections and head against the model's own output; learn which arguments grow with a batch.

    Raises `LayoutError` with the remedy where they disagree, `ModelError` for weights that are not finite.
    """
    _check_finite(model)
    ids = [(7 * i + 5) % model.vocabulary for i in range(PROBE_TOKENS)]
    tokens = torch.tensor([ids], device=model.device)
    wanted = _own_logits(model, tokens)
    if not torch.isfinite(wanted).all():
        raise ModelError(f"{model.name} answers with NaN or infinite logits; its weights are damaged")
    try:
        _check_passes(model, ids, wanted)
    except Exception as error:
        if not model.cached:
            raise
        _check_causal(model, tokens, wanted)
        _log.info("%s is run on whole prompts: blocks cannot go on from what its cache holds (%s)", model.name, error)
        model.cached = False
        _check_passes(model, ids, wanted)


def _check_passes(model: Model, ids: list[int], wanted: Tensor) -> None:
    one, two = (_padded(model, ids, rows) for rows in (1, 2))
    _check_sites(model, one)
    model.row_dims = [_row_dims(a, b) for a, b in zip(one[0], two[0], strict=True)]
    _check_equal(model, _head(model, one[3])[:, : len(ids)], wanted, "the head after the last block")
    recording = record(model, ids, start=len(ids) - 1)
    _check_replay(model, recording, wanted)
    _check_down_matters(model, recording)
    model.normalised = corners(recording, 0, [[-1]])[0] < NORMALISED


def _padded(model: Model, ids: list[int], rows: int):
    """A pass of `ids` as several prompts of different lengths make it: with padding, a mask and their positions."""
    tokens, seen = padded([ids] * rows, columns=len(ids) + 1)
    more = {} if model.masked else mask_arguments(model, seen, torch.arange(len(ids) + 1).expand_as(tokens))
    mask = more.pop("attention_mask", seen).to(model.device)
    return capture(model, tokens.to(model.device), mask=mask, **more)


def _check_finite(model: Model) -> None:
    for name, weight in model.hf.named_parameters():
        if (
            weight.device.type != "meta"
            and weight.is_floating_point()
            and not torch.isfinite(weight.sum(dtype=torch.float32))
        ):
            raise ModelError(f"the weight {name} of {model.name} holds NaN or infinite values; load a sound copy")


def _own_logits(model: Model, tokens: Tensor) -> Tensor:
    with measuring(model.hf):
        return model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def _check_sites(model: Model, run) -> None:
    calls, _, neurons, _ = run
    if len(calls) != model.n_layers or len(neurons) != model.n_layers:
        raise LayoutError(
            f"{model.name}: one pass called {len(calls)} blocks and {len(neurons)} down-projections, "
            f"expected {model.n_layers} of each; {REMEDY}"
        )
    for layer, values in enumerate(neurons):
        if model.down_shape(layer) != (model.d_model, model.n_neurons) or values.shape[-1] != model.n_neurons:
            raise LayoutError(
                f"{model.down_path(layer)} maps {values.shape[-1]} → {model.down_shape(layer)[0]}, "
                f"layer 0 has {model.n_neurons} → {model.d_model}; knowedit needs the same in every layer"
            )


def _head(model: Model, hidden: Tensor) -> Tensor:
    try:
        return model.logits(model.normed(hidden))
    except (RuntimeError, TypeError) as error:  # a missing projection, or a step that is no module to call
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LayoutError(
            f"{model.name}: the layout's head {model.layout.final} cannot run ({reason}); {REMEDY}"
        ) from None


def _row_dims(one: tuple, two: tuple) -> dict[tuple, int]:
    """For each tensor argument of a block's call, the dimension that doubles when the batch does."""
    dims = {}
    for (path, a), (_, b) in zip(leaves(list(one)), leaves(list(two)), strict=True):
        path = path[1:]
        if torch.is_tensor(a) and a.shape != b.shape and path not in _HIDDEN:
            dims[path] = next(d for d in range(a.dim()) if a.shape[d] != b.shape[d])
    return dims


def _check_replay(model: Model, recording: Recording, wanted: Tensor) -> None:
    hidden = recording.inputs[0].repeat(2, 1, 1)
    for layer in range(model.n_layers):
        hidden = recording.block(layer, hidden)
    rows = model.logits(model.normed(hidden))[:, -1]
    what = "blocks called again" + " on a cached prefix" * model.cached
    _check_equal(model, rows, wanted[:, -1].expand_as(rows), what)


def _check_causal(model: Model, tokens: Tensor, wanted: Tensor) -> None:
    if _gap(_own_logits(model, tokens[:, :-1]), wanted[:, :-1]) > _allowed(wanted):
        raise ModelError(
            f"in {model.name} ({model.config.model_type}) tokens see those behind them, and it is no masked language "
            "model; knowedit takes decoders and masked language models"
        )


def _check_down_matters(model: Model, recording: Recording) -> None:
    outputs = []
    for change in (None, torch.zeros_like):
        with hooked(*([on_input(model.down(0), change)] if change else [])):
            outputs.append(recording.block(0, recording.inputs[0]))
    if torch.equal(*outputs):
        raise LayoutError(f"{model.down_path(0)} does not influence the output; {REMEDY}")


def _check_equal(model: Model, found: Tensor, wanted: Tensor, what: str) -> None:
    gap = _gap(found, wanted)
    if not gap <= _allowed(wanted):
        raise LayoutError(
            f"{model.name}: {what} gives other logits than the model itself (off by {gap:.1e} of the largest); {REMEDY}"
        )


def _gap(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest of what is wanted."""
    return (found.float() - wanted.float()).abs().max().item() / (wanted.float().abs().max().item() or 1.0)


def _allowed(wanted: Tensor) -> float:
    return 1e-3 if wanted.dtype in (torch.float32, torch.float64) else 5e-2
