"""What `--help` shows: summaries as they are, options in panels, the choices of an option."""

from __future__ import annotations

from collections.abc import Collection

import typer
from typer.core import TyperCommand, TyperGroup

_WHOLE = 1000  # characters: no summary is longer, so none is cut
_BESIDE = 64  # characters of choices beside an option; with it they fill a line of 80


class Command(TyperCommand):
    """A command whose options stand in the panels of their groups."""

    def format_options(self, ctx, formatter) -> None:
        panels: dict[str, list] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or title, []).append(record)
        for title, records in panels.items():
            with formatter.section(title):
                formatter.write_dl(records)


class Group(TyperGroup):
    """A group of commands that says of each what it does, however many lines that takes."""

    def format_commands(self, ctx, formatter) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(_WHOLE)) for name, command in commands])


def group(name: str, help: str) -> typer.Typer:
    """A group of commands, or the program itself."""
    return typer.Typer(
        name=name, help=help, cls=Group, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
    )


def choice(names: Collection[str], *declarations: str, help: str, hidden: Collection[str] = ()):
    """An option that takes one of `names`, shown by --help and offered by shells.

    Names that would not fit beside the option stand in its help. Another name ends in an `InputError` with the nearest
    one. `names` may be a table: what is added to it later counts. The `hidden` ones are not shown: what takes the
    option says why they do not serve.
    """
    shown = [name for name in names if name not in hidden]
    metavar = "|".join(shown)
    if len(metavar) > _BESIDE:
        metavar, help = "NAME", f"{help.rstrip('.')}: {', '.join(shown)}."

    def check(text: str) -> str:
        from ...errors import InputError, did_you_mean

        if text not in names:
            expected = [name for name in names if name not in hidden]
            raise InputError(
                f"{declarations[0]} is {text!r}{did_you_mean(text, expected)}, expected {', '.join(expected)}"
            )
        return text

    return typer.Option(*declarations, help=help, metavar=metavar, parser=check, autocompletion=lambda: shown)
