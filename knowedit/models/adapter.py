"""The canonical view of a model.

    Model
    ├── hf, tokenizer          the transformers objects, untouched
    ├── n_layers, d_model, n_neurons
    ├── blocks[l]              a transformer block
    │   ├── attention(l)       its attention module: n_heads heads, joined (n_heads × head width)
    │   │   └── heads(l)       the projection from the joined heads → residual stream (d_model)
    │   └── down(l)            its down-projection: neurons (n_neurons) → residual stream (d_model)
    │       └── down_weight(l) always (out, in), whatever the module stores
    └── normed(h) → logits(x)  final norm, then unembedding with the family's scaling of logits

Neuron `(layer, index)` is coordinate `index` of the **input** of `down(layer)`, for plain and gated MLPs alike.
Only this file knows how a module stores its weight, and it decides by module type, never by shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.pytorch_utils import Conv1D

from ..errors import InputError, LayoutError, ModelError
from ..facts import Fact
from ..hooks import differentiable, measuring
from ..prompts import Prompt, Query, encode, query
from .arithmetic.split_product import product
from .checks import is_masked
from .layouts import REMEDY, Layout, heads_path
from .tensor_cache import parameters_hash

_BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


class Model:
    """A transformers model seen in one way, drawn at the top of this file. `knowedit.wrap` and `load` make one."""

    def __init__(self, hf: nn.Module, tokenizer, layout: Layout, name: str):
        self.hf = hf.eval()
        self.tokenizer = tokenizer
        self.layout = layout
        self.name = name
        self.masked = is_masked(hf)
        if not isinstance(self.blocks, nn.ModuleList) or not len(self.blocks):
            found = type(self.blocks).__name__
            raise LayoutError(f"{layout.blocks!r} is a {found}, expected a list of blocks; {REMEDY}")
        if len(self._without_attention()) == self.n_layers:
            _submodule(_submodule(self.blocks[0], layout.attention, "attention"), layout.heads, "heads")
        self.cached = not self.masked  # until the probe finds that blocks cannot be called again on what a cache holds
        self.d_model, self.n_neurons = self.down_shape(0)
        self._logit_scale, self._softcap = _logit_transform(self.config)
        self.row_dims: list[dict] | None = None  # set by the probe: which block arguments grow with the batch
        self.normalised = False  # set by the probe: whether blocks normalise what their MLP adds

    # modules are looked up when they are asked for: adapters, quantization and resized vocabularies put others in place

    @property
    def config(self):
        """transformers' config of the part that reads text."""
        return self.hf.config.get_text_config()

    @property
    def text(self) -> nn.Module:
        """The part that reads text, without the head."""
        return self.hf.get_submodule(self.layout.text) if self.layout.text else self.hf.base_model

    @property
    def blocks(self) -> nn.ModuleList:
        return _submodule(self.hf, self.layout.blocks, "blocks")

    @property
    def unembedding(self) -> nn.Module:
        if (head := self.hf.get_output_embeddings()) is None:
            found = type(self.hf).__name__
            raise LayoutError(f"{found} has no output embeddings; load it with its language-model head")
        return head

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.n_layers} layers × {self.n_neurons} neurons, {self.dtype})"

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def vocabulary(self) -> int:
        return self.unembedding.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.unembedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go; the parts of an offloaded model lie elsewhere."""
        device = self.hf.get_input_embeddings().weight.device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def offloaded(self) -> bool:
        """Whether accelerate moves weights in and out during a pass, which is to come to its end to give them back."""
        return any(hasattr(module, "_hf_hook") for module in self.hf.modules())

    def down(self, layer: int) -> nn.Module:
        return _submodule(self.blocks[self.check_layer(layer)], self.layout.down, "down")

    def attention(self, layer: int) -> nn.Module:
        """Raises `ModelError` for a block that mixes tokens in another way."""
        block = self.blocks[self.check_layer(layer)]
        if not self._attends(block):
            self.check_attention([layer])
        return block.get_submodule(self.layout.attention)

    def check_attention(self, layers: Sequence[int] | None = None) -> None:
        """Raise `ModelError` unless each of `layers` (all) has attention, where what is asked for needs it."""
        layers = range(self.n_layers) if layers is None else [self.check_layer(layer) for layer in layers]
        if without := [layer for layer in self._without_attention() if layer in layers]:
            raise ModelError(
                f"{self.name} ({self.config.model_type}) has no attention in layer{'s' * (len(without) > 1)} "
                f"{', '.join(map(str, without))}, which this needs in every layer; look at MLPs or states alone"
            )

    def _without_attention(self) -> list[int]:
        return [layer for layer, block in enumerate(self.blocks) if not self._attends(block)]

    def _attends(self, block: nn.Module) -> bool:
        return _has(block, f"{self.layout.attention}.{self.layout.heads}".strip("."))

    @property
    def attends(self) -> bool:
        """Every block has attention."""
        return not self._without_attention()

    def heads(self, layer: int) -> nn.Module:
        """The projection whose input are the outputs of a layer's attention heads, joined in their order."""
        attention = self.attention(layer)
        return _submodule(attention, heads_path(self.layout, attention), "heads")

    @property
    def n_heads(self) -> int:
        return self.config.num_attention_heads

    def heads_weight(self, layer: int) -> Tensor:
        """The weight of `heads(layer)`, (d_model, n_heads × head width): a view, or a copy where it is offloaded."""
        return _weight(self.heads(layer))

    def down_path(self, layer: int) -> str:
        """The module path of a down-projection inside `.hf`."""
        return f"{self.layout.blocks}.{self.check_layer(layer)}.{self.layout.down}"

    def down_layers(self) -> dict[str, int]:
        """The layer of each down-projection's module path."""
        return {self.down_path(layer): layer for layer in range(self.n_layers)}

    def down_weight(self, layer: int) -> Tensor:
        """The down-projection's weight, (d_model, n_neurons): a view of it, or a copy where it is offloaded."""
        return _weight(self.down(layer))

    def down_bias(self, layer: int) -> Tensor | None:
        return getattr(self.down(layer), "bias", None)

    def down_shape(self, layer: int) -> tuple[int, int]:
        """(d_model, n_neurons), from the module's own account of itself: packed weights have other shapes."""
        module = self.down(layer)
        if isinstance(module, Conv1D):
            return module.nf, module.nx
        if not hasattr(module, "in_features"):
            raise LayoutError(f"{self.down_path(layer)} is a {type(module).__name__}, expected a projection; {REMEDY}")
        return module.out_features, module.in_features

    def run(self, tokens: Tensor, **arguments):
        """What transformers gives for token ids (rows, length), without the head."""
        with measuring(self.hf):
            return self.text(input_ids=tokens, **arguments)

    def normed(self, hidden: Tensor) -> Tensor:
        """What the unembedding reads: the last block's output (…, d_model) after the final norm."""
        for path in self.layout.final:
            if (step := _step(self.hf, path)) is not None:
                hidden = step(hidden)
        return hidden

    def logits(self, normed: Tensor) -> Tensor:
        """Logits (…, vocabulary) of normed states, scaled and capped as the family does."""
        return self._shaped(self.unembedding(normed))

    def logits_of(self, normed: Tensor, tokens: slice | list[int]) -> tuple[Tensor, Tensor]:
        """Logits of some tokens and the rows of the unembedding that make them, (…, tokens) and (tokens, d_model).

        These stay in half precision while `in_float32` has put it aside: `product` multiplies by them.
        """
        with align_module_device(self.unembedding):  # an offloaded head has its weight only in here
            weight, bias = _kept(self.unembedding)[tokens], self.unembedding.bias
            logits = product(normed, weight.T)
            return self._shaped(logits if bias is None else logits + bias[tokens]), weight

    def logits_slope(self, logits: Tensor) -> Tensor | float:
        """d logits / d (unembedding's output), elementwise, at given logits."""
        return self._logit_scale * (1.0 if self._softcap is None else 1 - (logits / self._softcap) ** 2)

    def _shaped(self, logits: Tensor) -> Tensor:
        if self._logit_scale != 1:
            logits = logits * self._logit_scale
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap

    def encode(self, text: str, subject: str | None = None, *, chat: bool = False) -> Prompt:
        """`prompts.encode` with this model's tokenizer."""
        return encode(self.tokenizer, text, subject, masked=self.masked, chat=chat)

    def query(
        self,
        text: str,
        target: str,
        subject: str | None = None,
        *,
        chat: bool = False,
        separator: str | None = None,
    ) -> Query:
        """`prompts.query` with this model's tokenizer."""
        return query(self.tokenizer, text, target, subject, masked=self.masked, chat=chat, separator=separator)

    def query_of(
        self, fact: Fact, target: str | None = None, prompt: str | None = None, *, chat: bool = False
    ) -> Query:
        """A prompt about `fact`, its main one by default, with a target, the fact's own by default."""
        prompt = fact.prompt if prompt is None else prompt
        target = fact.target if target is None else target
        return self.query(prompt, target, fact.subject, chat=chat, separator=fact.separator)

    def token(self, token: int) -> str:
        """The text of one token; of bytes that are only a part of a character, those bytes as `\\xe4`."""
        text = self.tokenizer.decode([token])
        return _bytes_of(self.tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else text

    def check_layer(self, layer: int) -> int:
        if not isinstance(layer, int) or not 0 <= layer < len(self.blocks):
            raise InputError(f"layer {layer!r} is out of range; {self.name} has layers 0 to {len(self.blocks) - 1}")
        return layer

    def check_neuron(self, layer: int, index: int) -> tuple[int, int]:
        self.check_layer(layer)
        if not isinstance(index, int) or not 0 <= index < self.n_neurons:
            raise InputError(
                f"neuron index {index!r} is out of range; {self.name} has 0 to {self.n_neurons - 1} a layer"
            )
        return layer, index

    def weights_hash(self) -> str:
        """SHA-256 over names, types, shapes and the SHA-256 of the bytes of all parameters, wherever they are kept."""
        return parameters_hash(self.hf, self.name)


def _bytes_of(spelled: str) -> str:
    """A token of bytes, as a vocabulary spells it: one character for each byte, or `<0xE4>`."""
    if spelled.startswith("<0x"):
        spelled_bytes = bytes.fromhex(spelled[3:-1])
    else:
        spelled_bytes = bytes(_BYTES[character] for character in spelled if character in _BYTES)
    return spelled_bytes.decode("utf-8", "backslashreplace")


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a projection, also while `in_float32` has put it aside: a copy then."""
    weight = _kept(module)
    return weight if weight is module.weight else weight.float()


def _kept(module: nn.Module) -> Tensor:
    half = getattr(module, "_kept_half", None)
    return module.weight if half is None else half


def _weight(module: nn.Module) -> Tensor:
    """A projection's weight as (out, in)."""
    with align_module_device(module):
        weight = weight_of(module)
        weight = weight.T if isinstance(module, Conv1D) else weight
        return weight.clone() if hasattr(module, "_hf_hook") else weight


def _has(root: nn.Module, path: str) -> bool:
    try:
        return root.get_submodule(path) is not None
    except AttributeError:
        return False


def _submodule(root: nn.Module, path: str, role: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise LayoutError(f"{type(root).__name__} has no {path!r}, where the layout puts {role}; {REMEDY}") from None


def _step(hf: nn.Module, path: str):
    """A step of the head: a module, an activation function, or None for an optional module that is not there."""
    optional = path.endswith("?")
    try:
        module = hf
        for name in path.rstrip("?").split("."):
            module = getattr(module, name)
    except AttributeError:
        if optional:
            return None
        if path in ACT2FN:
            return ACT2FN[path]
        raise LayoutError(f"{type(hf).__name__} has no {path!r}, a step of the layout's head; {REMEDY}") from None
    return module


def _logit_transform(config) -> tuple[float, float | None]:
    scale = 1.0
    if isinstance(getattr(config, "logit_scale", None), int | float):
        scale *= config.logit_scale
    if getattr(config, "logits_scaling", None):
        scale /= config.logits_scaling
    if getattr(config, "lm_head_multiplier", None):
        scale *= config.lm_head_multiplier
    return scale, getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)


@contextmanager
def frozen(model: Model):
    """What gradients are taken in: none with respect to weights, so that graphs keep no inputs for them.

    Raises `ModelError` for weights that no gradient can go through.
    """
    if inference := next((name for name, p in model.hf.named_parameters() if p.is_inference()), None):
        raise ModelError(
            f"{inference} of {model.name} was made in torch.inference_mode(), so no gradient can go through it; "
            "load the model outside of it"
        )
    wanted = [p for p in model.hf.parameters() if p.requires_grad]
    with measuring(model.hf), differentiable():
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)
