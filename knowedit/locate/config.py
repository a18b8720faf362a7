"""How the neurons of a fact are chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from ..errors import InputError, did_you_mean
from .attribution import AttributionConfig
from .integration_path import BASELINES
from .neurons import KINDS
from .rankings import RANKINGS

SELECTIONS = ("causal", "refined")
POSITIONS = ("read", "lookup", "both")
CANDIDATES, MOST, SELECT_ON = 64, 10, 8  # of a causal selection, unless said otherwise
P = 0.7  # of refined neurons, unless said otherwise
SCREENING = 1e-2  # a tenth of it takes a fifth more work and gives the same candidates


@dataclass(frozen=True)
class LocateConfig:
    """How neurons are chosen.

    - `method`: the ranking (`rankings.RANKINGS`); `attribution`: how `ig` integrates, to a gap of `SCREENING` unless
      said otherwise: scores only say which neurons are tried.
      Its `position` is where neurons are scored, selected and proved: `"read"`, `"lookup"` (the subject's last token)
      or `"both"`.
    - `select`: `causal`, those of the `candidates` with the largest scores that do most together when set to zero and
      doubled, or `refined`, those that the prompts share (`refinement.py` says how each is done).
    - `specific`: a causal selection takes off what neurons do to other facts of the relation.
    - `ablation`: what neurons are set to when a causal selection or a proof takes them away (`proof/ablation.py`).
    - `prompts`: neurons are scored for at most so many prompts, the fact's own and the first paraphrases; None for all.
      `select_on`: a causal selection asks at most so many, by default `SELECT_ON`, scored or not: to ask what sets of
      neurons do costs a prompt less than scores, and the more prompts are asked the more it holds on others.
    - `t`, `p`: thresholds of coarse and refined; `adjust`: move p towards 2 to 5 neurons, as Dai et al. do.
    - `most`: the largest number of neurons that are kept; of a causal selection 10 unless said otherwise.
    - `layers`: locate in these layers only.
    - `kinds`: try each neuron on known facts, to tell its kind. `drop`: kinds to leave out of the set, `("general",)`
      for instance.
    - `chat`: ask through the tokenizer's chat template.
    """

    method: str = "ig"
    attribution: AttributionConfig = field(default_factory=lambda: AttributionConfig(tolerance=SCREENING))
    select: str = "causal"
    specific: bool = False
    ablation: str = "zero"
    candidates: int | None = None
    prompts: int | None = 4
    select_on: int | None = None
    t: float = 0.2
    p: float | None = None
    adjust: bool = False
    most: int | None = None
    layers: tuple[int, ...] | None = None
    kinds: bool = True
    drop: tuple[str, ...] = ()
    chat: bool = False

    def __post_init__(self):
        if self.method not in RANKINGS:
            raise InputError(
                f"no ranking is called {self.method!r}{did_you_mean(self.method, RANKINGS)}; "
                f"there are {', '.join(RANKINGS)}"
            )
        if self.select not in SELECTIONS:
            raise InputError(
                f"select is {self.select!r}{did_you_mean(self.select, SELECTIONS)}, expected {' or '.join(SELECTIONS)}"
            )
        if self.attribution.position not in POSITIONS:
            raise InputError(
                f"position {self.attribution.position!r} is a token of one prompt, and several locate a fact; "
                f"take {', '.join(POSITIONS)}"
            )
        values = {self.attribution.baseline_name, self.ablation}
        if "mean" in values and self.position != "read":
            raise InputError(
                f"the mean is one over read positions, the position is {self.position!r}; take zero or patch"
            )
        if "patch" in values and self.position == "both":
            raise InputError(
                "a patch holds what neurons are at one position, not at both; take zero, or read or lookup"
            )
        if self.method != "ig" and self.attribution.baseline_name != "zero":
            raise InputError(f"a baseline is where the paths of ig start, {self.method} has none; leave it out")
        if self.ablation not in BASELINES:
            raise InputError(
                f"no ablation is called {self.ablation!r}{did_you_mean(self.ablation, BASELINES)}; "
                f"there are {', '.join(BASELINES)}"
            )
        if self.candidates is not None and self.candidates < 1:
            raise InputError(f"candidates is {self.candidates!r}, expected a number of neurons from 1 on")
        for name, number in (("prompts", self.prompts), ("select_on", self.select_on)):
            if number is not None and number < 1:
                raise InputError(f"{name} is {number!r}, expected a number of prompts from 1 on")
        if self.select == "causal" and (self.adjust or self.p is not None):
            raise InputError("p and adjust choose among refined neurons; set select to refined, or leave them out")
        if self.select == "refined" and self.specific:
            raise InputError("specific is a causal selection; set select to causal, or leave it out")
        if self.select == "refined" and (self.candidates is not None or self.select_on is not None):
            raise InputError(
                "candidates and select_on are of a causal selection; set select to causal, or leave them out"
            )
        for name, value in (("t", self.t), ("p", self.p)):
            if value is not None and not 0 < value <= 1:
                raise InputError(f"{name} is {value!r}, expected a fraction above 0 and up to 1")
        for kind in self.drop:
            if kind not in KINDS:
                raise InputError(f"no kind is called {kind!r}{did_you_mean(kind, KINDS)}; there are {', '.join(KINDS)}")
        if self.drop and not self.kinds:
            raise InputError(
                f"kinds to leave out ({', '.join(self.drop)}) are not told without kinds; set kinds to true"
            )
        if self.most is not None and self.most < 1:
            raise InputError(f"most is {self.most!r}, expected a number of neurons from 1 on")

    @property
    def position(self) -> str:
        """Where neurons are scored, selected and proved, one of `POSITIONS`."""
        return str(self.attribution.position)

    def as_dict(self) -> dict:
        """For JSON: a baseline tensor is only named."""
        record = asdict(replace(self, attribution=replace(self.attribution, baseline="zero")))
        record["attribution"]["baseline"] = self.attribution.baseline_name
        for name in ("layers", "drop"):
            record[name] = None if record[name] is None else list(record[name])
        return record
