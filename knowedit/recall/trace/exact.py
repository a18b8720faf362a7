"""Causal tracing (Meng et al. 2022): which states of a prompt bring back an answer that noise took away.

A prompt is run clean, and corrupted by noise in its subject's embeddings (`noise`). Then the corrupted prompt is run
with one thing of the clean run put back, at one token `t` and layer `l`, everything behind it computed anew:

    total effect      TE = P_clean[o] − P_corrupted[o]
    indirect effect   IE(t, l) = P_corrupted, clean h_t^(l)[o] − P_corrupted[o]

each the mean over several draws of noise. What is put back is the state (the output of block `l`), or what the MLP, or
the attention, puts out in a window of layers around `l`: `max(0, l − ⌊w/2⌋)` up to `l + ⌈w/2⌉ − 1`. The paper's window
has 10 of GPT-2 XL's 48 layers; by default it is as large a part of any model.

*Severed*: a state is put back while the MLP (or the attention) of that token keeps, in all layers, what it put out in
the corrupted run. What is lost by that went through it.

P is the probability of the target's first token, as in the paper. Of a whole target (`whole`), teacher-forced, the
prompt's last state never brings all back: the tokens behind it still look at a corrupted subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ...answers import says
from ...display.result import Record, Table
from ...errors import InputError, did_you_mean
from ...facts import Fact
from ...models.adapter import Model
from ...models.length import check_length
from ...models.passes.objective import Objective
from ...models.passes.scaled_answers import ScaledAnswers
from ...progress import Progress, counted, silent
from ...prompts import Query
from ...statistics import Estimate, mean
from ...writing.counts import number_of
from .corruption import SUBLAYERS, Corruption
from .gradients import approximate
from .noise import draw_noise, embedding_spread
from .restore import Restoring, Window

KINDS = ("state", *SUBLAYERS)
PART = 10 / 48  # of all layers in the paper's window
DRAWS = 16  # of noise, in memory at once
_COLUMNS = 10  # layers in a table


@dataclass(frozen=True)
class TraceConfig(Record):
    """How to trace.

    - `kinds`: what is restored: `state`, `mlp`, `attention`.
    - `draws`: samples of noise; `noise`: its standard deviation in σ of the embeddings; `seed` of the draws.
    - `window`: layers of an MLP or attention window; 10 of 48 as in the paper where None.
    - `severed`: sublayers, `mlp` or `attention`, to sever a state's paths through, each a table of its own.
    - `fast`: approximate all effects by gradients (`gradients`), from two points on the way of each draw.
    - `whole`: take the probability of all tokens of the target, not of the first alone.
    - `chat`: ask through the model's chat template.
    """

    kinds: tuple[str, ...] = KINDS
    draws: int = 10
    noise: float = 3.0
    window: int | None = None
    severed: tuple[str, ...] = ()
    seed: int = 0
    fast: bool = False
    whole: bool = False
    chat: bool = False

    def __post_init__(self):
        for name, values, known in (("kinds", self.kinds, KINDS), ("severed", self.severed, SUBLAYERS)):
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))
            for value in values:
                if value not in known:
                    raise InputError(
                        f"{name} of a trace are {value!r}{did_you_mean(value, known)}, expected {', '.join(known)}"
                    )
        if not self.kinds and not self.severed:
            raise InputError(f"a trace of nothing was asked for; name kinds: {', '.join(KINDS)}")
        if self.fast and self.severed:
            raise InputError("severed paths have no fast mode; leave out one of the two")
        for name, least in (("draws", 1), ("window", 1), ("seed", 0)):
            value = getattr(self, name)
            if name == "window" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{name} of a trace is {value!r}, expected a whole number from {least} on")
        if not isinstance(self.noise, int | float) or not 0 <= self.noise < float("inf"):
            raise InputError(f"noise of a trace is {self.noise!r}, expected a number of σ from 0 on")


@dataclass(frozen=True)
class Trace:
    """The trace of one fact.

    - `tokens`: of the prompt; `subject_tokens`: its subject's (first, last + 1); `read`: where the answer is predicted.
    - `window`: layers in a window; `level`: the noise's standard deviation.
    - `clean`: P of the clean prompt; `corrupted`: of the corrupted one, (draws,).
    - `says`: the model's first choice where it is another one than the target.
    - `effects`: by kind the indirect effect of every draw, (draws, tokens, layers). Severed states are the kinds
      `state without mlp` and `state without attention`.
    """

    model: str
    prompt: str
    subject: str
    target: str
    tokens: tuple[str, ...]
    subject_tokens: tuple[int, int]
    read: int
    window: int
    level: float
    clean: float
    corrupted: np.ndarray
    effects: dict[str, np.ndarray]
    config: TraceConfig
    fact: str | None = None
    says: str | None = None

    @property
    def high(self) -> float:
        return self.clean

    @property
    def low(self) -> float:
        return float(self.corrupted.mean())

    @property
    def total_effect(self) -> Estimate:
        """TE over the draws of noise."""
        return mean(self.clean - self.corrupted, self.config.seed)

    def scores(self, kind: str) -> np.ndarray:
        """The probability with `kind` restored, (tokens, layers): the paper's tables, between `low` and `high`."""
        return self.low + self.indirect(kind)

    def indirect(self, kind: str) -> np.ndarray:
        """The mean indirect effect of `kind`, (tokens, layers)."""
        if kind not in self.effects:
            raise InputError(
                f"the trace has no {kind!r}{did_you_mean(kind, self.effects)}; it has {list(self.effects)}"
            )
        return self.effects[kind].mean(0)

    def peak(self, kind: str) -> tuple[int, int, Estimate]:
        """The token and layer of the largest mean indirect effect, and that effect with its interval over draws."""
        effect = self.indirect(kind)
        token, layer = (int(i) for i in np.unravel_index(effect.argmax(), effect.shape))
        return token, layer, mean(self.effects[kind][:, token, layer], self.config.seed)

    def as_dict(self) -> dict:
        maps = {}
        for kind in self.effects:
            token, layer, estimate = self.peak(kind)
            peak = {"token": token, "layer": layer, "effect": estimate.as_dict()}
            maps[kind] = {"scores": self.scores(kind).tolist(), "peak": peak}
        return {
            "model": self.model,
            "fact": self.fact,
            "prompt": self.prompt,
            "subject": self.subject,
            "target": self.target,
            "says": self.says,
            "tokens": list(self.tokens),
            "subject_tokens": list(self.subject_tokens),
            "read": self.read,
            "window": self.window,
            "noise_level": self.level,
            "high": self.high,
            "low": mean(self.corrupted, self.config.seed).as_dict(),
            "total_effect": self.total_effect.as_dict(),
            "maps": maps,
            "config": self.config.as_dict(),
        }

    def table(self) -> Iterator[str | Table]:
        """For each kind its peak, and the scores of every token after some of the layers."""
        yield f"{self.prompt} → {self.target}   p = {self.high:.3f}, corrupted {self.low:.3f}   ({self.model})"
        if self.says is not None:
            yield f"Note: the model does not say this: it says {self.says!r}; what is restored is not its answer."
        how = "approximated by gradients" if self.config.fast else number_of(self.config.draws, "draw")
        yield f"noise of {self.config.noise:g} σ = {self.level:.4f} in {self.subject!r}, {how}"
        start, end = self.subject_tokens
        words = [repr(word) + ("*" if start <= i < end else "") for i, word in enumerate(self.tokens)]
        for kind in self.effects:
            token, layer, effect = self.peak(kind)
            where = (
                f"layer {layer}" if kind.startswith("state") else f"{number_of(self.window, 'layer')} around {layer}"
            )
            yield ""
            yield f"{kind}: most is restored at {self.tokens[token]!r}, {where}: {effect.text('signed')}"
            scores = self.scores(kind)
            layers = np.unique(np.linspace(0, scores.shape[1] - 1, _COLUMNS).round().astype(int))
            rows = [(word, *(f"{row[layer]:.3f}" for layer in layers)) for word, row in zip(words, scores, strict=True)]
            yield Table(("token", *map(str, layers)), rows)

    def figure(self, path: str | Path) -> Path:
        """Draw the scores of all kinds as heat maps, side by side."""
        from .figure import trace_figure

        return trace_figure(path, self)


