"""Options that several commands share, and what they lead to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from .help import choice

# ---------------------------------------------------------------- the model

DEFAULT_MODEL = "smollm2-135m"

ModelName = Annotated[
    str, typer.Option("--model", help="An alias (see `knowedit models`), a Hub id, a directory or a GGUF file.")
]
Dtype = Annotated[
    str | None,
    choice(("float32", "bfloat16", "float16"), "--dtype", help="Of the weights; by default the checkpoint's own."),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …")]
RemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model. Only if you trust its author.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Ask through the model's chat template.")]

# ---------------------------------------------------------------- facts

Prompt = Annotated[str | None, typer.Argument(help="A prompt that the target continues; {} stands for the subject.")]
Subject = Annotated[str | None, typer.Option("--subject", help="The subject, as it stands in the prompt.")]
Target = Annotated[str | None, typer.Option("--target", help="The answer; by default the model's own first choice.")]
Separator = Annotated[
    str | None,
    typer.Option("--separator", help='What stands before the answer: " ", or "" for nothing. By default what fits.'),
]
FactId = Annotated[str | None, typer.Option("--fact", help="A built-in fact by id, instead of a prompt.")]
Facts = Annotated[
    str | None, typer.Option("--facts", help="Many facts: a file, or `builtin`; those that the model knows.")
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", help="With --facts: the largest number of facts, evenly over the relations.", min=1),
]
Relation = Annotated[str | None, typer.Option("--relation", help="With --facts: only this relation, by id or name.")]
Texts = list[str]  # an option that may be repeated

# ---------------------------------------------------------------- locating

SELECTIONS = ("causal", "refined")
RANKINGS = ("ig", "gradient", "relp", "activation", "logit", "logp", "ablation")

# ---------------------------------------------------------------- texts

CorpusName = Annotated[
    str | None,
    typer.Option(
        "--corpus", help="builtin (the default), samples (the model's own), a .txt or .jsonl file, or a data set."
    ),
]
Tokens = Annotated[int | None, typer.Option("--tokens", help="Tokens of the corpus that are read.", min=1)]
SEEDS = {"min": 0, "max": 2**32 - 1}  # those that numpy and torch both take
Seed = Annotated[int, typer.Option("--seed", help="Seed of samples, draws and controls.", **SEEDS)]

# ---------------------------------------------------------------- edits

EditFolders = Annotated[
    list[Path], typer.Option("--edit", metavar="DIR", help="A saved edit. Repeat it; edits are applied in this order.")
]

# ---------------------------------------------------------------- output

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done on stderr.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]
FigurePath = Annotated[
    Path | None, typer.Option("--figure", help="Draw the result into this file: .png, .svg or .pdf.", dir_okay=False)
]


# ---------------------------------------------------------------- groups


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    panel: ClassVar[str] = "Model"

    model: ModelName = DEFAULT_MODEL
    dtype: Dtype = None
    device: Device = None
    trust_remote_code: RemoteCode = False

    def load(self):
        """The model."""
        return load(self.model, self.dtype, self.device, self.trust_remote_code)


@dataclass(frozen=True)
class Output:
    """What becomes of a result that is only printed."""

    panel: ClassVar[str] = "Output"

    as_json: AsJson = False

    figure: ClassVar[Path | None] = None


@dataclass(frozen=True)
class DrawnOutput(Output):
    """What becomes of a result that can be drawn."""

    figure: FigurePath = None  # type: ignore[misc]


def load(name: str, dtype: str | None, device: str | None, trust_remote_code: bool):
    """Load a model for a command."""
    from ... import load as load_model

    return load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


def layer_list(text: str | None) -> tuple[int, ...] | None:
    """The layers that an option names: a range, a list, or None for all."""
    from ...errors import InputError

    if text is None:
        return None
    layers: list[int] = []
    for part in text.split(","):
        if (found := re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)) is None:
            raise InputError(f"layers are {text!r}, expected a range such as 2-29 or a list such as 20,21,22")
        first, last = found.groups()
        layers += range(int(first), int(last or first) + 1)
    if not layers:
        raise InputError(f"layers {text!r} name none; the first of a range comes first, as in 2-29")
    return tuple(layers)
