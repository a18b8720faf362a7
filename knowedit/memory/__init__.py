"""MLPs as key-value memories over a corpus (Geva et al. 2021, 2022).

corpus_scan         `scan`: one pass over a corpus: what each neuron is largest on, and how often it is active
triggers            `keys`: what of its triggers makes a neuron fire
values              `agreement`, `compositional`: whether a neuron's value says the token that comes next
neuron_card         `card`, `cards`: all that can be said of one neuron
functional_groups   `groups`: neurons that are active together
sparsity            `active_by_layer`, `keep_strongest`: how few neurons a prediction needs
shared_neurons      `polysemanticity`: neurons that unrelated relations share
figure              cards, and a model's memories, as pictures
"""

from typing import TYPE_CHECKING

from ..lazy import exports

if TYPE_CHECKING:
    from .corpus_scan import ActivationScan as ActivationScan, scan as scan
    from .functional_groups import GroupsConfig as GroupsConfig, groups as groups
    from .neuron_card import (
        Card as Card,
        CardConfig as CardConfig,
        card as card,
        cards as cards,
    )
    from .shared_neurons import PolysemanticityConfig as PolysemanticityConfig, polysemanticity as polysemanticity
    from .sparsity import (
        SparsityConfig as SparsityConfig,
        active_by_layer as active_by_layer,
        keep_strongest as keep_strongest,
    )
    from .triggers import KeysConfig as KeysConfig, keys as keys
    from .values import (
        Agreement as Agreement,
        Compositional as Compositional,
        agreement as agreement,
        compositional as compositional,
    )
else:
    __getattr__, __dir__, __all__ = exports(__name__, __file__)
