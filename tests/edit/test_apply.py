"""Edits go on, come off in any order bit for bit, and are refused where they would do nothing or too much."""

import copy
import gc
import threading
import weakref
from contextlib import ExitStack
from itertools import permutations

import pytest
import torch
from support import tiny
from support.edits import random_edit, same, weights, with_edits
from support.rounding import assert_near

from knowedit import InputError, Layout, ModelError, wrap
from knowedit.edit import apply as applying, stack as stacks
from knowedit.edit.apply import applied, apply, edits_on, unedited
from knowedit.edit.delta import LowRank
from knowedit.edit.edit import Edit

IDS = torch.tensor([[5, 17, 3, 40, 8, 21]])
FAMILIES = ["gpt2", "llama", "bert"]  # Conv1D, Linear, Linear with a bias
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def logits(model, ids=IDS):
    with torch.no_grad():
        return model.hf(input_ids=ids).logits


def all_weights(model):
    return {name: weight.detach().clone() for name, weight in model.hf.state_dict().items()}


def unchanged(model, before):
    after = model.hf.state_dict()
    return all(torch.equal(after[name], weight) for name, weight in before.items())


def refused(error, model, edit, *said, **options):
    """Applying raises `error`, once and for all in one line, and changes nothing."""
    before = edits_on(model)
    with pytest.raises(error) as caught:
        apply(model, edit, **options)
    assert type(caught.value) is error and "\n" not in str(caught.value)
    for text in said:
        assert text in str(caught.value), str(caught.value)
    assert edits_on(model) == before


# ---------------------------------------------------------------- on and off


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_applied_rounds_once_and_comes_off_bit_for_bit(family, dtype):
    model = tiny.tiny(family, dtype)
    base, before = weights(model), all_weights(model)
    edit = random_edit(model, 0, 2, rank=2)
    storage = [parameter.data_ptr() for parameter in model.hf.parameters()]
    with edit.applied(model) as handle:
        assert same(weights(model), with_edits(model, base, edit))
        assert not torch.equal(model.down_weight(0), base[0]) and torch.equal(model.down_weight(1), base[1])
        assert edits_on(model) == (handle,) and handle.active and handle.mode == "in-place"
        assert (handle.edit, handle.model) == (edit, model)
    assert unchanged(model, before) and not handle.active and edits_on(model) == ()
    assert storage == [parameter.data_ptr() for parameter in model.hf.parameters()]


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_order_of_reverting(family, dtype):
    model = tiny.tiny(family, dtype)
    base = weights(model)
    edits = [
        random_edit(model, 1, seed=1),
        random_edit(model, 1, seed=2, rank=0),
        random_edit(model, 0, 1, seed=3, rank=3, scale=30),  # so large that subtracting would leave traces
    ]
    for order in permutations(range(3)):
        handles = [apply(model, edit) for edit in edits]
        assert edits_on(model) == tuple(handles)
        left = dict(enumerate(edits))
        for which in order:
            handles[which].revert()
            del left[which]
            assert same(weights(model), with_edits(model, base, *left.values()))
    assert same(weights(model), base)


def test_the_output_follows():
    model = tiny.tiny("gpt2")
    edit = random_edit(model, 1)
    clean = logits(model)
    with applied(model, edit):
        assert (logits(model) - clean).abs().max() > 1e-2
    assert torch.equal(logits(model), clean)


def test_the_same_edit_twice():
    model = tiny.tiny("llama")
    base, edit = weights(model), random_edit(model, 1)
    first, second = apply(model, edit), apply(model, edit)
    assert first != second and same(weights(model), with_edits(model, base, edit, edit))
    first.revert()
    assert second.active and same(weights(model), with_edits(model, base, edit))
    second.revert()
    assert same(weights(model), base)


def test_an_edit_made_on_an_edited_model():
    model = tiny.tiny("llama")
    base = weights(model)
    first = random_edit(model, 1, seed=1)
    with applied(model, first) as handle:
        second = random_edit(model, 1, seed=2)  # its base is the edited weight
        assert second.bases != first.bases
        with applied(model, second):
            handle.revert()
            assert same(weights(model), with_edits(model, base, second))
        refused(ModelError, model, second, "not the one that this edit was made for")


