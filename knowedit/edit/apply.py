"""Edits on a model: put on, listed, set aside and taken off in any order, never by subtraction.

    handle = knowedit.apply(model, edit)
    with applied(model, other):
        ...
    handle.revert()

The edits on a transformers model form one stack, whoever wrapped it. Taking one off computes the weight again from
its unedited copy and the edits that stay (`stack.py`), so nothing of it remains, not even a rounding; taking off the
last brings the bits of the copy back. With `mode="hook"` no weight is touched: Σ ΔW x is added to what the
down-projection gives out, for weights that are packed, offloaded or shared. What would silently do nothing, or more
than was asked for, is refused before anything is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import InputError, ModelError, did_you_mean
from ..models.adapter import Model
from .delta import Change, weight_hash
from .stack import DTYPES, Entry, Stack, stack_of

MODES = ("in-place", "hook")


class Handle:
    """One application of `edit` to `model`. Handles are equal that stand for the same application."""

    def __init__(self, model: Model, stack: Stack, entry: Entry):
        self.model = model
        self._stack = stack
        self._entry = entry

    @property
    def edit(self) -> Change:
        return self._entry.edit

    @property
    def mode(self) -> str:
        """`"in-place"` or `"hook"`."""
        return self._entry.mode

    @property
    def active(self) -> bool:
        """False once it is reverted. An edit that `unedited` has set aside is still active."""
        return self._entry in self._stack.entries

    def revert(self, *, force: bool = False) -> None:
        """Take the edit off: each weight then has the bits it would have, had only the other edits been applied.

        With `force` also weights that were changed by somebody else meanwhile are computed from their copies, and
        the foreign change is lost. Raises `InputError` where it was reverted before, `ModelError` where a weight was
        changed by somebody else, or another thread is at work; nothing is undone then.
        """
        with self._stack.held():
            if not self.active:
                raise InputError(
                    f"this edit of {self.model.name} was reverted before; edits_on(model) lists the others"
                )
            self._stack.remove(self.model, self._entry, force=force)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and self._entry is other._entry

    def __hash__(self) -> int:
        return id(self._entry)

    def __repr__(self) -> str:
        state = self.mode if self.active else "reverted"
        return f"Handle({self.edit.method!r} on {', '.join(self.edit.deltas)} of {self.model.name!r}, {state})"


def apply(model: Model, edit: Change, *, mode: str = "in-place", any_base: bool = False) -> Handle:
    """Put `edit` on `model`, above those that are on it, until its handle is reverted.

    **Arguments:**

    - `mode`: `"in-place"` changes the weights; `"hook"` adds ΔW x to outputs instead and costs a little in each pass.
    - `any_base`: also on weights that the edit was not made for.

    Raises `InputError` for a module that is no down-projection or has another shape, `ModelError` for other weights
    than the edit was made for and where it cannot be applied in this mode; the model is as it was then.
    """
    if mode not in MODES:
        raise InputError(f"an edit is applied {mode!r}, expected 'in-place' or 'hook'{did_you_mean(str(mode), MODES)}")
    stack = stack_of(model)
    with stack.held():
        layers = layers_of(model, edit)
        if mode == "in-place":
            for path, layer in layers.items():
                _check_writable(model, path, layer)
        stack.check_unchanged(model, layers)
        if not any_base:
            _check_bases(model, edit, layers, stack)
        entry = Entry(edit, mode)
        stack.add(model, entry)
        return Handle(model, stack, entry)


@contextmanager
def applied(model: Model, edit: Change, *, mode: str = "in-place", any_base: bool = False) -> Iterator[Handle]:
    """`edit` is on `model` while the context lasts; it is reverted at its end, also by an exception.

    Meanwhile no other thread may apply or revert anything on this model. Errors are those of `apply` and `revert`.
    """
    with stack_of(model).held():
        handle = apply(model, edit, mode=mode, any_base=any_base)
        try:
            yield handle
        finally:
            if handle.active:
                handle.revert()


@contextmanager
def stacked(model: Model, edits: Sequence[Change], *, mode: str = "in-place") -> Iterator[None]:
    """All of `edits`, one above the other, are on `model` while the context lasts. Errors are those of `applied`."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(applied(model, edit, mode=mode))
        yield


