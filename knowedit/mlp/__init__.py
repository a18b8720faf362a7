"""What MLPs are made of and do: numbers, gates, directions, parameters and precision.

activations      values of a layer's stages at real tokens
layer_anatomy    `anatomy`: their distribution from the MLP's input to its output
probing          `relation_probe`: how well relations are told apart at each stage
value_geometry   `geometry`, `fitting`: how many directions fit, and how much they interfere
and_gate         `and_gates`: neurons that need both parts of a name
imputation       `impute`: which dimensions of the MLP's input an answer needs
accounting       `account`: where the parameters, FLOPs and bytes are
quantization     `precision`, `quantized`: what fewer bits do to facts, neurons and edits
figure           the pictures of all of them
"""

from typing import TYPE_CHECKING

from ..lazy import exports

if TYPE_CHECKING:
    from .accounting import Accounting as Accounting, account as account, account_config as account_config
    from .and_gate import and_gates as and_gates
    from .imputation import ImputationConfig as ImputationConfig, impute as impute, impute_facts as impute_facts
    from .layer_anatomy import Anatomy as Anatomy, anatomy as anatomy
    from .probing import ProbeConfig as ProbeConfig, RelationProbe as RelationProbe, relation_probe as relation_probe
    from .quantization import (
        Precision as Precision,
        PrecisionConfig as PrecisionConfig,
        precision as precision,
        quantized as quantized,
    )
    from .value_geometry import Fitting as Fitting, Geometry as Geometry, fitting as fitting, geometry as geometry
else:
    __getattr__, __dir__, __all__ = exports(__name__, __file__)