def test_reverted_inside_its_context():
    model = tiny.tiny("gpt2")
    base = weights(model)
    with applied(model, random_edit(model, 0)) as handle:
        handle.revert()
        assert same(weights(model), base)
        with pytest.raises(InputError, match="reverted before"):
            handle.revert()
    assert same(weights(model), base)


def test_contexts_nest_with_handles_that_outlive_them():
    model = tiny.tiny("gpt2")
    base = weights(model)
    inner, outer, stays = (random_edit(model, 0, 1, seed=seed) for seed in range(3))
    with applied(model, outer):
        handle = apply(model, stays)
        with applied(model, inner, mode="in-place"):
            assert same(weights(model), with_edits(model, base, outer, stays, inner))
        assert same(weights(model), with_edits(model, base, outer, stays))
    assert same(weights(model), with_edits(model, base, stays)) and edits_on(model) == (handle,)


def test_two_wraps_of_one_model_share_its_edits():
    model = tiny.tiny("gpt2")
    other = wrap(model.hf, model.tokenizer, name="other")
    third = wrap(
        model.hf,
        model.tokenizer,
        layout=Layout("transformer.h", "attn", "attn.c_proj", ("transformer.ln_f",)),
    )
    base, edit = weights(model), random_edit(model, 1)
    handle = apply(model, edit)
    assert edits_on(other) == (handle,) and edits_on(other)[0].model is other
    with unedited(third):
        assert same(weights(model), base)
    edits_on(third)[0].revert()  # whose down-projections are others
    assert not handle.active and same(weights(model), base)


def test_a_deep_copy_is_a_model_of_its_own():
    model = tiny.tiny("gpt2")
    clean, edit = logits(model), random_edit(model, 0)
    for mode in ("in-place", "hook"):
        with applied(model, edit, mode=mode):
            edited = logits(model)
            twin = wrap(copy.deepcopy(model.hf), model.tokenizer)
            assert edits_on(twin) == ()
        assert torch.equal(logits(model), clean) and torch.equal(logits(twin), edited)


def test_nothing_is_kept_but_the_touched_weights_and_these_only_while_needed():
    model = tiny.tiny("llama")
    stack = stacks.stack_of(model)
    first, second = apply(model, random_edit(model, 1, seed=1)), apply(model, random_edit(model, 1, 2, seed=2))
    kept = {path: base.weight for path, base in stack._bases.items()}
    assert set(kept) == {model.down_path(1), model.down_path(2)}
    first.revert()
    assert stack._bases[model.down_path(1)].weight is kept[model.down_path(1)]
    second.revert()
    assert not stack._bases and not stack._hooks


@pytest.mark.parametrize("mode", applying.MODES)
def test_an_edited_model_can_be_forgotten(mode):
    model = tiny.tiny("gpt2")
    apply(model, random_edit(model, 1), mode=mode)
    gone = weakref.ref(model.hf)
    del model
    gc.collect()
    assert gone() is None


def test_gradients_and_flags_stay():
    model = tiny.tiny("llama")
    weight = model.down(1).weight
    weight.requires_grad_(True)
    with applied(model, random_edit(model, 1)):
        assert model.down(1).weight is weight and weight.requires_grad and weight.is_leaf and weight.grad is None
        model.hf(input_ids=IDS).logits.sum().backward()
    assert weight.grad is not None


def test_inside_inference_mode():
    model = tiny.tiny("gpt2")
    base, edit = weights(model), random_edit(model, 1)
    with torch.inference_mode():
        handle = apply(model, edit)
    assert same(weights(model), with_edits(model, base, edit))
    handle.revert()
    assert same(weights(model), base)


# ---------------------------------------------------------------- by hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_do_what_changed_weights_do(family):
    model = tiny.tiny(family)
    before, edit = all_weights(model), random_edit(model, 0, 2, rank=2)
    clean = logits(model)
    with applied(model, edit):
        wanted = logits(model)
    with applied(model, edit, mode="hook") as handle:
        assert unchanged(model, before) and handle.mode == "hook"
        assert_near(logits(model), wanted)
    assert torch.equal(logits(model), clean)
    assert not any(module._forward_hooks for module in model.hf.modules())


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_hooks_come_off_in_any_order(family, dtype):
    model, fresh = tiny.tiny(family, dtype), tiny.tiny(family, dtype)
    edits = [random_edit(model, 1, seed=seed, rank=rank) for seed, rank in enumerate((1, 0, 2))]
    clean = logits(model)
    for order in permutations(range(3)):
        handles = [apply(model, edit, mode="hook") for edit in edits]
        left = dict(enumerate(edits))
        for which in order:
            handles[which].revert()
            del left[which]
            found = logits(model)
            with ExitStack() as only:
                for edit in left.values():
                    only.enter_context(applied(fresh, edit, mode="hook"))
                assert torch.equal(found, logits(fresh))
    assert torch.equal(logits(model), clean)


