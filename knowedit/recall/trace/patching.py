"""Activation patching: one thing of a clean run put into the run of another prompt, and what that does to the answer.

    patch(model, "The capital of Japan is", "The capital of Peru is", sites, "logit", target="Tokyo")

Two prompts of one token length are run. For every site the second one, `corrupt`, is run with the site's values taken
from the first, `clean`, everything behind them computed anew (denoising; swap the prompts for noising). As in causal
tracing a patched row joins at the site's layer and, in a decoder, has only the tokens from the site's position on. See
Vig et al. 2020, Wang et al. 2023, Heimersheim & Nanda 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...display.result import Table
from ...errors import InputError, did_you_mean
from ...hooks import hooked, on_input, on_output
from ...models.adapter import Model
from ...models.length import check_length
from ...models.passes.batches import fitting_tokens
from ...models.passes.objective import KINDS as METRICS, Objective, at_least_float, read_rows
from ...models.passes.replay import record
from ...prompts import Prompt
from .corruption import Run, run, sublayer
from .restore import SWEEP_TOKENS

SITES = {"residual": None, "mlp": "mlp", "attention": "attention", "head": "attention", "neuron": "mlp"}
LOGIT_ROWS = 64  # rows of logits that a metric of the user's is given at once
_SHOWN = 10  # sites in a table

Metric = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """What is patched.

    - `kind`: `residual` (the block's output), `mlp` or `attention` (what the sublayer puts out), `head` or `neuron`.
    - `position`: a token index (negative ones count from the end), or None for all tokens.
    - `index`: of the head or neuron.
    """

    kind: str
    layer: int
    position: int | None = None
    index: int | None = None


@dataclass(frozen=True)
class Patched:
    """What patching did.

    - `prompts`: the clean one and the corrupt one; `target`: the answer to the clean one, None with your own metric.
    - `clean`, `corrupt`: the metric of the two prompts as they are; `values`: with each site (or group) patched.
    - `tokens`: of both prompts, in pairs.
    """

    model: str
    prompts: tuple[str, str]
    target: str | None
    metric: str
    tokens: tuple[tuple[str, str], ...]
    sites: tuple[tuple[Site, ...], ...]
    clean: float
    corrupt: float
    values: tuple[float, ...]

    @property
    def recovered(self) -> tuple[float | None, ...]:
        """(value − corrupt) / (clean − corrupt): 1 where a site brings all back, None where nothing is to bring."""
        whole = self.clean - self.corrupt
        return tuple(None if whole == 0 else (value - self.corrupt) / whole for value in self.values)

    def as_dict(self) -> dict:
        sites = [[{k: v for k, v in vars(site).items() if v is not None} for site in group] for group in self.sites]
        return {
            "model": self.model,
            "prompts": list(self.prompts),
            "target": self.target,
            "metric": self.metric,
            "tokens": [list(pair) for pair in self.tokens],
            "clean": self.clean,
            "corrupt": self.corrupt,
            "patched": [
                {"sites": group, "value": value, "recovered": recovered}
                for group, value, recovered in zip(sites, self.values, self.recovered, strict=True)
            ],
        }

    def table(self) -> Iterator[str | Table]:
        """The sites that change the metric most; of a group, its first site."""
        answer = "" if self.target is None else f" of {self.target!r}"
        yield f"{self.metric}{answer}: {self.clean:.3f} clean, {self.corrupt:.3f} corrupt   ({self.model})"
        rows = []
        for i in sorted(range(len(self.values)), key=lambda i: -abs(self.values[i] - self.corrupt))[:_SHOWN]:
            (site, *_), value, share = self.sites[i], self.values[i], self.recovered[i]
            place = "all tokens" if site.position is None else repr(self.tokens[site.position][0])
            place = place if site.index is None else f"{site.kind} {site.index}"
            rows.append((place, site.layer, f"{value:.3f}", "" if share is None else f"{share:+.1%}"))
        yield Table(("site", "layer", self.metric, "recovered"), rows)

    def figure(self, path: str | Path) -> Path:
        """Draw the patches of a `grid`: (token, layer), or (layer, head)."""
        from .figure import patch_figure

        return patch_figure(path, self)


def patch(
    model: Model, clean: str | Prompt, corrupt: str | Prompt, sites: Sequence[Site | Sequence[Site]],
    metric: Metric = "probability", *, target: str | None = None, foil: str | None = None,
) -> Patched:  # fmt: skip
    """Run `corrupt` with each of `sites` taken from `clean`; several sites in a sequence are patched together.

    `metric` is `probability`, `log_probability`, `logit` or `logit_difference` (to `foil`) of `target`, or a function
    from logits at the read position (rows, vocabulary) to (rows,). A target counts by its first token. Raises
    `InputError` for prompts of different lengths, and for sites and metrics that do not exist.
    """
    prompts = [model.encode(text) if isinstance(text, str) else text for text in (clean, corrupt)]
    _check_prompts(model, prompts)
    groups = [(site,) if isinstance(site, Site) else tuple(site) for site in sites]
    groups = [tuple(_checked(model, site, len(prompts[0].ids)) for site in group) for group in groups]
    measure = _measure(model, prompts[0], metric, target, foil)
    work = _Patching(model, prompts, measure)
    return Patched(
        model=model.name,
        prompts=(prompts[0].text, prompts[1].text),
        target=target,
        metric=metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__),
        tokens=tuple(zip(*([model.token(i) for i in p.ids] for p in prompts), strict=True)),
        sites=tuple(groups),
        clean=work.value(work.clean),
        corrupt=work.value(work.corrupt),
        values=work.patched(groups),
    )


def grid(model: Model, kind: str, positions: Sequence[int]) -> list[Site]:
    """A site of `kind` for every position and layer, in this order; of `head` for every layer and head, all tokens."""
    layers = range(model.n_layers)
    if kind == "head":
        return [Site("head", layer, None, head) for layer in layers for head in range(model.n_heads)]
    return [Site(kind, layer, position) for position in positions for layer in layers]


def _check_prompts(model: Model, prompts: Sequence[Prompt]) -> None:
    lengths = [len(prompt.ids) for prompt in prompts]
    if lengths[0] != lengths[1]:
        raise InputError(
            f"the clean prompt has {lengths[0]} tokens and the corrupt one {lengths[1]}; patching needs two of one "
            "length: choose a subject of as many tokens"
        )
    if prompts[0].read != prompts[1].read:
        raise InputError("the two prompts have their masks at different tokens; put them at the same one")
    check_length(model, prompts[0].ids)


def _checked(model: Model, site: Site, length: int) -> Site:
    if not isinstance(site, Site) or site.kind not in SITES:
        kind = getattr(site, "kind", site)
        raise InputError(f"site {kind!r} is unknown{did_you_mean(str(kind), SITES)}; there are {', '.join(SITES)}")
    model.check_layer(site.layer)
    if site.kind in ("attention", "head"):
        model.check_attention()
    if site.position is not None and (not isinstance(site.position, int) or not -length <= site.position < length):
        raise InputError(f"position {site.position!r} of a site is not one of the prompts' {length} token indices")
    if (site.index is None) == (site.kind in ("head", "neuron")):
        remedy = "needs the index of one" if site.index is None else "takes no index"
        raise InputError(f"a site of kind {site.kind} {remedy}: Site({site.kind!r}, layer, position, index)")
    if site.kind == "neuron":
        model.check_neuron(site.layer, site.index)
    if site.kind == "head" and not (isinstance(site.index, int) and 0 <= site.index < model.n_heads):
        raise InputError(
            f"head {site.index!r} is out of range; {model.name} has heads 0 to {model.n_heads - 1} a layer"
        )
    return site


def _measure(model: Model, prompt: Prompt, metric: Metric, target: str | None, foil: str | None):
    """The metric as a function of the last block's output at the read position, (rows, d_model) → (rows,)."""
    if callable(metric):
        return lambda hidden: torch.cat(
            [metric(at_least_float(model.logits(model.normed(part)))) for part in hidden.split(LOGIT_ROWS)]
        )
    if metric not in METRICS:
        raise InputError(
            f"metric {metric!r} is unknown{did_you_mean(str(metric), METRICS)}; there are {', '.join(METRICS)}, "
            "or a function of logits"
        )
    if target is None:
        raise InputError(f"the metric {metric} needs a target: the answer to the clean prompt")
    if (foil is None) == (metric == "logit_difference"):
        raise InputError("a foil, another answer, goes with logit_difference and with no other metric")
    first = [None if text is None else model.query(prompt.text, text).target_ids[0] for text in (target, foil)]
    if first[0] == first[1]:
        raise InputError(f"target {target!r} and foil {foil!r} begin with the same token; choose another foil")
    objective = Objective(metric, *first)
    return lambda hidden: read_rows(model, hidden[:, None], [0], [objective]).value


class _Patching:
    def __init__(self, model: Model, prompts: Sequence[Prompt], measure: Callable[[Tensor], Tensor]):
        self.model = model
        self.ids = prompts[1].ids
        self.read = prompts[0].read
        self.measure = measure
        self.clean, self.corrupt = (
            run(model, torch.tensor([prompt.ids], device=model.device), inputs=True) for prompt in prompts
        )

    @torch.no_grad()
    def value(self, of: Run) -> float:
        return float(self.measure(of.states[-1][:, self.read])[0])

    @torch.no_grad()
    def patched(self, groups: Sequence[tuple[Site, ...]]) -> tuple[float, ...]:
        values = [self.value(self.corrupt)] * len(groups)
        by_start: dict[int, list[int]] = {}
        for i, group in enumerate(groups):
            if group:
                by_start.setdefault(min(self._positions(site)[0] for site in group), []).append(i)
        for start, chosen in by_start.items():
            if start > self.read and not self.model.masked:
                continue  # nothing reads what stands behind the read position
            recording = record(self.model, self.ids, start)
            chosen.sort(key=lambda i: min(site.layer for site in groups[i]))
            most = max(1, fitting_tokens(self.model, SWEEP_TOKENS) // recording.length)
            for part in (chosen[j : j + most] for j in range(0, len(chosen), most)):
                hidden = self._sweep(recording, [groups[i] for i in part])
                measured = self.measure(hidden[:, self.read - recording.start])
                for i, value in zip(part, measured.tolist(), strict=True):
                    values[i] = value
        return tuple(values)

    def _positions(self, site: Site) -> list[int]:
        length = len(self.ids)
        return list(range(length)) if site.position is None else [site.position % length]

    def _sweep(self, recording, groups: Sequence[tuple[Site, ...]]) -> Tensor:
        """The last block's output of all groups, which come in the order of their lowest layer."""
        hidden, rows = None, 0
        for layer in range(self.model.n_layers):
            joined = sum(min(site.layer for site in group) <= layer for group in groups)
            if joined > rows:
                new = recording.inputs[layer].expand(joined - rows, -1, -1)
                hidden = new if hidden is None else torch.cat([hidden, new])
                rows = joined
            if hidden is None:
                continue
            sites = [(row, site) for row, group in enumerate(groups[:rows]) for site in group if site.layer == layer]
            with hooked(*self._hooks(recording, layer, sites)):
                hidden = recording.block(layer, hidden)
            hidden = self._put(hidden, recording.start, self.clean.states[layer + 1], _of(sites, "residual"))
        return hidden

    def _hooks(self, recording, layer: int, layer_sites: list[tuple[int, Site]]) -> list:
        def putting(clean: Tensor, sites):
            def put(values: Tensor) -> Tensor:
                placed = values.reshape(-1, recording.length, values.shape[-1])  # some families flatten them
                return self._put(placed, recording.start, clean, sites).reshape(values.shape)

            return put

        hooks = []
        for kind, part in (("attention", "head"), ("mlp", "neuron")):
            module = sublayer(self.model, kind, layer)
            if sites := _of(layer_sites, part):
                hooks.append(on_input(module, putting(self.clean.inputs[kind][layer], sites)))
            if sites := _of(layer_sites, kind):
                hooks.append(on_output(module, putting(self.clean.outputs[kind][layer], sites)))
        return hooks

    def _put(self, values: Tensor, start: int, clean: Tensor, sites: list[tuple[int, Site]]) -> Tensor:
        """`values` (rows, suffix, width) with those of the sites taken from `clean` (1, tokens, width)."""
        if not sites:
            return values
        values = values.clone()
        for row, site in sites:
            width = values.shape[-1]
            if site.kind == "head":
                width //= self.model.n_heads
            part = slice(None)
            if site.index is not None:
                size = width if site.kind == "head" else 1
                part = slice(site.index * size, (site.index + 1) * size)
            for position in self._positions(site):
                if position >= start:
                    values[row, position - start, part] = clean[0, position, part].to(values)
        return values


def _of(sites: list[tuple[int, Site]], kind: str) -> list[tuple[int, Site]]:
    return [(row, site) for row, site in sites if site.kind == kind]