def trace(
    model: Model, prompt: str, target: str, subject: str | None, config: TraceConfig | None = None, *,
    level: float | None = None, fact: str | None = None, separator: str | None = None,
) -> Trace:  # fmt: skip
    """Trace the recall of `target` after `prompt`, with `subject` corrupted.

    `level` is the noise's standard deviation where it is known already; otherwise σ is measured. `fact` is an id to
    keep. Raises `InputError` without a subject, for one that is the whole prompt or is not in it, and for a prompt
    longer than the model's context.
    """
    config = TraceConfig() if config is None else config
    query = _query(model, prompt, target, subject, config, separator)
    level = config.noise * embedding_spread(model) if level is None else level
    window = window_size(model, config.window)
    start, end = query.prompt.subject
    noise = draw_noise(model, level, config.draws, end - start, config.seed)
    # tokens of a target that are predicted one after the other belong to a decoder's sequence, not to its prompt
    tokens = query.prompt.ids if model.masked else query.prompt.ids[: query.prompt.read + 1]
    known = ScaledAnswers(model, [query]).known[0]
    clean, corrupted, effects = (_fast if config.fast else _exact)(model, query, noise, len(tokens), window, config)
    return Trace(
        model=model.name, prompt=query.prompt.text, subject=subject, target=target,
        tokens=tuple(model.token(token) for token in tokens), subject_tokens=(start, end),
        read=query.prompt.read, window=window, level=level, clean=clean, corrupted=corrupted, effects=effects,
        config=config, fact=fact, says=None if known else says(model, query)[0],
    )  # fmt: skip


