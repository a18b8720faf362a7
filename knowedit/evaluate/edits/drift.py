"""What an edit does to a model beside its fact: to plain text, and to what the subject is.

    drift = Drift(model)
    drift.perplexity([edit, None])         # relative rise on a plain text
    drift.essence(facts, edits)            # KL(P_edited ‖ P) behind "{subject} is a", in nats

The second is the term that ROME's search keeps small (Meng et al. 2022, arXiv 2202.05262, equation 4): the next-token
distribution at the subject's last token of "{subject} is a", with the edit against without. Both are asked with each
row's own edit, as in `row_edits.py`; no weight is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from ...edit.apply import unedited
from ...edit.edit import Edit
from ...facts import Fact
from ...hooks import measuring
from ...models.adapter import Model
from ...models.length import positions
from .row_edits import row_edits
from .scoring import score_edits

TEXT = 128  # tokens of plain text
BATCH_ROWS = 32  # essences at once
_ESSENCE = "{} is a"


class Drift:
    """Measures a model's drift under edits; what the unedited model says of the text is asked once."""

    def __init__(self, model: Model):
        self.model = model

    def perplexity(self, edits: Sequence[Edit | None]) -> list[float | None]:
        """By how much, relatively, the perplexity of a plain text rises under each edit (None: all that is applied);
        None where the tokenizer knows none of the text."""
        if self._text is None:
            return [None] * len(edits)
        scores = score_edits(self.model, edits, [[self._text]] * len(edits))
        return [float(np.exp(score.nll) / self._before - 1) for (score,) in scores]

    def essence(self, facts: Sequence[Fact], edits: Sequence[Edit | None]) -> list[float | None]:
        """KL divergence in nats for each fact's subject under its edit (None: all that is applied) from the unedited
        model; None without a subject, and for masked models, which do not go on with a text."""
        drifts: list[float | None] = [None] * len(facts)
        named = [] if self.model.masked else [i for i, fact in enumerate(facts) if fact.subject is not None]
        if named:
            facts, edits = [facts[i] for i in named], [edits[i] for i in named]
            with unedited(self.model):
                before = self._next(facts, [None] * len(facts))
            after = self._next(facts, edits)
            found = (after.exp() * (after - before)).sum(-1).clamp_min(0).tolist()
            for i, drift in zip(named, found, strict=True):
                drifts[i] = drift
        return drifts

    @torch.no_grad()
    def _next(self, facts: Sequence[Fact], edits: Sequence[Edit | None]) -> Tensor:
        """Log-probabilities of what follows each subject, (facts, vocabulary)."""
        log_probabilities = []
        for start in range(0, len(facts), BATCH_ROWS):
            batch = facts[start : start + BATCH_ROWS]
            prompts = [self.model.encode(_ESSENCE.replace("{}", fact.subject), fact.subject) for fact in batch]
            tokens = torch.zeros(len(batch), max(prompt.lookup for prompt in prompts) + 1, dtype=torch.long)
            for row, prompt in zip(tokens, prompts, strict=True):
                row[: prompt.lookup + 1] = torch.tensor(prompt.ids[: prompt.lookup + 1])
            with row_edits(self.model, edits[start : start + BATCH_ROWS]), measuring(self.model.hf):
                logits = self.model.hf(input_ids=tokens.to(self.model.device), use_cache=False).logits
            at = torch.tensor([prompt.lookup for prompt in prompts], device=logits.device)
            log_probabilities.append(
                logits[torch.arange(len(batch), device=logits.device), at].float().log_softmax(-1).cpu()
            )
        return torch.cat(log_probabilities)

    @cached_property
    def _text(self) -> tuple[str, str] | None:
        """A plain text as its first word and what follows, without what the tokenizer does not know."""
        text = resources.files("knowedit").joinpath("data", "plain_text.txt").read_text(encoding="utf-8")
        limit = positions(self.model)
        n = TEXT if limit is None else min(TEXT, limit // 2)  # tokenized again it may be some tokens longer
        unknown = self.model.tokenizer.unk_token_id
        ids = [i for i in self.model.tokenizer(text, add_special_tokens=False)["input_ids"][:n] if i != unknown]
        first, _, rest = self.model.tokenizer.decode(ids).strip().partition(" ")
        return (first, rest) if rest.strip() else None

    @cached_property
    def _before(self) -> float:
        with unedited(self.model):
            ((score,),) = score_edits(self.model, [None], [[self._text]])
        return float(np.exp(score.nll))
