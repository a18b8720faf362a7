"""knowedit: find the neurons behind a fact in a language model, prove them, and edit the fact.

    import knowedit

    model = knowedit.load()
    fact = knowedit.find_fact("landmark-city/eiffel-tower")
    found = knowedit.locate_fact(model, fact)

Every name below is loaded when it is first used, so `import knowedit` takes no time and does not import torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "knowedit.errors": ("KnoweditError", "InputError", "ModelError", "LayoutError", "DataError"),
    "knowedit.facts": ("Fact", "Neighbour"),
    "knowedit.sources": ("builtin_facts", "read_facts", "find_fact"),
    "knowedit.models.loading": ("load", "wrap"),
    "knowedit.models.adapter": ("Model",),
    "knowedit.models.layouts": ("Layout",),
    "knowedit.intervene": ("suppress", "amplify", "set_to"),
    "knowedit.locate.attribution": ("attribute", "attribute_many", "Attribution", "AttributionConfig"),
    "knowedit.locate.rankings": ("rank", "RANKINGS"),
    "knowedit.locate.neurons": ("Neuron", "NeuronSet"),
    "knowedit.locate.locating": ("locate_fact", "locate_prompts", "LocateConfig", "mean_activation"),
    "knowedit.locate.proof": ("prove", "Proof"),
    "knowedit.recall.imputation": ("impute", "impute_facts", "ImputationConfig"),
    "knowedit.recall.anatomy": ("anatomy",),
    "knowedit.recall.relation_probe": ("relation_probe", "ProbeConfig"),
    "knowedit.recall.geometry": ("geometry", "fitting"),
    "knowedit.recall.and_gate": ("and_gates",),
    "knowedit.recall.accounting": ("account", "account_config"),
    "knowedit.evaluate.precision": ("precision", "quantized", "PrecisionConfig"),
    "knowedit.answers": ("ask", "Answer"),
    "knowedit.recall.lens": ("lens", "Lens"),
    "knowedit.recall.contributions": ("contributions", "Contributions"),
    "knowedit.recall.tracing": ("trace", "trace_facts", "Trace", "TraceConfig"),
    "knowedit.recall.trace_average": ("average_traces", "TraceAverage"),
    "knowedit.recall.knockout": ("attention_knockout", "sublayer_knockout", "Knockout"),
    "knowedit.recall.pipeline": ("recall_fact", "Recall", "RecallConfig"),
    "knowedit.recall.pipeline_average": ("average_recall", "RecallAverage"),
    "knowedit.recall.patching": ("patch", "Site", "Patched"),
    "knowedit.recall.scan": ("scan", "Scan"),
    "knowedit.recall.card": ("card", "cards", "read_located", "Card", "CardConfig"),
    "knowedit.recall.keys": ("keys", "KeysConfig"),
    "knowedit.recall.values": ("agreement", "compositional"),
    "knowedit.recall.sparsity": ("active_by_layer", "keep_strongest", "SparsityConfig"),
    "knowedit.recall.groups": ("groups", "GroupsConfig"),
    "knowedit.recall.polysemanticity": ("polysemanticity", "PolysemanticityConfig"),
    "knowedit.edit.delta": ("Edit", "LowRank", "Dense"),
    "knowedit.edit.apply": ("apply", "applied", "edits_on", "unedited", "Handle"),
    "knowedit.edit.storage": ("load_edit",),
    "knowedit.edit.covariance": ("covariance", "Covariance"),
    "knowedit.edit.rome": ("rome", "rome_many", "rome_config", "RomeConfig"),
    "knowedit.edit.layer": ("best_layer",),
    "knowedit.edit.check": ("preflight", "outcome", "check", "perplexity", "Guard", "GuardError"),
    "knowedit.edit.knowledge_neurons": ("knowledge_neurons", "KnowledgeNeuronsConfig", "erase", "EraseConfig"),
    "knowedit.edit.fine_tune": ("fine_tune", "fine_tune_many", "FineTuneConfig"),
    "knowedit.edit.export": ("to_peft", "to_checkpoint"),
    "knowedit.report.explain": ("explain", "ExplainConfig"),
    "knowedit.report.html": ("save_page",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'knowedit' has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(_MODULE_OF[name]), name))


def __dir__():
    return sorted(__all__)
