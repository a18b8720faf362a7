"""The one hook API: look at, replace or count what goes into and out of modules, for as long as a context lasts.

    with hooked(on_input(module, fn)):
        model(ids)

Hooks are removed when the context ends, also by an exception. They act on calls by the thread that put them on, so
that a model can be measured in one thread while another one generates with it; an intervention acts on all threads'.
Code that torch compiled passes over hooks that came after it, so it runs as plain Python meanwhile, whatever was
compiled: a model, its blocks, a function around it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from .errors import InputError

Hook = Callable[..., Any]  # as torch calls it
Register = Callable[[Callable[[Hook], Hook]], Any]
"""Registers one hook, after what is given made another one of it, and returns torch's removable handle."""


def on_input(module: nn.Module, fn: Callable[[Tensor], Tensor | None]) -> Register:
    """Call `fn` with the module's first input; a tensor that it returns takes its place."""

    def pre_hook(_, args):
        new = fn(args[0])
        return None if new is None else (new, *args[1:])

    return lambda bound: module.register_forward_pre_hook(bound(pre_hook))


def on_output(module: nn.Module, fn: Callable[[Tensor], Tensor | None]) -> Register:
    """Call `fn` with the module's output (the first of several); a tensor that it returns takes its place."""

    def hook(_, __, output):
        new = fn(first(output))
        if new is None:
            return None
        return type(output)([new, *output[1:]]) if isinstance(output, tuple | list) else new

    return lambda bound: module.register_forward_hook(bound(hook))


def on_pass(module: nn.Module, fn: Callable[[Tensor, Tensor], Tensor]) -> Register:
    """Replace the module's output by `fn` of its first input and its output, both tensors.

    `fn` is kept as it is given, not inside a closure, so that a deep copy of the module gets a copy of it.
    """
    return lambda bound: module.register_forward_hook(bound(partial(_passed, fn)))


def _passed(fn: Callable[[Tensor, Tensor], Tensor], _, args, output):
    return fn(args[0], output)


def on_call(module: nn.Module, fn: Callable[[tuple, dict], None]) -> Register:
    """Call `fn(args, kwargs)` before the module runs, without changing anything."""

    def pre_hook(_, args, kwargs):
        fn(args, kwargs)

    return lambda bound: module.register_forward_pre_hook(bound(pre_hook), with_kwargs=True)


def on_return(module: nn.Module, fn: Callable[[Any], None], *, even_failed: bool = False) -> Register:
    """Call `fn` with all that the module returns, without changing anything; with `even_failed` also where it raises,
    with nothing then."""

    def hook(_, __, output):
        fn(output)

    return lambda bound: module.register_forward_hook(bound(hook), always_call=even_failed)


@contextmanager
def hooked(*registers: Register, every_thread: bool = False):
    """Register hooks for as long as the context lasts; they act on calls by this thread, or by `every_thread`."""
    bound = as_it_is if every_thread else _by_thread(get_ident())
    with uncompiled(), ExitStack() as stack:
        for register in registers:
            stack.callback(register(bound).remove)
        yield


def as_it_is(hook: Hook) -> Hook:
    return hook


def _by_thread(owner: int) -> Callable[[Hook], Hook]:
    """Hooks that do nothing in other threads than `owner`."""

    def bound(hook: Hook) -> Hook:
        return _Own(hook, owner)

    return bound


@dataclass(frozen=True)
class _Own:
    """A hook of one thread."""

    hook: Hook
    owner: int

    def __call__(self, *given: Any) -> Any:
        return self.hook(*given) if get_ident() == self.owner else None


class _Shared:
    """A state that threads have in common: it begins with the first of their contexts and ends with the last.

    `begin` brings it about and returns what ends it.
    """

    def __init__(self, begin: Callable[[], Callable[[], None]]):
        self.begin = begin
        self.lock = Lock()
        self.contexts = 0
        self.end: Callable[[], None] | None = None

    @contextmanager
    def __call__(self):
        with self.lock:
            if not self.contexts:
                self.end = self.begin()
            self.contexts += 1
        try:
            yield
        finally:
            with self.lock:
                self.contexts -= 1
                if not self.contexts and self.end is not None:
                    self.end()


