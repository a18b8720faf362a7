"""knowedit: find the neurons behind a fact in a language model, prove them, and edit the fact.

    import knowedit

    model = knowedit.load()
    fact = knowedit.find_fact("landmark-city/eiffel-tower")
    found = knowedit.locate(model, fact)

Every name below is loaded when it is first used, so `import knowedit` takes no time and does not import torch.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_HOME = {
    "knowedit.errors": ("KnoweditError", "InputError", "ModelError", "LayoutError", "DataError"),
    "knowedit.facts": ("Fact", "Neighbour"),
    "knowedit.sources": ("builtin_facts", "read_facts", "find_fact"),
    "knowedit.models.loading": ("load", "wrap"),
    "knowedit.models.adapter": ("Model",),
    "knowedit.models.layouts": ("Layout",),
    "knowedit.intervene": ("suppress", "amplify", "set_to"),
    "knowedit.locate.attribution": ("attribute", "Attribution", "AttributionConfig"),
    "knowedit.locate.rankings": ("rank", "RANKINGS"),
    "knowedit.locate.neurons": ("Neuron", "NeuronSet"),
    "knowedit.locate.locating": ("locate", "LocateConfig"),
    "knowedit.locate.proof": ("prove", "Proof"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


class _CallablePackage(ModuleType):
    """A subpackage that shares its name with its main function: `knowedit.locate` is both."""

    def __call__(self, *args, **kwargs):
        return _function(self)(*args, **kwargs)

    @property
    def __wrapped__(self):  # what `inspect.signature` follows
        return _function(self)


def _function(package: ModuleType):
    name = package.__name__.rpartition(".")[2]
    return getattr(import_module(_MODULE_OF[name]), name)


class _Root(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # the import system binds a subpackage here once it is loaded, whoever loads it first
        if name in _MODULE_OF and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'knowedit' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    return globals().setdefault(name, value)  # the subpackage, where importing the function's module bound it


def __dir__():
    return sorted(__all__)


import_module("sys").modules[__name__].__class__ = _Root
