"""What an editing method is to everything that uses one.

A method's file ends with its `METHOD`; its row in `table.py` names the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...progress import Progress, silent

if TYPE_CHECKING:
    from ...facts import Fact
    from ...models.adapter import Model
    from ..edit import Edit
    from ..preserved_keys import PreservedKeys

Bars = Callable[[str, int | None, str], AbstractContextManager[Progress]]  # (what is done, its total, a unit of it)


@contextmanager
def no_bars(what: str, total: int | None, unit: str) -> Iterator[Progress]:
    """`Bars` that show nothing."""
    yield silent


@dataclass(frozen=True)
class Editor:
    """Makes edits by one method with one set of settings, on one model as it is when called.

    - `make(facts)`: for each fact the edit that changes it, in the order of the facts; None leaves the model as it is.
      Facts that are changed together have one and the same `Edit`.
    - `preserved`: keys of other subjects in the edited layer, where the method has them anyway.
    - `asked(prompt, facts)`: what is asked in the place of a prompt once `facts` are to hold, where the method says
      them there. None: the prompt as it is.
    """

    make: Callable[[Sequence[Fact]], list[Edit | None]]
    preserved: PreservedKeys | None = None
    asked: Callable[[str, Sequence[Fact]], str] | None = None

    def __call__(self, facts: Sequence[Fact]) -> list[Edit | None]:
        return self.make(facts)


def _nothing(*_: Any) -> dict[str, int]:
    return {}


@dataclass(frozen=True)
class Method:
    """How edits of one kind are made.

    - `config`: the settings, a frozen dataclass with defaults. A field `layer` takes `--layer`, `seed` takes `--seed`,
      and `--set NAME=VALUE` any.
    - `prepare(model, config, facts, bars)`: the editor. `facts` are all facts of the source, those that are to be
      edited and others; `bars` show what takes long.
    - `passes(config, facts, others, model)`: how many sequences run through the model to edit `facts`, by what for.
      `others` are all facts of the source; `model` has no weights, and is None where it is out of reach.
    - `memory(config, model, batch)`: bytes beside the model's weights, by what for, with `batch` facts at once.
    - `model_config(model)`: the settings that were tuned for a model; raises `InputError` where none were.
    - `published`: settings of papers, by name.
    - `tries_layers`: `--layer auto` chooses the layer by trying (`best_layer.py`).
    - `looks_up`: edits are made at the subject's last token, so a fact needs a subject.
    - `together`: all facts that the editor is given are changed by one edit.
    """

    config: Callable[[], Any]
    prepare: Callable[[Model, Any, Sequence[Fact], Bars], Editor]
    passes: Callable[[Any, Sequence[Fact], Sequence[Fact], Model | None], dict[str, int]] = _nothing
    memory: Callable[[Any, Model, int], dict[str, int]] = _nothing
    model_config: Callable[[Model], Any] | None = None
    published: Mapping[str, Any] = field(default_factory=dict)
    tries_layers: bool = False
    looks_up: bool = False
    together: bool = False


def config_dict(config: Any) -> dict:
    """A method's settings for JSON."""
    return config.as_dict() if hasattr(config, "as_dict") else asdict(config)
