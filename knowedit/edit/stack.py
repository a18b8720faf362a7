"""The edits on one transformers model, and what it takes to take them off: the machinery behind `apply.py`.

The first edit that touches a weight in place keeps a copy of it, W. From then on the weight is always
W + ΔW₁ + ΔW₂ + … of the edits that are on it, in order of application, added in float32 (float64 for float64 weights)
and rounded once. So a weight depends on the edits that are on it and on nothing that happened before.

What was written last is remembered by its hash: a weight that holds something else was changed by somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import ModelError
from ..hooks import as_it_is, compile_again, on_pass, uncompiled
from ..models.adapter import Model
from .delta import Change, Delta, weight_hash

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_stacks: WeakKeyDictionary = WeakKeyDictionary()  # transformers model → Stack, which must not hold the model
_stacks_lock = Lock()


def stack_of(model: Model) -> Stack:
    """The one stack of the transformers model in `model`, whoever wrapped it. A deep copy of that has another."""
    with _stacks_lock:
        return _stacks.setdefault(model.hf, Stack())


@dataclass(eq=False, frozen=True)
class Entry:
    """One application of an edit, `"in-place"` or by `"hook"`."""

    edit: Change
    mode: str


@dataclass
class Base:
    """A touched weight: its unedited copy, seen as (out, in), and the hash of what was last written in its place."""

    weight: Tensor
    transposed: bool  # the module stores (in, out)
    written: str = ""


@dataclass
class HookedDelta:
    """A hook that adds Σ ΔW x to a module's output, in float32 at least, rounded once."""

    deltas: list[Delta] = field(default_factory=list)
    aside: bool = False

    def __call__(self, x: Tensor, output: Tensor) -> Tensor:
        if self.aside or not self.deltas:
            return output
        total = output.to(torch.promote_types(output.dtype, torch.float32))
        for delta in self.deltas:
            total = total + delta.of(x)
        return total.to(output.dtype)