def test_hooks_round_once():
    """Two halves of a step that each is lost in bfloat16 make one that is not."""
    model = tiny.tiny("llama", torch.bfloat16)
    out, neurons = model.down_shape(1)
    edit = random_edit(model, 1)
    half = Edit({model.down_path(1): LowRank(torch.full((out, 1), 2.0**-8), torch.eye(neurons)[:, :1])}, edit.bases, "")
    x = torch.zeros(1, neurons, dtype=torch.bfloat16)
    x[0, 0] = 1
    with torch.no_grad():
        model.down(1).weight[:, 0] = 1  # between 1 and 2 the numbers of bfloat16 are 2⁻⁷ apart
        with applied(model, half, mode="hook", any_base=True):
            assert (model.down(1)(x) == 1).all()
            with applied(model, half, mode="hook", any_base=True):
                assert (model.down(1)(x) == 1 + 2.0**-7).all()
        with applied(model, half, any_base=True), applied(model, half, any_base=True):
            assert (model.down_weight(1)[:, 0] == 1 + 2.0**-7).all()


def test_both_modes_on_one_weight():
    model = tiny.tiny("gpt2")
    base, clean = weights(model), logits(model)
    hooked, placed = random_edit(model, 1, seed=1), random_edit(model, 1, seed=2)
    by_hook = apply(model, hooked, mode="hook")
    in_place = apply(model, placed)
    again = apply(model, hooked, mode="hook")
    assert [handle.mode for handle in edits_on(model)] == ["hook", "in-place", "hook"]
    by_hook.revert()
    in_place.revert()
    assert same(weights(model), base) and not torch.equal(logits(model), clean)
    again.revert()
    assert torch.equal(logits(model), clean)


# ---------------------------------------------------------------- set aside


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unedited(dtype):
    model = tiny.tiny("gpt2", dtype)
    before, clean = all_weights(model), logits(model)
    with unedited(model):
        assert unchanged(model, before)
    handles = apply(model, random_edit(model, 0, 1)), apply(model, random_edit(model, 1, seed=1), mode="hook")
    edited, answer = all_weights(model), logits(model)
    with pytest.raises(KeyError), unedited(model):
        assert torch.equal(logits(model), clean) and unchanged(model, before)
        with unedited(model):
            assert torch.equal(logits(model), clean)
        assert torch.equal(logits(model), clean)
        assert edits_on(model) == handles
        refused(ModelError, model, random_edit(model, 2), "set aside by `unedited`")
        with pytest.raises(ModelError, match="set aside"):
            handles[0].revert()
        raise KeyError
    assert unchanged(model, edited) and torch.equal(logits(model), answer)
    for handle in handles:
        handle.revert()
    assert unchanged(model, before)


# ---------------------------------------------------------------- exceptions


@pytest.mark.parametrize("mode", applying.MODES)
def test_an_exception_in_the_block(mode):
    model = tiny.tiny("llama")
    before, clean = all_weights(model), logits(model)
    with pytest.raises(KeyboardInterrupt), applied(model, random_edit(model, 1), mode=mode):
        raise KeyboardInterrupt
    assert unchanged(model, before) and torch.equal(logits(model), clean) and edits_on(model) == ()


@pytest.mark.parametrize("there_already", [0, 1])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_between_two_weights(monkeypatch, error, there_already):
    model = tiny.tiny("gpt2")
    base = weights(model)
    first, second = random_edit(model, 1, seed=1), random_edit(model, 0, 1, seed=2)
    handles = [apply(model, first) for _ in range(there_already)]
    copied, calls = stacks.Stack._copy, []

    def failing(self, model, path, values):
        calls.append(path)
        copied(self, model, path, values)  # the harm is done when it is said
        if len(calls) == 2:
            raise error("no memory")

    def happens(act):
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(stacks.Stack, "_copy", failing)
            act()

    happens(lambda: apply(model, second))
    assert same(weights(model), with_edits(model, base, *[first] * there_already))
    assert list(edits_on(model)) == handles
    last = apply(model, second)
    happens(last.revert)
    assert last.active and same(weights(model), with_edits(model, base, *[first] * there_already, second))
    for handle in [*handles, last]:
        handle.revert()
    assert same(weights(model), base) and not stacks.stack_of(model)._bases


