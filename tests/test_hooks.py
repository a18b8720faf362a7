"""Hooks see, replace, and are gone when their context ends."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from support.edits import random_edit
from support.tiny import tiny
from torch import nn

from knowedit.edit.apply import applied, unedited
from knowedit.hooks import (
    Enough,
    bears_hooks,
    ending_early,
    first,
    hooked,
    measuring,
    on_call,
    on_input,
    on_output,
    on_pass,
    on_return,
    uncompiled,
)


class Pair(nn.Module):
    def forward(self, x, scale=1.0):
        return x * scale, "kept"


def count(module):
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def test_looking_changes_nothing():
    module, seen = nn.Linear(3, 2), []
    x = torch.randn(4, 3)
    wanted = module(x)
    with hooked(on_input(module, seen.append), on_output(module, seen.append)):
        assert torch.equal(module(x), wanted)
    assert seen[0] is x
    assert torch.equal(seen[1], wanted)
    assert count(module) == 0


def test_replacing_inputs_and_outputs():
    module, x = nn.Linear(3, 2), torch.randn(4, 3)
    with hooked(on_input(module, torch.zeros_like)):
        assert torch.equal(module(x), module.bias.expand(4, 2))
    with hooked(on_output(module, lambda y: y + 1)):
        changed = module(x)
    assert torch.equal(changed, module(x) + 1)


def test_the_rest_of_tuples_and_arguments_is_kept():
    module, x = Pair(), torch.ones(2)
    with hooked(on_input(module, lambda v: v + 1)):
        assert torch.equal(module(x, 3.0)[0], 2 * 3.0 * x)
    with hooked(on_output(module, lambda v: v - 5)):
        value, rest = module(x)
    assert torch.equal(value, x - 5)
    assert rest == "kept"
    assert first((x, 1)) is first([x]) is x and first(x) is x


def test_calls_are_shown_with_keywords():
    module, calls = Pair(), []
    with hooked(on_call(module, lambda args, kwargs: calls.append((args, kwargs)))):
        module(torch.ones(1), scale=2.0)
    assert calls == [((torch.ones(1),), {"scale": 2.0})]


def test_hooks_apply_in_order():
    module = nn.Identity()
    with hooked(on_input(module, lambda x: x + 1), on_input(module, lambda x: x * 10)):
        assert module(torch.tensor(1.0)).item() == 20


def test_hooks_are_removed_by_exceptions_inside_and_within_a_hook():
    module = nn.Linear(2, 2)

    def fails(_):
        raise RuntimeError("inside")

    with (
        pytest.raises(RuntimeError, match="inside"),
        hooked(on_output(module, fails), on_input(module, lambda x: None)),
    ):
        module(torch.ones(1, 2))
    with pytest.raises(KeyError), hooked(on_input(module, lambda x: None)):
        assert count(module) == 1
        raise KeyError
    assert count(module) == 0


def test_hooks_registered_before_one_that_cannot_be_are_removed():
    module = nn.Linear(2, 2)
    with pytest.raises(AttributeError), hooked(on_input(module, lambda x: None), on_input(None, lambda x: None)):
        raise AssertionError("the body must not run")
    assert count(module) == 0


def test_hooks_act_on_calls_by_their_own_thread_unless_told_otherwise():
    module, x = nn.Linear(3, 2), torch.randn(4, 3)
    calls = []

    def enough(_):
        raise Enough

    def changing():
        return (
            on_input(module, torch.zeros_like),
            on_call(module, lambda *given: calls.append(given)),
            on_pass(module, lambda _, y: y + 1),
        )

    wanted = module(x)
    with ThreadPoolExecutor(1) as pool:
        with hooked(*changing(), on_output(module, enough)), ending_early():
            assert torch.equal(pool.submit(module, x).result(), wanted)
            assert not calls
            module(x)
            raise AssertionError("this thread's own call ends early")
        assert len(calls) == 1
        with hooked(*changing(), every_thread=True):
            assert torch.equal(pool.submit(module, x).result(), module.bias.expand(4, 2) + 1)
        assert len(calls) == 2
    assert count(module) == 0


def test_two_threads_that_measure_leave_modes_and_plans_as_they_were():
    module, planned = nn.Dropout().train(), torch.backends.cuda.cudnn_sdp_enabled()
    first_of_two, second = measuring(module), measuring(module)
    first_of_two.__enter__()
    second.__enter__()
    first_of_two.__exit__(None, None, None)
    assert not module.training and not torch.backends.cuda.cudnn_sdp_enabled()  # the second still lasts
    second.__exit__(None, None, None)
    assert module.training and torch.backends.cuda.cudnn_sdp_enabled() == planned


def test_a_hook_hears_of_a_call_that_failed_where_it_is_to():
    module, heard = nn.Linear(3, 2), []
    with hooked(on_return(module, heard.append), on_return(module, heard.append, even_failed=True)):
        with pytest.raises(RuntimeError):
            module(torch.ones(1, 4))
        assert heard == [None]


def test_only_hooks_that_change_what_weights_do_count():
    module = nn.Linear(3, 2)
    with hooked(on_output(module, lambda y: y + 1)):
        assert not bears_hooks(module)
    with hooked(on_output(module, lambda y: y + 1), every_thread=True):
        assert bears_hooks(module)
    assert not bears_hooks(module)
    handle = module.register_forward_hook(partial(lambda *_, scale: None, scale=2))  # of somebody else
    assert bears_hooks(module)
    handle.remove()
    model = tiny("llama")
    with applied(model, random_edit(model, 1), mode="hook"):
        assert bears_hooks(model.hf)
        with unedited(model):
            assert not bears_hooks(model.hf)


def test_contexts_of_two_threads_may_end_in_any_order():
    runs = []
    function = torch.compile(lambda x: x + 1, backend=lambda graph, _: lambda *inputs: runs.append(1) or graph(*inputs))
    first_of_two, second = uncompiled(), uncompiled()
    first_of_two.__enter__()
    second.__enter__()
    first_of_two.__exit__(None, None, None)
    function(torch.ones(1))
    assert not runs  # the second still lasts
    second.__exit__(None, None, None)
    function(torch.ones(1))
    assert runs == [1]