class Stack:
    """The edits on one model, in order of application: `entries`."""

    def __init__(self):
        self.entries: tuple[Entry, ...] = ()
        self.aside = False
        self._bases: dict[str, Base] = {}  # by module path
        self._hooks: dict[str, tuple[HookedDelta, Any]] = {}  # by module path, with torch's removable handle
        self._lock = RLock()

    @contextmanager
    def held(self, *, even_aside: bool = False) -> Iterator[None]:
        """No other thread can change the stack while the context lasts: it gets a `ModelError`."""
        if not self._lock.acquire(blocking=False):
            raise ModelError(
                "another thread is editing this model or has an edit applied for a while; wait until it is done, "
                "or give each thread a model of its own"
            )
        try:
            if self.aside and not even_aside:
                raise ModelError(
                    "the edits of this model are set aside by `unedited`; apply and revert after its block"
                )
            yield
        finally:
            self._lock.release()

    def add(self, model: Model, entry: Entry) -> None:
        """Put an edit on top. Its paths must be down-projections of `model`, writable where it is in place."""
        self._become(model, (*self.entries, entry), entry)

    def remove(self, model: Model, entry: Entry, *, force: bool) -> None:
        """Take an edit off; with `force` also off weights that somebody else changed."""
        if entry.mode == "in-place":
            for path in entry.edit.deltas if force else ():
                self._adopt(model, path)
            if not force:
                self.check_unchanged(model, entry.edit.deltas)
        self._become(model, tuple(e for e in self.entries if e is not entry), entry)

    @contextmanager
    def set_aside(self, model: Model) -> Iterator[None]:
        """The model is as without edits while the context lasts, and bit for bit as it was afterwards."""
        self.check_unchanged(model, self._bases)
        hooks = [added for added, _ in self._hooks.values()]
        kept: dict[str, Tensor] = {}
        with uncompiled():
            try:
                self.aside = True
                for added in hooks:
                    added.aside = True
                for path, base in self._bases.items():
                    kept[path] = self._weight(model, path).clone()
                    self._copy(model, path, base.weight)
                yield
            finally:
                for path, weight in kept.items():
                    self._copy(model, path, weight)
                for added in hooks:
                    added.aside = False
                self.aside = False

    def check_unchanged(self, model: Model, paths: Iterable[str]) -> None:
        """Raise `ModelError` where a weight that is edited in place is not as the stack left it."""
        for path in paths:
            if (base := self._bases.get(path)) is None:
                continue
            weight = self._weight(model, path)
            was, now = (f"{tuple(w.shape)} {w.dtype} values".replace("torch.", "") for w in (base.weight, weight))
            if was == now and weight_hash(weight) == base.written:
                continue
            found = "its values are others" if was == now else f"its {was} are now {now}"
            raise ModelError(
                f"{path}.weight of {model.name} was changed by somebody else since it was edited ({found}) and is left "
                "as it is; undo that change first, or revert(force=True) the edit and lose that change"
            )

    def known_hashes(self, path: str) -> tuple[str, ...]:
        """`weight_hash` of a weight as it is and as it was unedited; empty where no edit in place touches it."""
        base = self._bases.get(path)
        return () if base is None else (base.written, weight_hash(base.weight))

    def _become(self, model: Model, entries: tuple[Entry, ...], changed: Entry) -> None:
        """Let the model follow from `self.entries` to `entries`, all or nothing; they differ by `changed`."""
        before, self.entries = self.entries, entries
        paths = list(changed.edit.deltas)
        try:
            for path in paths:
                self._touch(model, path, changed.mode)
                self._update(model, path, changed.mode, refuse_overflow=changed in entries)
        except BaseException:
            self.entries = before
            for path in paths:
                self._update(model, path, changed.mode)
            raise
        finally:
            for path in paths:
                self._forget(path)
            if changed.mode == "hook":
                compile_again()

    def _touch(self, model: Model, path: str, mode: str) -> None:
        """Keep what is needed to take edits off, the first time that one comes to `path`."""
        module = model.hf.get_submodule(path)
        if mode == "hook" and path not in self._hooks:
            added = HookedDelta()
            self._hooks[path] = added, on_pass(module, added)(as_it_is)
        elif mode == "in-place" and path not in self._bases:
            weight = model.down_weight(model.down_layers()[path])  # the parameter itself, or its transpose
            self._bases[path] = Base(weight.detach().clone(), transposed=weight is not module.weight)

    def _update(self, model: Model, path: str, mode: str, *, refuse_overflow: bool = False) -> None:
        """Bring `path` to what the entries of this mode ask for."""
        deltas = self._deltas(path, mode)
        if mode == "hook" and path in self._hooks:
            self._hooks[path][0].deltas[:] = deltas
        elif mode == "in-place" and path in self._bases:
            base = self._bases[path]
            new = _sum(base.weight, deltas)
            if refuse_overflow and not torch.isfinite(new).all() and torch.isfinite(base.weight).all():
                raise ModelError(
                    f"{path}.weight of {model.name} would leave the range of {new.dtype} by this edit; "
                    'load the model in float32, or apply the edit with mode="hook"'
                )
            self._copy(model, path, new)
            base.written = weight_hash(self._weight(model, path))

    def _forget(self, path: str) -> None:
        """Let go of what no edit needs any more."""
        if path in self._bases and not self._deltas(path, "in-place"):
            del self._bases[path]
        if path in self._hooks and not self._deltas(path, "hook"):
            self._hooks.pop(path)[1].remove()

    def _deltas(self, path: str, mode: str) -> list[Delta]:
        return [e.edit.deltas[path] for e in self.entries if e.mode == mode and path in e.edit.deltas]

    def _adopt(self, model: Model, path: str) -> None:
        """Let the copy follow a weight that somebody else brought to another type."""
        base, weight = self._bases[path], self._weight(model, path)
        if weight.shape != base.weight.shape or weight.dtype not in DTYPES:
            raise ModelError(
                f"{path}.weight of {model.name} is now {tuple(weight.shape)} {weight.dtype}, it was "
                f"{tuple(base.weight.shape)} {base.weight.dtype} when it was edited; load the model again"
            )
        base.weight = base.weight.to(weight.dtype)

    @torch.no_grad()
    def _copy(self, model: Model, path: str, values: Tensor) -> None:
        self._weight(model, path).copy_(values)

    def _weight(self, model: Model, path: str) -> Tensor:
        """A view of an edited weight as it is now, (out, in)."""
        weight = model.hf.get_submodule(path).weight.detach()
        if weight.device.type == "meta":
            raise ModelError(
                f"{path}.weight of {model.name} has no values any more (meta): it was offloaded since it was edited; "
                "bring the model back to where it was"
            )
        return weight.T if self._bases[path].transposed else weight


def _sum(base: Tensor, deltas: list[Delta]) -> Tensor:
    """W + Σ ΔW in the type and on the device of W, rounded once; W itself where there is no ΔW."""
    if not deltas:
        return base
    total = base.to(torch.promote_types(base.dtype, torch.float32), copy=True)
    for delta in deltas:
        total += delta.matrix().to(total)
    return total.to(base.dtype)