def test_beyond_the_range_of_half_precision():
    model = tiny.tiny("gpt2", torch.float16)
    base = weights(model)
    large, small = random_edit(model, 0, 1, scale=1e5), random_edit(model, 0)
    handle = apply(model, small)
    refused(ModelError, model, large, "range of torch.float16", "float32")
    assert same(weights(model), with_edits(model, base, small))
    handle.revert()
    assert same(weights(model), base)


# ---------------------------------------------------------------- refused


def test_paths_that_are_no_down_projection():
    model = tiny.tiny("gpt2")
    edit = random_edit(model, 1)
    for path in ("transformer.h.1.mlp.c_fc", "transformer.h.9.mlp.c_proj", "", "../../x", "lm_head"):
        other = Edit(dict.fromkeys([path], edit.deltas[model.down_path(1)]), {path: ""}, "random")
        for mode in applying.MODES:
            refused(InputError, model, other, repr(path), "no down-projection of tiny-gpt2", mode=mode, any_base=True)
    close = Edit(
        dict.fromkeys(["transformer.h.1.mlp.cproj"], edit.deltas[model.down_path(1)]),
        {"transformer.h.1.mlp.cproj": ""},
        "",
    )
    refused(InputError, model, close, "did you mean 'transformer.h.1.mlp.c_proj'")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_wrong_shapes(family):
    model, wide = (
        tiny.tiny(family),
        tiny.tiny(family, **{"gpt2": {"n_inner": 40}, "llama": {"intermediate_size": 40}}[family]),
    )
    refused(InputError, model, random_edit(wide, 1), "(32, 40)", "(32, 48)", any_base=True)
    edit = random_edit(model, 1)
    ((path, delta),) = edit.deltas.items()
    refused(InputError, model, Edit({path: LowRank(delta.v, delta.u)}, edit.bases, ""), "(48, 32)", any_base=True)


def test_an_edit_for_other_weights():
    model, other = tiny.tiny("gpt2"), tiny.tiny("gpt2", seed=1)
    before, edit = all_weights(model), random_edit(other, 0, 2)
    for mode in applying.MODES:
        refused(ModelError, model, edit, "(on tiny-gpt2)", "other weights", "any_base=True", mode=mode)
        assert unchanged(model, before)
        with applied(model, edit, mode=mode, any_base=True):
            pass
    half = tiny.tiny("gpt2", torch.bfloat16)
    refused(ModelError, half, random_edit(model, 0), "other weights")
    mixed = Edit({**random_edit(model, 0).deltas, **edit.deltas}, {**edit.bases, **random_edit(model, 0).bases}, "")
    refused(ModelError, model, mixed, "transformer.h.2.mlp.c_proj")
    assert unchanged(model, before)


@pytest.mark.parametrize("mode", ["inplace", "", None, "hooks"])
def test_other_modes(mode):
    model = tiny.tiny("gpt2")
    refused(InputError, model, random_edit(model, 0), "expected 'in-place' or 'hook'", mode=mode)


def test_an_offloaded_model():
    from accelerate import cpu_offload

    model = tiny.tiny("llama")
    edit, clean = random_edit(model, 0, 1), logits(model)
    with applied(model, edit):
        wanted = logits(model)
    cpu_offload(model.hf, execution_device=torch.device("cpu"))
    refused(ModelError, model, edit, "offloaded", 'mode="hook"')
    with applied(model, edit, mode="hook"):
        assert_near(logits(model), wanted)
    assert torch.equal(logits(model), clean)
    refused(ModelError, model, random_edit(tiny.tiny("llama", seed=1), 0), "other weights", mode="hook")


def test_weights_without_values():
    model = tiny.tiny("llama")
    edit = random_edit(model, 0)
    model.down(0).to("meta")
    refused(ModelError, model, edit, "offloaded", 'mode="hook"')
    refused(ModelError, model, edit, "no values (meta)", mode="hook")