def edits_on(model: Model) -> tuple[Handle, ...]:
    """The edits on `model` in order of application, also those applied by way of another wrap of it."""
    stack = stack_of(model)
    return tuple(Handle(model, stack, entry) for entry in stack.entries)


@contextmanager
def unedited(model: Model) -> Iterator[None]:
    """`model` is as without any of its edits while the context lasts, and bit for bit as it was afterwards.

    Nothing can be applied or reverted meanwhile. Raises `ModelError` where an edited weight was changed by somebody
    else, or another thread is at work.
    """
    stack = stack_of(model)
    with stack.held(even_aside=True):
        if stack.aside:
            yield
        else:
            with stack.set_aside(model):
                yield


# ---------------------------------------------------------------- what is refused


def layers_of(model: Model, edit: Change) -> dict[str, int]:
    """Module path → layer, for each weight of the edit.

    Raises `InputError` for a module that is no down-projection of `model` or has another shape there.
    """
    known = model.down_layers()
    for path, delta in edit.deltas.items():
        if path not in known:
            raise InputError(
                f"the edit is for {path!r}, which is no down-projection of {model.name}, expected paths like "
                f"{model.down_path(0)!r}{did_you_mean(path, known)}"
            )
        if delta.shape != model.down_shape(known[path]):
            raise InputError(
                f"the edit of {path} is {delta.shape}, the weight of {model.name} there is "
                f"{model.down_shape(known[path])} (out, in); use a model of that shape"
            )
    return {path: known[path] for path in edit.deltas}


def _check_writable(model: Model, path: str, layer: int) -> None:
    module = model.down(layer)
    module = getattr(module, "base_layer", module)  # below an adapter
    weight = module._parameters.get("weight")
    if hasattr(module, "_hf_hook") or (weight is not None and weight.device.type == "meta"):
        found = "is offloaded or placed by accelerate, where a change would be lost or never seen"
    elif weight is None:
        found = "is computed from other parameters (a parametrization)"
    elif not isinstance(module, nn.Linear | Conv1D):
        found = f"belongs to a {type(module).__name__}, which is neither a Linear nor a Conv1D"
    elif type(weight) is not nn.Parameter or weight.dtype not in DTYPES:
        found = f"is quantized or packed ({type(weight).__name__}, {weight.dtype})"
    elif weight.is_inference() and not torch.is_inference_mode_enabled():
        found = "was made in inference mode"
    elif other := _tied_to(model, path, weight):
        found = f"is tied to {other}, which would change with it"
    else:
        return
    raise ModelError(f'{path}.weight of {model.name} {found}; apply the edit with mode="hook"')


def _tied_to(model: Model, path: str, weight: nn.Parameter) -> str | None:
    """Another parameter that lies in the same memory. A storage may hold several that do not overlap."""
    start, end = _span(weight)
    for name, other in model.hf.named_parameters(remove_duplicate=False):
        name = name.replace("_orig_mod.", "").replace(".base_layer.", ".")  # what torch.compile and PEFT put around it
        if name != f"{path}.weight" and other.device == weight.device and type(other) is nn.Parameter:
            begin, stop = _span(other)
            if begin < end and start < stop:
                return name
    return None


def _span(weight: nn.Parameter) -> tuple[int, int]:
    return weight.data_ptr(), weight.data_ptr() + weight.numel() * weight.element_size()


def _check_bases(model: Model, edit: Change, layers: dict[str, int], stack: Stack) -> None:
    for path, layer in layers.items():
        found = stack.known_hashes(path) or (_hash_of(model, path, layer),)
        if edit.bases[path] not in found:
            made_on = f" (on {edit.model})" if edit.model else ""
            raise ModelError(
                f"the weight {path} of {model.name} is not the one that this edit was made for{made_on}: that had "
                "another edit on it, or is another model's or has other weights; put the other edit on first, or make "
                "this one anew (in Python any_base=True applies it nevertheless)"
            )


def _hash_of(model: Model, path: str, layer: int) -> str:
    weight = model.down_weight(layer)
    if weight.device.type == "meta":
        raise ModelError(f"{path}.weight of {model.name} has no values (meta); load its weights first")
    try:
        return weight_hash(weight)
    except (RuntimeError, TypeError, NotImplementedError):
        raise ModelError(
            f"{path}.weight of {model.name} is packed ({type(weight).__name__}), so it cannot be told whether the edit "
            "was made for it; apply it with any_base=True where you know that it was"
        ) from None
