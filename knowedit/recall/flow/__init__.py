"""How a fact flows from the subject to the answer (Geva et al. 2023).

attention_mask       attention edges that are cut
attention_weights    `attention_pattern`: where heads look
knockout             `attention_knockout`, `sublayer_knockout`: what the answer loses without an edge or a sublayer
subject_enrichment   `enrichment`: which attributes of the subject its representation shows
extraction_events    `extraction`: which sublayers and heads put the answer into the last token
pipeline             `recall_fact`: the three steps for one fact
average              the steps averaged over facts
figure               the pictures of both
"""

from typing import TYPE_CHECKING

from ...lazy import exports

if TYPE_CHECKING:
    from .attention_weights import attention_pattern as attention_pattern
    from .average import RecallAverage as RecallAverage, average_recall as average_recall
    from .extraction_events import Extraction as Extraction, extraction as extraction
    from .knockout import (
        AttentionKnockout as AttentionKnockout,
        Knockout as Knockout,
        SublayerKnockout as SublayerKnockout,
        attention_knockout as attention_knockout,
        sublayer_knockout as sublayer_knockout,
    )
    from .pipeline import Recall as Recall, RecallConfig as RecallConfig, recall_fact as recall_fact
    from .subject_enrichment import (
        Enrichment as Enrichment,
        EnrichmentConfig as EnrichmentConfig,
        attributes_in as attributes_in,
        attributes_of as attributes_of,
        enrichment as enrichment,
    )
else:
    __getattr__, __dir__, __all__ = exports(__name__, __file__)
