"""ROME in its parts: a search for v*, and edits by any settings made from what it found.

What needs the same δ in several settings, or must be given covariance, contexts and preserved keys, takes them here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from tqdm.auto import tqdm

import knowedit
from knowedit.edit.apply import applied
from knowedit.edit.covariance import Covariance
from knowedit.edit.edit import Edit
from knowedit.edit.methods.rome import SMOLLM2, RomeConfig, edit_of, rome_many
from knowedit.edit.methods.search_rows import Request
from knowedit.edit.methods.v_star import Value, find_v_star, request
from knowedit.edit.preflight import perplexity
from knowedit.edit.preserved_keys import preserved_keys
from knowedit.facts import Fact
from knowedit.texts.corpus import contexts

T = TypeVar("T")


class Rome:
    """The default model with covariances and preserved keys of some layers. Configs hold their contexts as texts."""

    def __init__(self, layers: Sequence[int] = (SMOLLM2.layer,)):
        self.model = knowedit.load()
        self.covariances = knowedit.covariance(self.model, sorted(layers))
        self.preserved = {layer: preserved_keys(self.model, layer) for layer in layers}

    def with_contexts(self, config: RomeConfig = SMOLLM2) -> RomeConfig:
        """`config` with as many texts as it asks for."""
        return replace(config, contexts=contexts(self.model, config.contexts, config.lengths, seed=config.seed))

    def requests(self, facts: Sequence[Fact], texts: Sequence[str]) -> list[Request]:
        return [request(self.model, fact, fact.target_new, texts) for fact in facts]

    def searched(self, facts: Sequence[Fact], config: RomeConfig) -> list[Value]:
        """v* of each fact."""
        with tqdm(total=len(facts), desc="v*") as bar:
            requests = self.requests(facts, config.contexts)
            progress = lambda done: bar.update(done - bar.n)  # noqa: E731
            return find_v_star(self.model, requests, config.layer, config.search, progress)

    def edits(
        self, facts: Sequence[Fact], values: Sequence[Value], config: RomeConfig, covariance: Covariance | None = None
    ) -> list[Edit]:
        """The edits that `config` makes of v*; `covariance`: another one than that of the layer."""
        C, preserved = covariance or self.covariances[config.layer], self.preserved[config.layer]
        return [edit_of(self.model, fact, v, C, preserved, config) for fact, v in zip(facts, values, strict=True)]

    def searched_edits(self, facts: Sequence[Fact], config: RomeConfig) -> list[Edit]:
        """The edits of facts, whose searches share batches."""
        C, preserved = self.covariances[config.layer], self.preserved[config.layer]
        return rome_many(self.model, facts, config, covariance=C, preserved=preserved)

    @cached_property
    def clean_perplexity(self) -> float:
        """The perplexity of the unedited model."""
        return perplexity(self.model)

    def each_applied(self, edits: Sequence[Edit], measure: Callable[[int], T]) -> Iterator[tuple[T, float]]:
        """`measure(i)` while the i-th edit is on the model, and how much perplexity rose then, as a fraction."""
        clean = self.clean_perplexity  # before an edit is on
        for i, edit in enumerate(edits):
            with applied(self.model, edit):
                yield measure(i), perplexity(self.model) / clean - 1
