"""Reading states in the vocabulary: the logit lens and direct logit attribution.

projection      `logit_lens`: what each layer's state already predicts
decomposition   `logit_attribution`: what each head, MLP and neuron adds to an answer's logit
parts           what each part of a block writes, pulled back through norms and projections
figure          both as pictures
"""

from typing import TYPE_CHECKING

from ...lazy import exports

if TYPE_CHECKING:
    from .decomposition import Contributions as Contributions, logit_attribution as logit_attribution
    from .projection import Lens as Lens, logit_lens as logit_lens
else:
    __getattr__, __dir__, __all__ = exports(__name__, __file__)
