"""Located neurons: kept as a value, saved as JSON, and read as words.

What a neuron says is read off its value vector, the column of the down-projection that it scales.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from ..errors import DataError
from ..files import write_text
from ..models.adapter import Model
from ..models.passes.corner import added
from .attribution import INCOMPLETE

SCHEMA = "knowedit.neurons/1"
KINDS = ("fact", "relation", "answer", "general")
CONTROLS = {"general": "of other relations", "relation": "of the same relation", "answer": "with the same answer"}


@dataclass(frozen=True)
class Neuron:
    """One located neuron.

    - `score`: mean over the prompts that located it; `share`: the same over the mean of its layer's F(a) − F(baseline),
      None where that is less than the score itself, for a target that is not the model's answer, and for rankings
      that have no such sum.
    - `prompts`: the fraction of prompts for which it is coarse.
    - `activation`: its mean clean value at the read positions, whose sign decides what it promotes.
    - `suppress`, `amplify`: of neurons selected by their joint effect, the change of the target's probability on the
      locating prompts with it and all neurons before it set to zero, and doubled.
    - `kind`: one of `KINDS`, None where it was not tried or cannot be told.
    - `promotes`, `suppresses`: tokens that its value vector, under the activation's sign, raises and lowers most.
    """

    layer: int
    index: int
    score: float
    share: float | None
    prompts: float
    activation: float
    suppress: float | None = None
    amplify: float | None = None
    kind: str | None = None
    promotes: tuple[str, ...] = ()
    suppresses: tuple[str, ...] = ()

    @property
    def site(self) -> tuple[int, int]:
        return self.layer, self.index


@dataclass(frozen=True)
class NeuronSet:
    """The located neurons of one fact, in the order in which they were taken or strongest first, and how.

    Iterating gives (layer, index) pairs, which `suppress`, `amplify` and `prove` take. It is saved as JSON with the
    hash of the model's weights.

    - `probability`, `rank`: of the target after the first prompt, as the model is; 1 is its first choice.
    - `note`: in words why a set is empty or doubtful; `warning`: why its scores are; `untried`: why its kinds are.
    - `gap`: of the first prompt's attribution. `missing`: the largest gap of a layer that was searched, as a fraction
      of F, over the prompts; `ended`: what ended their search for points, the worst of `quadrature.ENDS`.
    """

    model: str
    weights_hash: str
    prompt: str
    target: str
    neurons: tuple[Neuron, ...]
    probability: float
    rank: int | None = None
    method: str = "ig"
    subject: str | None = None
    fact: str | None = None
    relation: str | None = None
    refined_on: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    gap: tuple[float, ...] = ()
    missing: float | None = None
    ended: str | None = None
    tests: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    note: str | None = None
    separator: str | None = None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([n.site for n in self.neurons])

    def __len__(self) -> int:
        return len(self.neurons)

    @property
    def position(self) -> str:
        """Where the neurons were scored, selected and proved: `"read"`, `"lookup"` or `"both"`."""
        return self.config.get("attribution", {}).get("position", "read")

    @property
    def warning(self) -> str | None:
        """What the completeness gap says against the scores, None where it is small."""
        if self.missing is None or not self.missing > INCOMPLETE:
            return None
        remedy = {
            "budget": "the budget of gradients ended the search; raise it",
            "rounding": "rounding ended the search; load the model in float32, or in float64 if it is",
            "tolerance": "the tolerance ended the search; lower it",
        }.get(self.ended, "let nodes be auto")
        return (
            f"the scores of a layer miss {self.missing:.0%} of what they should add up to (more than {INCOMPLETE:.0%} "
            f"of F), so they may be wrong; {remedy}"
        )

    @property
    def untried(self) -> str | None:
        """The known facts that were not there to tell kinds by; None where all were, or where kinds were not asked."""
        lacking = [facts for sort, facts in CONTROLS.items() if self.tests.get("controls", {}).get(sort) == 0]
        return f"there is no known fact {' or '.join(lacking)} to try neurons on" if lacking else None

    def top(self, n: int) -> NeuronSet:
        """The same set with its first `n` neurons only."""
        return NeuronSet(**{**self.__dict__, "neurons": self.neurons[:n]})

    def as_dict(self) -> dict:
        return {"schema": SCHEMA, **asdict(self), "warning": self.warning, "untried": self.untried}

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        write_text(path, json.dumps(self.as_dict(), ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> NeuronSet:
        """Read what `save` wrote; with `model` given, raise `DataError` if it was located on other weights."""
        try:
            located = cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise DataError(f"cannot read the neuron set {str(path)!r}: {error.strerror}") from None
        except ValueError as error:
            raise DataError(f"{str(path)!r} is damaged ({error}); locate the fact again") from None
        except DataError as error:
            raise DataError(f"{str(path)!r}: {error}") from None
        if model is not None:
            for site in located:
                model.check_neuron(*site)
            if model.weights_hash() != located.weights_hash:
                raise DataError(
                    f"{str(path)!r} was located on other weights than those of {model.name}; locate it again"
                )
        return located

    @classmethod
    def from_dict(cls, record: dict) -> NeuronSet:
        """Read what `as_dict` returned. Raises `DataError` for anything else."""
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise DataError(f"this is no neuron set of schema {SCHEMA}; locate the fact again")
        try:
            values = {name: value for name, value in record.items() if name not in ("schema", "warning", "untried")}
            values["neurons"] = tuple(
                Neuron(**{**n, "promotes": tuple(n["promotes"]), "suppresses": tuple(n["suppresses"])})
                for n in record["neurons"]
            )
            for name in ("refined_on", "negatives", "gap"):
                values[name] = tuple(values[name])
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise DataError(f"the neuron set is damaged ({error}); locate the fact again") from None


@torch.no_grad()
def vocabulary(
    model: Model, layer: int, index: int, sign: float = 1.0, n: int = 8
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The `n` tokens that a neuron's value vector, times `sign`, promotes and suppresses most.

    The value vector is read as `read_outputs` says.
    """
    model.check_neuron(layer, index)
    value = model.down_weight(layer)[:, index].to(model.device) * (1.0 if sign >= 0 else -1.0)
    direction = read_outputs(model, layer, value[None])
    with align_module_device(model.unembedding):
        weight = model.unembedding.weight
        logits = torch.nn.functional.linear(direction.to(weight), weight)[0]
    promoted, suppressed = logits.topk(n).indices.tolist(), (-logits).topk(n).indices.tolist()
    words = [tuple(model.token(i) for i in ids) for ids in (promoted, suppressed)]
    return words[0], words[1]


def read_outputs(model: Model, layer: int, outputs: Tensor) -> Tensor:
    """What the unembedding reads of outputs of a layer's down-projection, such as value vectors, both (n, d_model).

    They go through the norm behind the MLP where the family has one, and through the odd part of the final norm,
    (norm(v) − norm(−v)) / 2, so that a norm's gain counts and its bias does not (Geva et al. 2022 read value vectors by
    the unembedding alone).
    """
    written = added(model, layer, outputs)
    return (model.normed(written) - model.normed(-written)) / 2
