"""Changes of weights as values: made, applied, stacked, reverted, saved, exported.

methods           how edits are made: ROME, fine-tuning, knowledge neurons
fact_set          many facts as one change: MEMIT, EMMET, AlphaEdit
delta             `LowRank`, `Dense`: one weight's change
edit              `knowedit.Edit`: changes of weights with their provenance
stack, apply      edits on a model, in place or as hooks, reverted in any order to the bit
storage, export   safetensors folders; PEFT adapters and checkpoints
covariance        C, the second moment of a layer's keys
preserved_keys    keys of other subjects that an edit is to leave alone
rewrite_quality   what an edit does to its fact, paraphrases and neighbours
preflight         what an edit would do, before and after it is applied
guard             which edits are refused: those that do damage, and those that do not take
"""

from typing import TYPE_CHECKING

from ..lazy import exports

if TYPE_CHECKING:
    from .apply import Handle as Handle
    from .covariance import Covariance as Covariance
    from .delta import Dense as Dense, LowRank as LowRank
    from .fact_set.alphaedit import AlphaEdit as AlphaEdit
    from .fact_set.config import fact_set_config as fact_set_config
    from .fact_set.emmet import Emmet as Emmet
    from .fact_set.memit import Memit as Memit
    from .guard import Guard as Guard, check as check
    from .methods.fine_tune import FineTuneConfig as FineTuneConfig, fine_tune_many as fine_tune_many
    from .methods.knowledge_neurons import (
        EraseConfig as EraseConfig,
        KnowledgeNeuronsConfig as KnowledgeNeuronsConfig,
        erase as erase,
    )
    from .methods.rome import rome_config as rome_config
    from .preflight import outcome as outcome, perplexity as perplexity
else:
    __getattr__, __dir__, __all__ = exports(__name__, __file__)
