"""knowedit: find the neurons behind a fact in a language model, prove them, and edit the fact.

    import knowedit

    model = knowedit.load()
    fact = knowedit.find_fact("landmark-city/eiffel-tower")
    neurons = knowedit.locate_fact(model, fact)
    edit = knowedit.rome(model, fact)

What is used most stands here. The rest stands in namespaces:

    knowedit.trace    causal tracing and patching           knowedit.memory   neurons over a corpus
    knowedit.lens     logit lens and logit attribution      knowedit.mlp      anatomy, geometry, imputation, precision
    knowedit.flow     knockouts, enrichment, extraction     knowedit.bench    data sets, studies, reports
    knowedit.locate   more of locating                      knowedit.edit     more of editing

Every name is loaded when it is first used, so `import knowedit` takes no time and does not import torch.
"""

from typing import TYPE_CHECKING

from .lazy import exports
from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import bench as bench, edit as edit, locate as locate, memory as memory, mlp as mlp
    from .answers import ask as ask
    from .edit.apply import applied as applied, apply as apply, edits_on as edits_on, unedited as unedited
    from .edit.covariance import covariance as covariance
    from .edit.edit import Edit as Edit, load_edit as load_edit
    from .edit.export import to_checkpoint as to_checkpoint, to_peft as to_peft
    from .edit.fact_set.config import FactSetConfig as FactSetConfig
    from .edit.fact_set.fact_set import FactSet as FactSet
    from .edit.guard import GuardError as GuardError
    from .edit.methods.best_layer import best_layer as best_layer
    from .edit.methods.fine_tune import fine_tune as fine_tune
    from .edit.methods.knowledge_neurons import knowledge_neurons as knowledge_neurons
    from .edit.methods.rome import RomeConfig as RomeConfig, rome as rome, rome_many as rome_many
    from .edit.preflight import preflight as preflight
    from .errors import (
        DataError as DataError,
        InputError as InputError,
        KnoweditError as KnoweditError,
        LayoutError as LayoutError,
        ModelError as ModelError,
    )
    from .facts import Fact as Fact, Neighbour as Neighbour
    from .locate.attribution import AttributionConfig as AttributionConfig, attribute as attribute
    from .locate.config import LocateConfig as LocateConfig
    from .locate.locate import locate_fact as locate_fact, locate_prompts as locate_prompts
    from .locate.neurons import Neuron as Neuron, NeuronSet as NeuronSet
    from .locate.proof.proof import prove as prove
    from .locate.rankings import rank as rank
    from .models.adapter import Model as Model
    from .models.intervene import amplify as amplify, set_to as set_to, suppress as suppress
    from .models.layouts import Layout as Layout
    from .models.loading import load as load, wrap as wrap
    from .recall import flow as flow, lens as lens, trace as trace
    from .report.page.explain import explain as explain
    from .report.page.html import save_page as save_page
    from .report.page.story import ExplainConfig as ExplainConfig
    from .sources.builtin import builtin_facts as builtin_facts, find_fact as find_fact
    from .sources.loading import read_facts as read_facts
else:
    __getattr__, __dir__, __all__ = exports(__name__, __file__)
