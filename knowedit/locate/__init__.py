"""Neurons that make a model say a fact: attributed, refined, proved.

attribution        `knowedit.attribute`: integrated gradients of every neuron, in one upward sweep
integration_path   gradients between the baseline, zero or the mean activation, and the clean neurons
quadrature         Gauss-Legendre and other rules, refined until their own check holds
captum_engine      the same attributions by captum, as an independent check
rankings           the baselines: activation × gradient, contribution, random
refinement         from the scores of several prompts to the neurons that they share
neurons            `Neuron`, `NeuronSet`
config             which neurons are chosen, and how
locate             `knowedit.locate_fact`: from a fact's prompts to its neurons
fact_prompts       which prompts of a fact locate, and which only prove
proof              `knowedit.prove`: suppressed and amplified on held-out prompts, against matched random sets
figure             the neurons of one fact, and their proof beside random ones
"""

from typing import TYPE_CHECKING

from ..lazy import exports

if TYPE_CHECKING:
    from .attribution import Attribution as Attribution, attribute_many as attribute_many
    from .fact_prompts import FactPrompts as FactPrompts
    from .integration_path import mean_activation as mean_activation
    from .proof.proof import Proof as Proof
    from .rankings import RANKINGS as RANKINGS, rank_many as rank_many
else:
    __getattr__, __dir__, __all__ = exports(__name__, __file__)
