"""The editing methods as a benchmark uses them: prepared once for a model, then given facts in batches.

    editor = make_editor(model, "rome", {"search": {"lr": 0.5}})
    edits = editor(facts)                # None where the method leaves the model as it is

`published` among the settings names those that are taken from a paper: `gpt2-xl` for ROME, `FT gpt2-xl` or
`FT-L gpt2-xl` for fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from ...errors import InputError, did_you_mean
from ...facts import Fact
from ...locate.neuron_kinds import ControlPool
from ...models.adapter import Model
from ...settings import overridden
from ...texts.corpus import contexts as sample_contexts
from ..apply import unedited
from ..covariance import covariance
from ..edit import Edit
from ..preserved_keys import preserved_keys
from .fine_tune import PUBLISHED as FT_PUBLISHED, FineTuneConfig, fine_tune_many
from .knowledge_neurons import KnowledgeNeuronsConfig, knowledge_neurons
from .relation_neurons import RelationNeurons
from .rome import PUBLISHED, RomeConfig, rome_config, rome_many

METHODS = ("rome", "fine_tune", "knowledge_neurons", "none")

Editor = Callable[[Sequence[Fact]], list[Edit | None]]


def check_method(name: str) -> str:
    """Return `name` if it is a method; raise `InputError` otherwise."""
    if name not in METHODS:
        raise InputError(f"no method is called {name!r}{did_you_mean(name, METHODS)}; there are {', '.join(METHODS)}")
    return name


def method_config(method: str, settings: Mapping, layer: int | None = None, model: Model | None = None):
    """The config of `method` (None for `none`): the model's own settings, or published ones, with `settings` over them.

    Without a model the defaults stand for the model's own. Raises `InputError` for a setting that the method does not
    have.
    """
    check_method(method)
    settings = dict(settings)
    name = settings.pop("published", None)
    if method == "none":
        if settings or name or layer is not None:
            raise InputError("the method none leaves the model as it is and has no settings")
        return None
    if method == "knowledge_neurons":
        if layer is not None:
            raise InputError("knowledge_neurons edits where the neurons are; leave out the layer")
        return overridden(KnowledgeNeuronsConfig(), settings)
    base = _rome(name, model, layer) if method == "rome" else _fine_tune(name)
    config = overridden(base, settings)
    return config if layer is None else replace(config, layer=layer)


def _rome(name: str | None, model: Model | None, layer: int | None) -> RomeConfig:
    if name is not None:
        if name not in PUBLISHED:
            known = ", ".join(PUBLISHED)
            raise InputError(f"nothing was published for {name!r}{did_you_mean(name, PUBLISHED)}; there are {known}")
        return PUBLISHED[name]
    if model is None:
        return RomeConfig()
    try:
        return rome_config(model)
    except InputError:
        if layer is None:
            raise
        return RomeConfig()


def _fine_tune(name: str | None) -> FineTuneConfig:
    if name is None:
        return FineTuneConfig()
    known = {" ".join(key): config for key, config in FT_PUBLISHED.items()}
    if name not in known:
        raise InputError(f"nothing was published for {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}")
    return known[name]


def make_editor(model: Model, method: str, config, facts: Sequence[Fact]) -> Editor:
    """What makes edits of facts by `method`, each to be applied alone to `model` as it is when called.

    `facts` are all of their source, among which a method looks for others of a relation.
    """
    if method == "none":
        return lambda facts: [None] * len(facts)
    if method == "fine_tune":
        model.check_layer(config.layer)
        return lambda facts: fine_tune_many(model, facts, config)
    if method == "knowledge_neurons":
        pool = ControlPool(model, ())  # what else neurons answer for does not matter here
        relations = RelationNeurons(model, facts, config.locate, config.others)

        def edit(fact: Fact) -> Edit:
            others = relations.of_others(fact) if config.shared < 1 else ()
            return knowledge_neurons(model, fact, config, others=others, pool=pool)

        return lambda facts: [edit(fact) for fact in facts]
    model.check_layer(config.layer)
    with unedited(model):
        given = {
            "covariance": covariance(model, [config.layer])[config.layer],
            "preserved": preserved_keys(model, config.layer, None if config.preserve else ()),
        }
        if isinstance(config.contexts, int):
            texts = sample_contexts(model, config.contexts, config.lengths, seed=config.seed)
            config = replace(config, contexts=texts)
    return lambda facts: list(rome_many(model, facts, config, **given))


def config_dict(config) -> dict | None:
    """For JSON."""
    if config is None:
        return None
    return config.as_dict() if hasattr(config, "as_dict") else asdict(config)
