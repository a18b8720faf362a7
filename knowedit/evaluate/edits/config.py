"""What a study of edits is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ...edit.methods.table import method_config
from ...errors import InputError
from ...facts import Fact
from ...selection import Keep, choose
from .metrics import check_metric


@dataclass(frozen=True)
class EditStudyConfig:
    """What is edited, how, and what is measured.

    - `source`, `format`, `revision`: as `load_source` takes them.
    - `known_only`: only facts whose target is the model's first choice.
    - `skip`, `limit`, `sample`, `seed`: as `choose` takes them: the first so many of these facts behind some that are
      left out, or so many drawn.
    - `method`, `settings`, `layer`: as `method_config` takes them; settings by default those of the model.
    - `sequential`: edits stay on, or a set of facts grows.
    - `checkpoints`: after how many records of a sequence all so far are asked again.
    - `batch`: records that are edited and asked together; with a method that changes facts together, by one edit.
    - `metrics`: of the summary; empty for all that there are.
    - `perplexity`: relative rise on a short plain text, and drift of the subject's essence, for every record.
    - `generate`: also what the model writes of its own accord, and the probes of the facts.
    - `snippets`: a folder with ROME's reference texts, for RS of what it writes.
    """

    source: str = "builtin"
    model: str = "smollm2-135m"
    dtype: str | None = None
    method: str = "rome"
    settings: Mapping = field(default_factory=dict)
    layer: int | None = None
    sequential: bool = False
    checkpoints: tuple[int, ...] = (1, 10, 100, 1000)
    batch: int = 32
    metrics: tuple[str, ...] = ()
    known_only: bool = False
    perplexity: bool = False
    generate: bool = False
    snippets: str | None = None
    format: str | None = None
    revision: str | None = None
    skip: int = 0
    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def __post_init__(self):
        method_config(self.method, self.settings, self.layer)
        for name in self.metrics:
            check_metric(name)
        if not isinstance(self.batch, int) or self.batch < 1:
            raise InputError(f"the batch is {self.batch!r}, expected a number of records from 1 on")
        if self.snippets is not None and not self.generate:
            raise InputError("snippets are what generated text is held against; add --generate")
        checkpoints = tuple(self.checkpoints)
        if not all(isinstance(n, int) and n > 0 for n in checkpoints) or list(checkpoints) != sorted(set(checkpoints)):
            raise InputError(
                f"the checkpoints are {list(checkpoints)}, expected rising numbers of edits, such as 1, 10"
            )

    def as_dict(self) -> dict:
        """For JSON."""
        return {**asdict(self), "settings": dict(self.settings), "checkpoints": list(self.checkpoints),
                "metrics": list(self.metrics)}  # fmt: skip

    def usable(self, facts: Sequence[Fact]) -> list[Fact]:
        """The facts of a source that can be edited: those with a new target."""
        return [fact for fact in facts if fact.target_new is not None]

    def chosen(self, facts: Sequence[Fact], keep: Keep | None = None) -> list[Fact]:
        """The facts that the study is about, of those of its source; `keep` as `choose` takes it."""
        return choose(
            self.usable(facts), skip=self.skip, limit=self.limit, sample=self.sample, seed=self.seed, keep=keep
        )
