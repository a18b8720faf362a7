"""What a fact set is made with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...errors import InputError, did_you_mean
from ...models.adapter import Model
from ...settings import overridden
from ..methods.rome import RomeConfig, rome_config
from .alphaedit import AlphaEdit
from .emmet import Emmet
from .memit import Memit

Solver = Memit | Emmet | AlphaEdit

SOLVERS: Mapping[str, type[Solver]] = {solver.name: solver for solver in (Memit, Emmet, AlphaEdit)}


FEWEST, OF_LAYERS = 4, 3  # layers that share a change: at least so many, at most one of so many of the model's
HELD = 32  # a layer holds as many facts as a 32nd of its neurons, about; with more of them a further one is changed


@dataclass(frozen=True)
class FactSetConfig:
    """Which layers a set changes, and how.

    - `layers`: neighbouring or not, the lowest first; None for as many as the number of facts asks for (`layers_for`),
      from that of `rows` on.
    - `rows`: how key and value of each fact are found; in the first of `layers`, where these are given.
    - `key_contexts`: a fact's key is the mean over its plain prompt and the prompt behind so many of the contexts of
      `rows`; 0 for the plain prompt's alone. A subject that opens a prompt has another key there than behind text.
    - `solver`: how rows become a change of weights: `Memit`, `Emmet` or `AlphaEdit`.
    - `least`: probability of the new answer below which a search has failed, and its fact is kept out.
    """

    layers: tuple[int, ...] | None = None
    rows: RomeConfig = field(default_factory=RomeConfig)
    solver: Solver = field(default_factory=Memit)
    least: float = 0.05
    key_contexts: int = 1

    def __post_init__(self):
        if self.rows.key != "plain":
            raise InputError(f"the key is {self.rows.key!r}, expected 'plain' and key_contexts for a mean")
        contexts = self.rows.contexts if isinstance(self.rows.contexts, int) else len(self.rows.contexts)
        if not isinstance(self.key_contexts, int) or not 0 <= self.key_contexts <= contexts:
            raise InputError(f"key_contexts are {self.key_contexts!r}, expected 0 to {contexts}, as rows.contexts has")
        if self.layers is not None:
            layers = tuple(self.layers)
            if not layers or sorted(set(layers)) != list(layers):
                raise InputError(f"the layers are {list(layers)!r}, expected one or more in rising order")
            object.__setattr__(self, "layers", layers)
            object.__setattr__(self, "rows", replace(self.rows, layer=layers[0]))
        if not 0 < self.least < 1:
            raise InputError(f"least is {self.least!r}, expected a probability between 0 and 1")

    def as_dict(self) -> dict:
        """For JSON; `from_dict` reads it."""
        return {
            "layers": self.layers,
            "rows": self.rows.as_dict(),
            "key_contexts": self.key_contexts,
            "method": self.solver.name,
            "solver": asdict(self.solver),
            "least": self.least,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FactSetConfig:
        """What `as_dict` gave. Raises `InputError` for anything else."""
        values = dict(record)
        solver = find_solver(values.pop("method", ""))()
        layers = values["layers"]
        return overridden(cls(solver=solver), {**values, "layers": None if layers is None else tuple(layers)})


def find_solver(name: str) -> type[Solver]:
    """The solver of that name. Raises `InputError` where there is none."""
    if name not in SOLVERS:
        raise InputError(f"no solver is called {name!r}{did_you_mean(name, SOLVERS)}; there are {', '.join(SOLVERS)}")
    return SOLVERS[name]


def fact_set_config(model: Model) -> FactSetConfig:
    """The settings for `model`: rows as ROME's, in ROME's layer, and layers by the number of facts.

    Raises `InputError` for a model that no table knows.
    """
    return FactSetConfig(rows=rome_config(model))


def layers_for(model: Model, first: int, facts: int) -> tuple[int, ...]:
    """Which layers share the change of so many facts, from `first` on.

    The more of a layer's keys are spoken for, the larger and the less sure is what it changes, so facts that crowd
    `FEWEST` layers take more. One, where a norm stands behind the MLP, whose output is not added as it is.
    """
    wanted = max(FEWEST, min(round(HELD * facts / model.n_neurons), model.n_layers // OF_LAYERS))
    return tuple(range(first, first + 1 if model.normalised else min(first + wanted, model.n_layers)))


def settled(model: Model, config: FactSetConfig | None) -> FactSetConfig:
    """`config` with its first layer filled in; the model's own settings where it is None.

    Raises `InputError` for a layer that the model does not have, and where neither names a first one.
    """
    config = config or fact_set_config(model)
    if config.rows.layer is None:
        config = replace(config, rows=replace(config.rows, layer=rome_config(model).layer))
    for layer in config.layers or (config.rows.layer,):
        model.check_layer(layer)
    return config
