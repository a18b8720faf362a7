"""The field's data sets as facts: for each format, one function from a JSON record to facts.

A reader looks records up by `Fields`, which says what is missing or of another type, and raises `Skip` for a record
that is sound but no fact that can be asked: such records are counted, not refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..facts import Fact
from .edits import counterfact, counterfact_lite, wikibigedit, zsre
from .fields import Fields, Skip
from .relations import pararel_bags, relations
from .ripple import knowedit, mquake, rippleedits


@dataclass(frozen=True)
class Format:
    """A format of records.

    - `known_by`: fields that its records have; of several formats that fit, the one with most of them is meant.
    - `read`: makes facts of record `index`.
    - `metrics`: those of `bench edit` that are measured for this format alone.
    """

    known_by: tuple[str, ...]
    read: Callable[[Fields, int], Iterator[Fact | Skip]]
    metrics: tuple[str, ...] = ()


LITE = ("target_new", "rephrase_prompt", "locality_prompt", "locality_ground_truth")
OF_TOKENS = ("Efficacy", "Paraphrase", "Specificity")

FORMATS = {
    "counterfact": Format(("requested_rewrite",), counterfact),
    "counterfact-lite": Format(("ground_truth", *LITE), counterfact_lite),
    "zsre": Format(("src", "rephrase", "loc"), zsre, metrics=OF_TOKENS),
    "wikibigedit": Format(LITE, wikibigedit, metrics=OF_TOKENS),
    "mquake": Format(("requested_rewrite", "questions", "new_answer"), mquake),
    "rippleedits": Format(("edit", "Logical_Generalization"), rippleedits),
    "relations": Format(("prompt_templates", "samples"), relations),
    "knowedit": Format(("subject", "prompt", "target_new"), knowedit),
    "pararel": Format((), pararel_bags),
}
