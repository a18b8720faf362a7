"""Thousands of facts as one change of a model's weights, from which any one can be taken away exactly.

    facts = knowedit.FactSet(model)
    facts.add(read_facts("thousand.csv"))
    with facts.applied():
        ...
    facts.remove(["eiffel-tower"])

Editing one fact after the other dies of its own history: each edit is made for the weights that those before it left.
Here key and value of each fact are found once, on the unedited model (`buckets.py`), kept (`store.py`) and never
changed. What the weights become is solved from the rows of the facts that are there (`solve.py`), in an order that
their contents decide. So the change is a function of the set: whoever adds the same facts in whatever order gets the
same bits, and a fact that was removed leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

from ...errors import InputError, ModelError
from ...facts import Fact
from ...models.adapter import Model
from ...progress import Progress, silent
from ...version import __version__
from ..apply import unedited
from ..covariance import Covariance, covariance, default_tokens
from ..edit import Edit, check_request, make_edit
from ..methods.method import Bars, no_bars
from ..methods.rome import with_contexts
from ..methods.search_rows import Request
from ..methods.v_star import OutOfReachError, Value, request
from ..preserved_keys import Metric, PreservedKeys, preserved_keys
from .buckets import find_in_buckets
from .collisions import Collision, alike, contradictions
from .config import FactSetConfig, Solver, layers_for, settled
from .rows import KeptRows, Row, by_id, content_hash, row_name
from .solve import solved
from .store import SCHEMA, Store


@dataclass(frozen=True)
class Added:
    """What became of facts that were to be added, by id.

    - `added`: in the set now. `there`: were in it before, as they are.
    - `kept_out`: id → why, of facts whose search failed or that contradict others.
    - `collisions`: of facts that are in the set with one another, the new ones among them.
    """

    added: tuple[str, ...]
    there: tuple[str, ...]
    kept_out: dict[str, str]
    collisions: tuple[Collision, ...]


class FactSet:
    """The facts that one change of `model` holds.

    **Arguments:**

    - `config`: by default the model's own (`fact_set_config`).
    - `covariance`, `preserved`: by layer, C and the keys of other subjects; by default as ROME has them.

    Raises `InputError` for layers that the model does not have, and for a model that no table knows without a config.
    """

    def __init__(
        self,
        model: Model,
        config: FactSetConfig | None = None,
        *,
        covariance: dict[int, Covariance] | None = None,
        preserved: dict[int, PreservedKeys] | None = None,
    ):
        config = settled(model, config)
        with unedited(model):
            weights = model.weights_hash()
        config = replace(config, rows=with_contexts(model, config.rows, weights))
        header = {"schema": SCHEMA, "model": model.name, "weights": weights, "config": config.as_dict()}
        self._begin(model, config, Store({**header, "knowedit": __version__}), covariance, preserved)

    def _begin(self, model: Model, config: FactSetConfig, store: Store, C: dict | None, preserved: dict | None) -> None:
        self.model, self.config, self._store = model, config, store
        self._C, self._preserved = dict(C or {}), dict(preserved or {})
        self._edit: tuple[object, Edit] | None = None  # the last one, with what it was made from

    @classmethod
    def load(
        cls,
        model: Model,
        folder: str | Path,
        *,
        covariance: dict[int, Covariance] | None = None,
        preserved: dict[int, PreservedKeys] | None = None,
    ) -> FactSet:
        """The set in `folder`, which grows there when facts are added or removed.

        Raises `InputError` where there is no set, `DataError` where it is damaged and `ModelError` for another model
        than it was made on.
        """
        store = Store.read(folder)
        config = FactSetConfig.from_dict(store.header["config"])
        with unedited(model):
            if model.weights_hash() != store.header["weights"]:
                raise ModelError(
                    f"the fact set {str(folder)!r} was made on {store.header['model']} with other weights than "
                    f"{model.name} has; load that model in the same type, or begin a new set"
                )
        found = cls.__new__(cls)
        found._begin(model, config, store, covariance, preserved)
        return found

    def save(self, folder: str | Path) -> Path:
        """Write the set to a new folder and return its path; it grows there from then on.

        Raises `InputError` where the folder exists or cannot be written.
        """
        self._store = self._store.write(folder)
        return Path(folder).expanduser()

    # ------------------------------------------------------------ the facts

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts in the set, in the order in which they are solved: that of their contents' hashes."""
        return self._store.facts()

    def __len__(self) -> int:
        return len(self._store.members)

    def __contains__(self, id: object) -> bool:
        return id in self._store.members

    def __iter__(self) -> Iterator[Fact]:
        return iter(self.facts)

    def add(self, facts: Sequence[Fact], *, progress: Progress = silent) -> Added:
        """Add facts; one without an id gets one. Those that are in the set as they are stay as they are.

        Facts whose search fails or that contradict others are kept out, and the others go on. In a folder everything
        that is found is kept at once: a call that was killed and is made again goes on from there. `progress` counts
        facts. Raises `InputError` for an id twice, an id that another fact of the set has, and a fact that asks for
        nothing new.
        """
        new = by_id(list(facts))
        members = self._store.members
        for name, fact in new.items():
            if name in members and self._store.hashes[name] != content_hash(fact):
                raise InputError(f"another fact with the id {name!r} is in the set; replace it, or give a new id")
        there = tuple(name for name in new if name in members)
        return self._take({name: fact for name, fact in new.items() if name not in members}, (), there, progress)

    def replace(self, facts: Sequence[Fact], *, progress: Progress = silent) -> Added:
        """Put facts in the places of those of the same ids. One that is kept out leaves the old one where it was.

        Raises `InputError` for an id that is not in the set, and what `add` raises.
        """
        new = by_id(list(facts))
        self._store.check_there(new)
        return self._take(new, tuple(new), (), progress)

    def remove(self, ids: Iterable[str]) -> None:
        """Take facts away. Raises `InputError` for an id twice or one that is not in the set, and removes none then."""
        self._store.change(self._store.check_there([ids] if isinstance(ids, str) else ids), ())

    def collisions(self) -> list[Collision]:
        """Pairs of facts in the set whose keys are so much alike that one weight can hardly give both their answers."""
        return alike(self.facts, self._store.rows)

    def _take(
        self, new: dict[str, Fact], removed: tuple[str, ...], there: tuple[str, ...], progress: Progress
    ) -> Added:
        members = self._store.members
        kept_out: dict[str, str] = {}

        def keep_out_contradictions() -> bool:
            """Whether a fact went. One that is kept out leaves its old version in the set, which counts then, too."""
            before = len(kept_out)
            staying = [fact for name, fact in members.items() if name not in removed or name in kept_out]
            for collision in contradictions(staying, [fact for name, fact in new.items() if name not in kept_out]):
                for name, other in collision.refused:
                    if name in new:
                        kept_out.setdefault(name, f"with {other}: {collision.why}")
            return len(kept_out) > before

        while keep_out_contradictions():
            pass
        kept_out |= self._search([fact for name, fact in new.items() if name not in kept_out], progress)
        while keep_out_contradictions():
            pass
        added = [fact for name, fact in new.items() if name not in kept_out]
        names = tuple(str(fact.id) for fact in added)
        self._store.change([name for name in removed if name in names], added)
        return Added(names, there, kept_out, tuple(alike(self.facts, self._store.rows, new=names)))

    def _search(self, facts: Sequence[Fact], progress: Progress) -> dict[str, str]:
        """Find the rows of `facts` that are not there yet; return why a fact has none, by id."""
        failed: dict[str, str] = {}
        requests: dict[str, Request] = {}
        cache = KeptRows(self.model, self.config, self._store.header["weights"])
        new = sorted({row_name(fact) for fact in facts} - set(self._store.rows))
        self._store.keep({name: row for name in new if (row := cache.read(name)) is not None})
        for fact in facts:
            name = row_name(fact)
            if name in self._store.rows or name in requests:
                continue
            try:
                contexts = cast(tuple[str, ...], self.config.rows.contexts)
                requests[name] = request(self.model, fact, check_request(fact), contexts)
            except InputError as error:
                failed[str(fact.id)] = str(error)
        searched = list(requests)
        done = len(facts) - len(searched)
        layer = self.config.rows.layer
        out_of_reach: set[str] = set()

        def keep(values: Mapping[int, Value]) -> None:
            nonlocal done
            out_of_reach.update(searched[i] for i, value in values.items() if not value.reaches)
            rows = {searched[i]: _row(value, self.config.key_contexts) for i, value in values.items() if value.reaches}
            self._store.keep(rows)
            cache.write(rows)
            done += len(values)
            progress(done)

        if searched:
            with unedited(self.model):
                find_in_buckets(self.model, list(requests.values()), layer, self.config.rows.search, keep)
        for fact in facts:
            name = row_name(fact)
            row = self._store.rows.get(name)
            if name in out_of_reach:
                failed[str(fact.id)] = str(OutOfReachError(fact, layer))
            elif row is not None and not row.probability >= self.config.least:
                failed[str(fact.id)] = (
                    f"the search for its value failed: the new answer has a probability of {row.probability:.2g} after "
                    f"{row.steps} steps, expected {self.config.least:g} or more; ask in other words"
                )
        return failed

    # ------------------------------------------------------------ the change

    def prepare(self, bars: Bars = no_bars, layers: Sequence[int] | None = None) -> None:
        """Have C and the preserved keys of the layers, which an edit needs; `bars` show what takes long."""
        layers = self._layers(layers)
        rows = self.config.rows
        if all(layer in self._C and layer in self._preserved for layer in layers):
            return
        with unedited(self.model):
            weights = self.model.weights_hash()
            if wanted := [layer for layer in layers if layer not in self._C]:
                with bars("covariance", rows.covariance.tokens or default_tokens(self.model), "token") as step:
                    text, tokens = rows.covariance.text, rows.covariance.tokens
                    self._C |= covariance(
                        self.model, wanted, source=text, tokens=tokens, weights_hash=weights, progress=step
                    )
            for layer in layers:
                if layer not in self._preserved:
                    facts = None if rows.preserve else ()
                    self._preserved[layer] = preserved_keys(self.model, layer, facts, weights_hash=weights)

    def edit(self, solver: Solver | None = None, layers: Sequence[int] | None = None) -> Edit:
        """The change that holds all facts of the set, made for the unedited weights.

        `solver` and `layers` take the places of the config's, on the same rows; the first layer stays the same.
        Raises `InputError` for an empty set, other first layers, and where the solver cannot hold the facts.
        """
        facts, layers, solver = self.facts, self._layers(layers), solver or self.config.solver
        if not facts:
            raise InputError("the set holds no facts, so there is no change to make; add some")
        wanted = facts, layers, solver
        if self._edit is None or self._edit[0] != wanted:
            self.prepare(layers=layers)
            config = replace(self.config, layers=layers, solver=solver).as_dict()
            metrics = self._metrics(facts, layers)
            with unedited(self.model):
                contexts = cast(tuple[str, ...], self.config.rows.contexts)[: self.config.key_contexts]
                changes = solved(self.model, facts, self._store.rows, metrics, solver, contexts)
                edit = make_edit(
                    self.model, changes, method=solver.name, config=config, facts=facts, seed=self.config.rows.seed
                )
            self._edit = wanted, edit
        return self._edit[1]

    def _metrics(self, facts: Sequence[Fact], layers: Sequence[int]) -> dict[int, Metric]:
        """A of each layer, without the keys about `facts`: they are of the same subjects in every layer."""
        C, preserved, rows = self._C, self._preserved, self.config.rows
        about = sorted({i for fact in facts for i in preserved[layers[0]].about(fact)})
        return {layer: preserved[layer].metric(C[layer], rows.preserve, rows.shrinkage, about) for layer in layers}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The set is on the model while the context lasts. An empty one changes nothing."""
        if not self._store.members:
            yield
            return
        with self.edit().applied(self.model):
            yield

    def _layers(self, layers: Sequence[int] | None) -> tuple[int, ...]:
        """Those that an edit changes: `layers`, else the config's, else by the number of facts."""
        first = self.config.rows.layer
        assert first is not None
        if layers is None:
            return self.config.layers or layers_for(self.model, first, len(self))
        given = settled(self.model, replace(self.config, layers=tuple(layers))).layers
        if not given or given[0] != first:
            raise InputError(
                f"values are found in layer {first}, the first edited layer is {layers[0]}; give that one, or make "
                "another set"
            )
        return given


def _row(value: Value, contexts: int) -> Row:
    mean = value.keys[: 1 + contexts].double().mean(0)
    key, delta = (x.detach().to("cpu", torch.float32, copy=True) for x in (mean, value.delta))
    finite = bool(torch.isfinite(delta).all() and torch.isfinite(key).all()) and math.isfinite(value.probability)
    return Row(key, delta, value.probability if finite else 0.0, value.steps)