def trace_facts(
    model: Model,
    facts: Sequence[Fact],
    config: TraceConfig | None = None,
    progress: Progress = silent,
) -> list[Trace]:
    """Trace many facts with the same noise. `progress` counts facts."""
    config = TraceConfig() if config is None else config
    for fact in facts:  # what is wrong is said before hours of computing
        _query(model, fact.prompt, fact.target, fact.subject, config, fact.separator)
    level = config.noise * embedding_spread(model)
    traces = []
    for fact in counted(facts, progress):
        made = trace(
            model, fact.prompt, fact.target, fact.subject, config, level=level, fact=fact.id, separator=fact.separator,
        )  # fmt: skip
        traces.append(made)
    return traces


def window_size(model: Model, window: int | None = None) -> int:
    """Layers in a window: `window`, or the paper's part of all."""
    return max(1, round(PART * model.n_layers)) if window is None else window


def windows(n_layers: int, width: int) -> list[Window]:
    """The window around each layer, cut off at both ends."""
    return [Window(max(0, layer - width // 2), min(n_layers, layer + -(-width // 2))) for layer in range(n_layers)]


def _query(
    model: Model, prompt: str, target: str, subject: str | None, config: TraceConfig, separator: str | None
) -> Query:
    if subject is None:
        raise InputError("tracing corrupts the subject: name it with --subject (or subject=)")
    if "attention" in (*config.kinds, *config.severed):
        model.check_attention()
    query = model.query(prompt, target, subject, chat=config.chat, separator=separator)
    if prompt.strip() == subject.strip():
        raise InputError(f"the subject {subject!r} is the whole prompt; write the prompt that asks something about it")
    if not config.whole:
        query = Query(query.steps[:1], query.target_ids[:1])
    check_length(model, query.steps[-1].ids)
    return query


def _parts(model: Model, query: Query) -> list[tuple[tuple[int, ...], list[int], list[Objective]]]:
    """Token ids, read positions and what is read there, of each of the query's rows."""
    return [
        (row.ids, [index for index, _ in row.reads], [Objective("probability", token) for _, token in row.reads])
        for row in query.rows(model.masked)
    ]


def _exact(
    model: Model, query: Query, noise, tokens: int, window: int, config: TraceConfig
) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
    start = query.prompt.subject[0]
    clean, corrupted = 1.0, cast(Any, 1.0)
    restored: dict[str, np.ndarray] = {}
    for ids, reads, objectives in _parts(model, query):
        chunks = [
            _restored(Restoring(Corruption(model, ids, start, draws), reads, objectives), tokens, window, config)
            for draws in noise.split(DRAWS)
        ]
        clean *= chunks[0][0]
        corrupted = corrupted * np.concatenate([low for _, low, _ in chunks])
        for kind in chunks[0][2]:
            values = np.concatenate([maps[kind] for *_, maps in chunks])
            restored[kind] = restored[kind] * values if kind in restored else values
    return clean, corrupted, {kind: values - corrupted[:, None, None] for kind, values in restored.items()}


def _restored(
    restoring: Restoring, tokens: int, window: int, config: TraceConfig
) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
    """P clean, corrupted (draws,) and by kind restored (draws, tokens, layers)."""
    n_layers, corruption = restoring.model.n_layers, restoring.corruption
    single = [Window(layer, layer + 1) for layer in range(n_layers)]
    around = windows(n_layers, window)
    kinds: dict[str, tuple[str, str | None, list[Window]]] = {
        kind: (kind, None, single if kind == "state" else around) for kind in config.kinds
    }
    kinds |= {f"state without {severed}": ("state", severed, single) for severed in config.severed}
    low = restoring.corrupted.cpu().double().numpy()
    # what is restored before the first corrupted token was never lost
    maps = {kind: np.broadcast_to(low[:, None, None], (len(low), tokens, n_layers)).copy() for kind in kinds}
    after = [restoring.token(token, kinds.values()) for token in range(corruption.first, tokens)]
    for kind, of_tokens in zip(kinds, zip(*after, strict=True), strict=True):
        maps[kind][:, corruption.first :] = torch.stack(of_tokens).cpu().double().permute(2, 0, 1).numpy()
    return restoring.clean.double().item(), low, maps


def _fast(
    model: Model, query: Query, noise, tokens: int, window: int, config: TraceConfig
) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
    parts = _parts(model, query)
    if len(parts) > 1:
        raise InputError(
            f"the fast mode of a masked model takes one token of a target, this one has {len(parts)}; "
            "trace exactly, or the first token alone"
        )
    ((ids, reads, objectives),) = parts
    around = windows(model.n_layers, window)
    kinds = {kind: None if kind == "state" else around for kind in config.kinds}
    chunks = [
        approximate(Corruption(model, ids, query.prompt.subject[0], draws), reads, objectives, kinds)
        for draws in noise.split(DRAWS)
    ]
    effects = {kind: np.concatenate([part[kind] for *_, part in chunks])[:, :tokens] for kind in kinds}
    return chunks[0][0], np.concatenate([low for _, low, _ in chunks]), effects