class Packed(torch.nn.Linear):
    """A Linear that keeps its weight in int8."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.scale = linear.weight.detach().abs().max() / 127
        packed = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale)


class Wrapped(torch.nn.Module):
    """Any other module around a Linear."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.weight = linear.weight
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x):
        return self.linear(x)


@pytest.mark.parametrize("kind, said", [(Packed, "quantized or packed"), (Wrapped, "belongs to a Wrapped")])
def test_other_modules(kind, said):
    hf = tiny.hf("llama")
    hf.model.layers[1].mlp.down_proj = kind(hf.model.layers[1].mlp.down_proj)
    model = wrap(hf, tiny.tokenizer("bpe-bos"))
    edit, clean = random_edit(model, 1), logits(model)
    refused(ModelError, model, edit, said, 'mode="hook"')
    with applied(model, edit, mode="hook"):
        assert not torch.equal(logits(model), clean)
    assert torch.equal(logits(model), clean)


def test_float8_is_packed_too():
    model = tiny.tiny("llama")
    module = model.down(1)
    module.weight = torch.nn.Parameter(module.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    refused(ModelError, model, random_edit(model, 1), "quantized or packed", "float8")


def test_a_parametrized_weight():
    model = tiny.tiny("llama")
    edit = random_edit(model, 1)
    torch.nn.utils.parametrizations.weight_norm(model.down(1))
    refused(ModelError, model, edit, "parametrization", any_base=True)


def test_tied_weights():
    hf = tiny.hf("llama")
    layers = hf.model.layers
    layers[1].mlp.down_proj.weight = layers[0].mlp.down_proj.weight
    model = wrap(hf, tiny.tokenizer("bpe-bos"))
    refused(ModelError, model, random_edit(model, 0), "tied to model.layers.1.mlp.down_proj.weight", 'mode="hook"')
    apply(model, random_edit(model, 2)).revert()
    apply(model, random_edit(model, 0), mode="hook").revert()
    # another parameter that shares the memory only
    layers[1].mlp.down_proj.weight = torch.nn.Parameter(layers[0].mlp.down_proj.weight.detach().view(32, 48))
    refused(ModelError, model, random_edit(model, 0), "tied to model.layers.1.mlp.down_proj.weight")


def test_weights_side_by_side_in_one_storage_are_not_tied():
    """As they are where a file is mapped into memory."""
    hf = tiny.hf("llama")
    downs = [layer.mlp.down_proj for layer in hf.model.layers]
    memory = torch.stack([down.weight.detach() for down in downs])
    for down, part in zip(downs, memory, strict=True):
        down.weight = torch.nn.Parameter(part)
    model = wrap(hf, tiny.tokenizer("bpe-bos"))
    base, edit = weights(model), random_edit(model, 1)
    with applied(model, edit):
        assert same(weights(model), with_edits(model, base, edit))
    assert same(weights(model), base)


def test_weights_of_inference_mode():
    model = tiny.tiny("llama")
    with torch.inference_mode():
        model.down(1).weight = torch.nn.Parameter(model.down(1).weight.detach().clone(), requires_grad=False)
    refused(ModelError, model, random_edit(model, 1), "inference mode")


# ---------------------------------------------------------------- somebody else's changes


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "harm, said",
    [
        (lambda w: w.data[0, 0].add_(1), "its values are others"),
        (lambda w: w.data[3].fill_(float("nan")), "its values are others"),
        (lambda w: setattr(w, "data", w.data.half()), "float32 values are now"),
        (lambda w: setattr(w, "data", w.data[:-1]), "float32 values are now"),
    ],
)
def test_a_weight_that_somebody_else_changed(family, harm, said):
    model = tiny.tiny(family)
    other, edit = random_edit(model, 0), random_edit(model, 0, 1, seed=1)
    apply(model, other)
    handle = apply(model, edit)
    harm(model.down(1).weight)
    before = all_weights(model)
    for act in (handle.revert, lambda: apply(model, edit), lambda: unedited(model).__enter__()):
        with pytest.raises(ModelError, match=said) as caught:
            act()
        assert "changed by somebody else" in str(caught.value) and "force=True" in str(caught.value)
    after = model.hf.state_dict()
    assert all(torch.equal(after[n].nan_to_num(7), w.nan_to_num(7)) for n, w in before.items())
    assert handle.active and len(edits_on(model)) == 2


