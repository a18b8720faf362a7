"""Ten thousand random steps of applying and reverting: each weight is always what the edits that are on it make of it.

What a weight must be is written out in `edits.with_edits` and computed from the weights of the untouched model, so
it knows nothing of stacks, copies and hooks.
"""

import contextlib
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.edits import random_edit, same, weights, with_edits
from support.tiny import tiny

from knowedit import InputError
from knowedit.edit.apply import applied, apply, edits_on, unedited
from knowedit.edit.edit import load_edit, save_edit

STEPS = 10_000
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of small files, each for a moment
SMALL = {
    "gpt2": dict(n_embd=8, n_inner=10, n_head=2, n_layer=3),
    "llama": dict(hidden_size=8, intermediate_size=10, num_attention_heads=2, num_key_value_heads=1),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYERS = st.sampled_from([(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])  # few, so that edits share weights
MODES = st.sampled_from(["in-place", "in-place", "in-place", "hook"])


@cache
def model_of(family: str, dtype: torch.dtype):
    return tiny(family, dtype, **SMALL[family])


@cache
def base_of(family: str, dtype: torch.dtype):
    return weights(untouched(family, dtype))


@cache
def untouched(family: str, dtype: torch.dtype):
    """A twin to make edits on, for ours may be edited just then."""
    return tiny(family, dtype, **SMALL[family])


@cache
def edit_of(family: str, dtype: torch.dtype, layers: tuple[int, ...], rank: int, seed: int):
    """The larger the seed, the larger the edit: subtracting a large one would leave traces of its rounding."""
    return random_edit(untouched(family, dtype), *layers, rank=rank, seed=seed, scale=10.0**seed)


class Edits(RuleBasedStateMachine):
    steps = 0  # rules that ran, of all examples
    seen: set = set()

    handles = Bundle("handles")
    contexts = Bundle("contexts")

    @initialize(family=st.sampled_from(sorted(SMALL)), dtype=st.sampled_from(DTYPES))
    def start(self, family, dtype):
        self.kind = family, dtype
        self.base = base_of(*self.kind)
        if not same(weights(model_of(*self.kind)), self.base):  # an example that failed left it so
            model_of.cache_clear()
        self.model = model_of(*self.kind)
        self.on: list = []  # (edit, mode, handle), in order of application
        self.open: list = []
        self.folder = Path(tempfile.mkdtemp(dir=IN_MEMORY))
        Edits.seen.add(self.kind)
        Edits.steps -= 1  # to start is no step, though it is checked like one

    def put(self, edit, mode, handle):
        self.on.append((edit, mode, handle))
        return handle

    def drop(self, handle):
        self.on = [entry for entry in self.on if entry[2] is not handle]

    @rule(target=handles, layers=LAYERS, rank=st.integers(0, 2), seed=st.integers(0, 2), mode=MODES)
    def apply(self, layers, rank, seed, mode):
        edit = edit_of(*self.kind, layers, rank, seed)
        return self.put(edit, mode, apply(self.model, edit, mode=mode))

    @rule(handle=consumes(handles))
    def revert(self, handle):
        handle.revert()
        self.drop(handle)
        with pytest.raises(InputError):
            handle.revert()

    @rule(target=contexts, layers=LAYERS, rank=st.integers(0, 2), seed=st.integers(0, 2), mode=MODES)
    def enter(self, layers, rank, seed, mode):
        edit = edit_of(*self.kind, layers, rank, seed)
        context = applied(self.model, edit, mode=mode)
        self.open.append(context)
        return context, self.put(edit, mode, context.__enter__())

    @rule(opened=consumes(contexts), error=st.sampled_from([None, ValueError, KeyboardInterrupt]))
    def leave(self, opened, error):
        """In any order, also by an exception, which comes through."""
        context, handle = opened
        with contextlib.nullcontext() if error is None else pytest.raises(error):
            if not context.__exit__(error, error and error(), None) and error:
                raise error
        self.open.remove(context)
        self.drop(handle)

    @rule(opened=contexts)
    def revert_inside(self, opened):
        _, handle = opened
        if handle.active:
            handle.revert()
            self.drop(handle)

    @rule(target=handles, layers=LAYERS, rank=st.integers(0, 2), seed=st.integers(0, 2))
    def save_load_apply(self, layers, rank, seed):
        edit = load_edit(save_edit(edit_of(*self.kind, layers, rank, seed), self.folder / "edit"))
        shutil.rmtree(self.folder / "edit")
        return self.put(edit, "in-place", apply(self.model, edit))

    @rule()
    def set_aside(self):
        with unedited(self.model):
            assert same(weights(self.model), self.base)

    @invariant()
    def each_weight_is_what_the_edits_on_it_make_of_it(self):
        if not hasattr(self, "on"):
            return
        Edits.steps += 1
        in_place = [edit for edit, mode, _ in self.on if mode == "in-place"]
        assert same(weights(self.model), with_edits(self.model, self.base, *in_place))
        assert edits_on(self.model) == tuple(handle for _, _, handle in self.on)
        for layer in range(self.model.n_layers):
            path = self.model.down_path(layer)
            hooked = any(mode == "hook" and path in edit.deltas for edit, mode, _ in self.on)
            assert len(self.model.down(layer)._forward_hooks) == hooked

    def teardown(self):
        if not hasattr(self, "on"):
            return
        for context in self.open:
            context.__exit__(None, None, None)
        for handle in edits_on(self.model):
            handle.revert()
        shutil.rmtree(self.folder)
        assert same(weights(self.model), self.base)


def test_ten_thousand_steps():
    Edits.steps = 0
    run_state_machine_as_test(
        Edits,
        settings=settings(
            max_examples=280,
            stateful_step_count=50,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Edits.steps >= STEPS
    assert Edits.seen == {(family, dtype) for family in SMALL for dtype in DTYPES}
