"""How a command is made: groups of options that several commands share, and one way to run and print an analysis.

def lengths(facts: ManyFacts, *, model: ModelOptions, output: DrawnOutput) -> None:
    "How many tokens has each prompt?"
    run_command("lengths/1", lambda loaded: measure(loaded, facts.known(loaded)), model, output)

app.command("lengths")(command(lengths))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_args, get_type_hints

from typer.models import OptionInfo

from ...display.result import Table
from .options import ModelOptions, Output, Verbose
from .output import log_to_stderr, note, print_json, show


def command(function: Callable) -> Callable:
    """`function` as typer takes it: a parameter that is a group of options becomes the options in it, and `-v` logs."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint):
            groups[parameter.name] = hint
            parameters += _options(hint)
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))
    parameters.append(inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose))

    @wraps(function)
    def grouped(*, verbose: bool = False, **values: Any) -> None:
        if verbose:
            log_to_stderr()
        filled = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        function(**values, **filled)

    grouped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    grouped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return grouped


def _options(group: Any) -> list[inspect.Parameter]:
    """The fields of a group as parameters, its options in the group's panel."""
    hints = get_type_hints(group, include_extras=True)
    options = []
    for field in fields(group):
        kind, info = get_args(hints[field.name])
        if isinstance(info, OptionInfo):
            info = copy(info)
            info.rich_help_panel = group.panel
        default = field.default if field.default_factory is MISSING else field.default_factory()
        options.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
            )
        )
    return options


@dataclass(frozen=True)
class Printout:
    """A result that is only printed: its record for programs, and lines and tables for people."""

    record: dict[str, Any]
    parts: Iterable[str | Table]

    def as_dict(self) -> dict[str, Any]:
        return self.record

    def table(self) -> Iterable[str | Table]:
        return self.parts


def run_command(schema: str, run: Callable, model: ModelOptions | None, output: Output) -> Any:
    """Run an analysis: load the model, hand it to `run`, draw, print and return the `Result` that comes back.

    The path of a figure is checked before the model is loaded. Without `model`, `run` is handed None.
    """
    path = output.figure
    if path is not None:
        from ...display.drawing import check_path

        path = check_path(path)
    result = run(None if model is None else model.load())
    if path is not None:
        drawn = result.figure(path)
        for file in drawn if isinstance(drawn, list) else [drawn]:
            note(f"drawn into {file}")
    print_json({"schema": schema} | result.as_dict()) if output.as_json else show(result.table())
    return result