def test_reverting_by_force():
    model = tiny.tiny("gpt2")
    base = weights(model)
    first, second = random_edit(model, 1, seed=1), random_edit(model, 1, seed=2)
    handles = apply(model, first), apply(model, second)
    model.down(1).weight.data[2, 3] = float("inf")
    handles[0].revert(force=True)
    assert same(weights(model), with_edits(model, base, second))
    handles[1].revert()
    assert same(weights(model), base)


def test_reverting_a_model_that_was_cast_meanwhile():
    model = tiny.tiny("llama")
    first, second = random_edit(model, 1, seed=1), random_edit(model, 1, seed=2)
    handles = apply(model, first), apply(model, second)
    model.hf.to(torch.bfloat16)
    base = weights(tiny.tiny("llama", torch.bfloat16))
    with pytest.raises(ModelError, match="are now .* bfloat16"):
        handles[0].revert()
    handles[0].revert(force=True)
    assert torch.equal(model.down_weight(1), with_edits(model, base, second)[1])
    handles[1].revert()
    assert same(weights(model), base)


@pytest.mark.parametrize("harm", [lambda m: m.to("meta"), lambda m: setattr(m.weight, "data", m.weight.data[:-1])])
def test_what_force_cannot_restore(harm):
    model = tiny.tiny("llama")
    handle = apply(model, random_edit(model, 1))
    harm(model.down(1))
    with pytest.raises(ModelError, match="meta|load the model again"):
        handle.revert(force=True)
    assert handle.active


def test_a_change_in_the_block_is_said():
    model = tiny.tiny("llama")
    base = weights(model)
    with pytest.raises(ModelError, match="changed by somebody else"), applied(model, random_edit(model, 1)):
        model.down(1).weight.data += 1
    (handle,) = edits_on(model)
    handle.revert(force=True)
    assert same(weights(model), base)


def test_not_a_number_that_stays_is_no_change():
    model = tiny.tiny("gpt2")
    model.down(1).weight.data[0, 0] = float("nan")
    bits = model.down(1).weight.detach().clone().view(torch.int32)
    with applied(model, random_edit(model, 1)):
        pass
    assert torch.equal(model.down(1).weight.detach().view(torch.int32), bits)


def test_weights_that_moved_meanwhile():
    """As `.to(device)` moves them: the same parameter with other memory, or another parameter."""
    model = tiny.tiny("gpt2")
    base, edit = weights(model), random_edit(model, 0, 1)
    handle = apply(model, edit)
    model.down(0).weight.data = model.down(0).weight.data.clone()
    model.down(1).weight = torch.nn.Parameter(model.down(1).weight.detach().clone())
    handle.revert()
    assert same(weights(model), base)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_model_that_moved_to_another_device():
    model = tiny.tiny("gpt2")
    base, edit = weights(model), random_edit(model, 0, 1)
    handle = apply(model, edit)
    model.hf.to("cuda")
    handle.revert()
    assert same([weight.cpu() for weight in weights(model)], base)
    with applied(model, edit):
        assert same([weight.cpu() for weight in weights(model)], with_edits(model, base, edit))


# ---------------------------------------------------------------- threads


def in_a_thread(act):
    """What `act` raises in another thread."""
    raised = []

    def run():
        try:
            act()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_another_thread():
    model = tiny.tiny("llama")
    base = weights(model)
    edit, other = random_edit(model, 1, seed=1), random_edit(model, 2, seed=2)
    handle = apply(model, edit)
    for context in (applied(model, other), unedited(model)):
        with context:
            before = all_weights(model)
            for act in (lambda: apply(model, other), handle.revert, lambda: unedited(model).__enter__()):
                error = in_a_thread(act)
                assert type(error) is ModelError and "another thread" in str(error)
            assert unchanged(model, before) and edits_on(model)[0] == handle
    assert in_a_thread(handle.revert) is None  # nobody is at work any more
    assert same(weights(model), base)
    assert in_a_thread(lambda: apply(model, other)) is None
    assert same(weights(model), with_edits(model, base, other))


def test_models_do_not_disturb_each_other():
    model, other = tiny.tiny("llama"), tiny.tiny("llama", seed=1)
    with applied(model, random_edit(model, 1)):
        assert in_a_thread(apply(other, random_edit(other, 1)).revert) is None