def _plain_python() -> Callable[[], None]:
    stance = torch.compiler.set_stance("force_eager")
    return lambda: stance.__exit__(None, None, None)


_uncompiled = _Shared(_plain_python)


def uncompiled():
    """Run compiled code as plain Python while the context lasts."""
    return _uncompiled()


def compile_again() -> None:
    """Forget compiled code, after hooks that stay were put on or taken off: it has those that were there before.

    Parts that only differ by their hooks share no code from then on.
    """
    if dynamo := sys.modules.get("torch._dynamo"):  # nothing is compiled before it is imported
        dynamo.config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()


@contextmanager
def measuring(module: nn.Module):
    """Run `module` as it is measured while the context lasts: in evaluation mode and uncompiled. All its parts are in
    the modes they had afterwards.

    Raises `InputError` under `torch.autocast`, which rounds what is computed around the model as well, and for a model
    that is configured to give tuples.
    """
    if getattr(getattr(module, "config", None), "return_dict", True) is False:
        raise InputError("the model gives tuples, whose parts have no names; set its config.return_dict to True")
    for device in _devices(module):
        if torch.is_autocast_enabled(device):
            raise InputError(
                "torch.autocast is on, which rounds what is measured; leave it around this call by "
                f"torch.autocast({device!r}, enabled=False), or load the model in half precision"
            )
    with uncompiled(), _unplanned(), _evaluated.setdefault(module, _Shared(partial(_evaluating, ref(module))))():
        yield


def _evaluating(module: ref) -> Callable[[], None]:
    """Bring the parts of a module into evaluation mode."""
    training = [part for part in module().modules() if part.training]

    def train(mode: bool) -> None:
        for part in training:
            part.training = mode

    train(False)
    return partial(train, True)


def _without_plans() -> Callable[[], None]:
    """Keep cuDNN out of attention: it plans each shape anew, and ours are many and small."""
    planned = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    return partial(torch.backends.cuda.enable_cudnn_sdp, planned)


_unplanned = _Shared(_without_plans)
_evaluated: WeakKeyDictionary[nn.Module, _Shared] = WeakKeyDictionary()


def _devices(module: nn.Module) -> list[str]:
    """The kinds of devices that `module` may compute on: offloaded weights do not say which."""
    if (weight := next(module.parameters(), None)) is None:
        return []
    return ["cpu", "cuda"] if weight.device.type == "meta" else [weight.device.type]


@contextmanager
def differentiable():
    """Make tensors that gradients can go through while the context lasts, also inside of `torch.inference_mode()`."""
    gradients = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        yield


def first(output):
    """The tensor of a module's output, which may be a tuple, or a list (OpenAI GPT)."""
    return output[0] if isinstance(output, tuple | list) else output


def bears_hooks(module: nn.Module) -> bool:
    """Whether hooks may change what a module does, so that it does not do what its weights say.

    A measurement's own are none of them, nor is what a hook adds that is set `aside` for a while.
    """
    return any(
        not isinstance(hook, _Own) and not _is_aside(hook)
        for part in module.modules()
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    )


def unaltered(module: nn.Module, weights_hash: str | None) -> str | None:
    """The hash of a module's weights, by which a cache keeps what they do; None while hooks alter that."""
    return None if bears_hooks(module) else weights_hash


def _is_aside(hook: Hook) -> bool:
    return isinstance(hook, partial) and hook.func is _passed and getattr(hook.args[0], "aside", False)


class Enough(Exception):
    """Raised by a hook when all that a forward pass was for is there; `ending_early` takes it."""


@contextmanager
def ending_early():
    """End the forward pass inside when a hook raises `Enough`."""
    try:
        yield
    except Enough:
        pass
