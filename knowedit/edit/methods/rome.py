"""Rank-one model editing: Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262).

    edit = knowedit.rome(model, fact)

At the lookup position the down-projection W of one layer maps the key k* of the subject to a value. The edit makes it
give v* = W k* + b + δ there (`values.py` finds δ) and changes other keys least, by their covariance C = E[k kᵀ]:

    ΔW = δ qᵀ / (k*ᵀ q),    q = C⁻¹ k*        (eq. 2; q is computed by Cholesky in float64)

The key is one and the same wherever it stands (`key`):

- `plain`: k of the prompt without a context (p-ROME);
- `mean`: the mean over the plain prompt and all contexts (r-ROME, Gupta et al. 2024, arXiv 2403.07175);
- `mixed`: ROME's own code, which takes the mean for q and the plain key in the denominator. It collapses when the two
  differ much, as they do for a short subject at the start of a prompt. For reproduction only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import cast

from ...errors import InputError, did_you_mean
from ...facts import Fact
from ...hooks import unaltered
from ...models.adapter import Model
from ...models.cache import key_of, remembered
from ...progress import Progress, silent
from ...texts.corpus import contexts as sample_contexts
from ...texts.rows import tokenization
from ..apply import unedited
from ..covariance import Covariance, covariance, default_tokens
from ..delta import LowRank, weight_hash
from ..edit import Edit, check_request, make_edit
from ..preserved_keys import PreservedKeys, preserved_keys
from .method import Bars, Editor, Method, no_bars
from .v_star import OutOfReachError, Value, VStarSearch, find_v_star, request

KEYS = ("plain", "mean", "mixed")


@dataclass(frozen=True)
class KeyText:
    """The text whose keys C is estimated from: `text` and `tokens` are `covariance`'s source and tokens."""

    text: str | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class RomeConfig:
    """Where and how to edit.

    - `layer`: the edited layer; None for the one that the table knows for this model's architecture and size.
    - `key`: `plain`, `mean` or `mixed`, as described above.
    - `search`: how δ is found.
    - `contexts`: the context prefixes, or how many are to be sampled from the model with `seed`.
    - `lengths`: tokens of sampled contexts, in turn.
    - `covariance`: the text that C is estimated from.
    - `shrinkage`: what is added to C's diagonal, as a fraction of its mean.
    - `preserve`: the weight of other subjects' keys beside C (`preserved_keys.py`); 0 as in ROME.
    """

    layer: int | None = None
    key: str = "plain"
    search: VStarSearch = field(default_factory=VStarSearch)
    contexts: int | tuple[str, ...] = 5
    lengths: tuple[int, ...] = (5, 10)
    covariance: KeyText = field(default_factory=KeyText)
    shrinkage: float = 1e-2
    preserve: float = 3.0
    seed: int = 0

    def __post_init__(self):
        if self.key not in KEYS:
            raise InputError(
                f"key is {self.key!r}{did_you_mean(str(self.key), KEYS)}, expected one of {', '.join(KEYS)}"
            )
        for name in ("shrinkage", "preserve"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected 0 or more")
        if isinstance(self.contexts, list | tuple) and all(isinstance(text, str) for text in self.contexts):
            object.__setattr__(self, "contexts", tuple(self.contexts))
        elif not isinstance(self.contexts, int) or isinstance(self.contexts, bool) or self.contexts < 0:
            raise InputError(f"contexts are {self.contexts!r}, expected how many, or the texts themselves in a list")
        if not isinstance(self.lengths, list | tuple) or not all(isinstance(n, int) and n > 0 for n in self.lengths):
            raise InputError(f"lengths are {self.lengths!r}, expected numbers of tokens in a list")
        object.__setattr__(self, "lengths", tuple(self.lengths))

    def as_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


def _published(layer: int, clamp: float = 4.0, steps: int = 20, decay: float = 0.5) -> RomeConfig:
    """ROME's settings: 10 contexts of 5 tokens and 10 of 10, the mixed key."""
    search = VStarSearch(steps=steps, lr=0.5, kl=0.0625, decay=decay, clamp=clamp, stop_loss=0.05)
    return RomeConfig(layer=layer, key="mixed", search=search, contexts=20, preserve=0.0)


PUBLISHED: Mapping[str, RomeConfig] = MappingProxyType(
    {  # kmeng01/rome hparams/ROME and, for Llama, EasyEdit's
        "gpt2-medium": _published(8, clamp=3.0),
        "gpt2-large": _published(12),
        "gpt2-xl": _published(17),
        "gpt-j-6b": _published(5),
        "llama-2-7b": _published(5, steps=25, decay=1e-3),
        "llama-3-8b": _published(5, steps=25, decay=1e-3),
    }
)

_SIZES: Mapping[tuple[str, int, int], str] = MappingProxyType(
    {  # (model type, layers, d_model): a model keeps its settings wherever it was loaded from
        ("gpt2", 24, 1024): "gpt2-medium",
        ("gpt2", 36, 1280): "gpt2-large",
        ("gpt2", 48, 1600): "gpt2-xl",
        ("gptj", 28, 4096): "gpt-j-6b",
        ("llama", 32, 4096): "llama-2-7b",
        ("llama", 30, 576): "smollm2-135m",
        ("gemma3_text", 18, 640): "gemma3-270m",
    }
)

# chosen on development facts by `python -m benchmarks run quality.rome_settings`, whose result says what was tried
SMOLLM2 = RomeConfig(layer=1, search=VStarSearch(lr=1.0, clamp=2.0, stop_loss=None, stop_probability=0.95), contexts=3)
TUNED: Mapping[str, RomeConfig] = MappingProxyType(
    {
        "smollm2-135m": SMOLLM2,
        "gemma3-270m": RomeConfig(layer=3),  # the layer by `--layer auto`
    }
)


def rome_config(model: Model) -> RomeConfig:
    """The settings for `model`: ours where they were tuned, else the published layer and search with the plain key.

    Raises `InputError` for a model that no table knows: its layer is to be chosen (`best_layer`, or `--layer auto`).
    """
    name = _SIZES.get((model.config.model_type, model.n_layers, model.d_model))
    if name in TUNED:
        return TUNED[name]
    if name is None:
        raise InputError(
            f"no table has the layer to edit in {model.name}; give one of 0 to {model.n_layers - 1}, or `auto`"
        )
    return replace(PUBLISHED[name], key="plain", preserve=RomeConfig.preserve)


def rome(
    model: Model,
    fact: Fact,
    config: RomeConfig | None = None,
    *,
    covariance: Covariance | None = None,
    preserved: PreservedKeys | None = None,
) -> Edit:
    """The edit that makes `model` answer `fact.target_new`; the model is not changed.

    `covariance` is that of the keys of the edited layer, by default computed or read from the cache; `preserved` are
    the keys of other subjects, by default those of the built-in facts. Whoever edits often makes both once.
    Raises `InputError` for a fact without `target_new`, a subject that is not in the prompt, a layer out of range, or
    one from which nothing reaches the answer.
    """
    return rome_many(model, [fact], config, covariance=covariance, preserved=preserved)[0]


def rome_many(
    model: Model,
    facts: Sequence[Fact],
    config: RomeConfig | None = None,
    *,
    covariance: Covariance | None = None,
    preserved: PreservedKeys | None = None,
    progress: Progress = silent,
) -> list[Edit]:
    """As `rome`, for facts that are each to be edited alone: their searches share batches, which is faster."""
    config = settled(model, config)
    layer = config.layer
    targets = [check_request(fact) for fact in facts]
    if covariance is None or preserved is None:
        config, covariance, preserved = _prepared(model, config, covariance, preserved)
    config = with_contexts(model, config)
    contexts = cast(tuple[str, ...], config.contexts)  # sampled by now
    requests = [request(model, fact, target, contexts) for fact, target in zip(facts, targets, strict=True)]
    for name, statistics in (("covariance is", covariance), ("preserved keys are", preserved)):
        if statistics.layer != layer:
            raise InputError(f"the {name} of layer {statistics.layer}, expected layer {layer}, which is edited")
    values = find_v_star(model, requests, layer, config.search, progress)
    hashes = {layer: weight_hash(model.down_weight(layer))}
    return [
        edit_of(model, fact, value, covariance, preserved, config, hashes)
        for fact, value in zip(facts, values, strict=True)
    ]


def settled(model: Model, config: RomeConfig | None) -> RomeConfig:
    """`config` with its layer filled in; the model's own settings where it is None."""
    if config is None:
        config = rome_config(model)
    elif config.layer is None:
        config = replace(config, layer=rome_config(model).layer)
    model.check_layer(config.layer)
    return config


def with_contexts(model: Model, config: RomeConfig, weights_hash: str | None = None) -> RomeConfig:
    """`config` with the texts of its contexts, the same for a model that edits are on.

    With the hash of the unedited weights they are kept in the cache.
    """
    n = config.contexts
    if not isinstance(n, int):
        return config

    def sampled() -> tuple[str, ...]:
        with unedited(model):
            return sample_contexts(model, n, lengths=config.lengths, seed=config.seed)

    weights_hash = unaltered(model.hf, weights_hash)
    if weights_hash is None:
        return replace(config, contexts=sampled())
    request = {"weights": weights_hash, "dtype": str(model.dtype), "device": model.device.type}
    wanted = {"contexts": n, "lengths": config.lengths, "seed": config.seed}
    texts = remembered("contexts", key_of({**request, **wanted, **tokenization(model)}), sampled)
    return replace(config, contexts=tuple(texts))


def _prepared(
    model: Model,
    config: RomeConfig,
    C: Covariance | None = None,
    preserved: PreservedKeys | None = None,
    bars: Bars = no_bars,
) -> tuple[RomeConfig, Covariance, PreservedKeys]:
    """What all edits share, of the unedited model: its contexts and, where they are not there yet, C and keys."""
    layer, text = config.layer, config.covariance
    with unedited(model):
        weights_hash = model.weights_hash()
        if C is None:
            with bars("covariance", text.tokens or default_tokens(model), "token") as step:
                C = covariance(
                    model, [layer], source=text.text, tokens=text.tokens, weights_hash=weights_hash, progress=step
                )[layer]
        if preserved is None:
            preserved = preserved_keys(model, layer, None if config.preserve else (), weights_hash=weights_hash)
        return with_contexts(model, config, weights_hash), C, preserved


def edit_of(
    model: Model,
    fact: Fact,
    value: Value,
    C: Covariance,
    preserved: PreservedKeys,
    config: RomeConfig,
    hashes: Mapping[int, str],
) -> Edit:
    """The edit that maps the fact's key to `value`: all of ROME that is left once δ was found.

    `hashes`: of the weights by layer (`weight_hash`).
    Raises `InputError` where δ does not reach the answer.
    """
    if not value.reaches:
        assert config.layer is not None
        raise OutOfReachError(fact, config.layer)
    keys = value.keys.detach().double().cpu()  # (prompts, n_neurons)
    plain, mean = keys[0], keys.mean(0)
    key = plain if config.key == "plain" else mean
    about = preserved.about(fact)
    q = preserved.metric(C, config.preserve, config.shrinkage, about).inverse(key[:, None])[:, 0].cpu()
    k_star = mean if config.key == "mean" else plain
    scale = (k_star @ q).item()
    delta = value.delta.double().cpu()
    # the factors share the norm of ΔW, which keeps both well inside the range of float32
    u, v = delta / scale, q
    balance = (v.norm() / u.norm().clamp(min=1e-300)).sqrt()
    notes = {
        "steps": value.steps,
        "loss": value.loss,
        "probability": value.probability,
        "clamped": value.clamped,
        "delta_norm": delta.norm().item(),
        "v0_norm": value.v0.float().norm().item(),
        "k_C_inv_k": scale,
        "key_norm": k_star.norm().item(),
        "lookup": value.lookup,
        "covariance": {"tokens": C.tokens, "source": dict(C.source)},
        "preserved": len(preserved.subjects) - len(about) if config.preserve else 0,
    }
    return make_edit(
        model,
        {config.layer: LowRank((u * balance)[:, None].float(), (v / balance)[:, None].float())},
        method="rome",
        config=config.as_dict(),
        facts=[fact],
        seed=config.seed,
        notes=notes,
        hashes=hashes,
    )


# ---------------------------------------------------------------- as the table has it


def _prepare(model: Model, config: RomeConfig, facts: Sequence[Fact], bars: Bars) -> Editor:
    config, C, preserved = _prepared(model, settled(model, config), bars=bars)

    def edit(facts: Sequence[Fact]) -> list[Edit]:
        with bars("searching", len(facts), "edit") as step:
            return rome_many(model, facts, config, covariance=C, preserved=preserved, progress=step)

    return Editor(edit, preserved if config.preserve else None)


def _passes(config: RomeConfig, facts: Sequence[Fact], others: Sequence[Fact], model: Model | None) -> dict[str, int]:
    """At most, forward and backward: the prompt by itself and behind each context, and the essence."""
    contexts = config.contexts if isinstance(config.contexts, int) else len(config.contexts)
    return {"search": len(facts) * (contexts + 2) * config.search.steps}


def _memory(config: RomeConfig, model: Model, batch: int) -> dict[str, int]:
    # C in float32, and A or a copy of its factor beside the factor itself, in float64
    return {"covariance": (4 + 8 + 8) * model.n_neurons**2}


METHOD = Method(
    RomeConfig,
    _prepare,
    passes=_passes,
    memory=_memory,
    model_config=rome_config,
    published=PUBLISHED,
    tries_layers=True,
    looks_up=True,
)
