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
    "knowedit.locate.locate": ("locate_fact", "locate_prompts", "LocateConfig", "mean_activation"),
    "knowedit.locate.proof": ("prove", "Proof"),
    "knowedit.mlp.imputation": ("impute", "impute_facts", "ImputationConfig"),
    "knowedit.mlp.anatomy": ("anatomy",),
    "knowedit.mlp.relation_probe": ("relation_probe", "ProbeConfig"),
    "knowedit.mlp.geometry": ("geometry", "fitting"),
    "knowedit.mlp.and_gate": ("and_gates",),
    "knowedit.mlp.accounting": ("account", "account_config"),
    "knowedit.mlp.precision": ("precision", "quantized", "PrecisionConfig"),
    "knowedit.answers": ("ask", "Answer"),
    "knowedit.recall.lens.logit_lens": ("lens", "Lens"),
    "knowedit.recall.lens.logit_attribution": ("contributions", "Contributions"),
    "knowedit.recall.trace.exact": ("trace", "trace_facts", "Trace", "TraceConfig"),
    "knowedit.recall.trace.average": ("average_traces", "TraceAverage"),
    "knowedit.recall.flow.knockout": ("attention_knockout", "sublayer_knockout", "Knockout"),
    "knowedit.recall.flow.pipeline": ("recall_fact", "Recall", "RecallConfig"),
    "knowedit.recall.flow.average": ("average_recall", "RecallAverage"),
    "knowedit.recall.trace.patch": ("patch", "Site", "Patched"),
    "knowedit.memory.corpus_scan": ("scan", "ActivationScan"),
    "knowedit.memory.card": ("card", "cards", "read_located", "Card", "CardConfig"),
    "knowedit.memory.keys": ("keys", "KeysConfig"),
    "knowedit.memory.values": ("agreement", "compositional"),
    "knowedit.memory.sparsity": ("active_by_layer", "keep_strongest", "SparsityConfig"),
    "knowedit.memory.groups": ("groups", "GroupsConfig"),
    "knowedit.memory.polysemanticity": ("polysemanticity", "PolysemanticityConfig"),
    "knowedit.edit.delta": ("LowRank", "Dense"),
    "knowedit.edit.edit": ("Edit", "load_edit"),
    "knowedit.edit.apply": ("apply", "applied", "edits_on", "unedited", "Handle"),
    "knowedit.edit.covariance": ("covariance", "Covariance"),
    "knowedit.edit.methods.rome": ("rome", "rome_many", "rome_config", "RomeConfig"),
    "knowedit.edit.methods.best_layer": ("best_layer",),
    "knowedit.edit.preflight": ("preflight", "outcome", "check", "perplexity", "Guard", "GuardError"),
    "knowedit.edit.methods.knowledge_neurons": ("knowledge_neurons", "KnowledgeNeuronsConfig", "erase", "EraseConfig"),
    "knowedit.edit.methods.fine_tune": ("fine_tune", "fine_tune_many", "FineTuneConfig"),
    "knowedit.edit.export": ("to_peft", "to_checkpoint"),
    "knowedit.report.page.explain": ("explain", "ExplainConfig"),
    "knowedit.report.page.html": ("save_page",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'knowedit' has no attribute {name!r}")
    return globals().setdefault(name, getattr(import_module(_MODULE_OF[name]), name))


def __dir__():
    return sorted(__all__)
