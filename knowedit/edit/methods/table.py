"""All editing methods, a row each: `knowedit edit`, `knowedit bench edit` and a dry run read this table alone.

    config = method_config("rome", {"search": {"lr": 0.5}}, model=model)
    editor = prepare(model, "rome", config, facts)
    edits = editor(facts)

A new method is a file that holds a `METHOD` (`method.py` says what that is) and a row that names the file. `published`
among the settings takes those of a paper: `gpt2-xl` for ROME, `FT gpt2-xl` or `FT-L gpt2-xl` for fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import InputError, did_you_mean
from ...settings import overridden
from .method import Bars, Editor, Method, no_bars

if TYPE_CHECKING:
    from ...facts import Fact
    from ...models.adapter import Model


@dataclass(frozen=True)
class Row:
    """A method: `words` for `--help`, and `file`, the module that holds its `METHOD`, loaded when it is first used.

    A module that holds several methods is named with the one that is meant, as in `module:NAME`.

    `edits`: whether it makes edits at all; one that does not has only benchmarks as its use.
    """

    words: str
    file: str
    edits: bool = True

    @property
    def method(self) -> Method:
        module, _, name = self.file.partition(":")
        return getattr(import_module(module, __package__), name or "METHOD")


METHODS: dict[str, Row] = {
    "rome": Row("a rank-one update of one layer (Meng et al. 2022)", ".rome"),
    "memit": Row("all facts by one least-squares update (Meng et al. 2023)", "..fact_set.method:MEMIT"),
    "emmet": Row("all facts by one update as equalities (Gupta et al. 2024)", "..fact_set.method:EMMET"),
    "alphaedit": Row(
        "all facts by one update where other keys hardly are (Fang et al. 2025)", "..fact_set.method:ALPHAEDIT"
    ),
    "fine_tune": Row("gradient descent on one layer: FT, and FT-L with norm_constraint", ".fine_tune"),
    "loc_ft": Row("one layer fine-tuned on all facts, pass after pass (Yang et al. 2025)", ".loc_ft"),
    "knowledge_neurons": Row("value slots of located neurons rewritten (Dai et al. 2022)", ".knowledge_neurons"),
    "retrieval": Row("no edit: facts stand before prompts that name their subject", ".retrieval", edits=False),
    "none": Row("the model as it is", ".none", edits=False),
}


def find_method(name: str) -> Method:
    """The method of that name. Raises `InputError` where there is none."""
    if name not in METHODS:
        raise InputError(f"no method is called {name!r}{did_you_mean(name, METHODS)}; there are {', '.join(METHODS)}")
    return METHODS[name].method


def method_config(name: str, settings: Mapping, layer: int | None = None, model: Model | None = None) -> Any:
    """The settings of the method `name`: the model's own, or published ones, with `settings` and `layer` over them.

    Without a model the defaults stand for the model's own. Raises `InputError` for an unknown method or setting, a
    layer that the model does not have, and a model that nothing was tuned for where no layer is given.
    """
    method = find_method(name)
    settings = dict(settings)
    layer = settings.pop("layer", None) if layer is None else layer
    first = settings.get("layers") if layer is None else layer
    base = _base(method, settings.pop("published", None), first, model)
    if settings and not fields(base):
        raise InputError(f"the method {name} has no settings, found {', '.join(map(str, settings))}; leave them out")
    if layer is not None:
        if not hasattr(base, "layer") and not hasattr(base, "layers"):
            raise InputError(f"the method {name} takes no layer, found {layer}; leave it out")
        settings |= {"layer": layer} if hasattr(base, "layer") else {"layers": [layer]}
    config = overridden(base, settings)
    if model is not None and getattr(config, "layer", None) is not None:
        model.check_layer(config.layer)
    return config


def prepare(model: Model, name: str, config: Any, facts: Sequence[Fact], bars: Bars = no_bars) -> Editor:
    """What makes edits by the method `name` on `model`, with all made that they share.

    `config` is of `method_config`. `facts` are all of a source, among which a method looks for others of a relation;
    `bars` show how far the work is. Edits that are on the model play no part in what is prepared.
    """
    return find_method(name).prepare(model, config, facts, bars)


def _base(method: Method, published: str | None, layer: Any, model: Model | None) -> Any:
    if published is not None:
        if published not in method.published:
            known = ", ".join(method.published) or "none for this method"
            raise InputError(
                f"no settings were published as {published!r}{did_you_mean(str(published), method.published)}; "
                f"there are {known}"
            )
        return method.published[published]
    if model is None or method.model_config is None:
        return method.config()
    try:
        return method.model_config(model)
    except InputError:
        if layer is None:
            raise
        return method.config()
