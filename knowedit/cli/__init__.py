"""The command line: thin, on top of everything. `knowedit --help` imports nothing heavy.

Each command imports what it needs when it runs. Bad input, ours or an option's, ends in one line on stderr and exit
status 2; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import sys

import typer

from ..inert import inert
from . import explain, facts, locate, models
from .analyses import lens, memory, mlp, neuron, recall, trace
from .benchmarks import bench, bench_neurons, merge, report
from .edits import covariance, edit, files as edits

_INTERRUPTED = 130

app = typer.Typer(
    name="knowedit",
    help="Find the neurons with which a language model recalls a fact, prove them, and edit the fact.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("locate")(locate.locate)
app.command("lens")(lens.lens)
app.command("trace")(trace.trace)
app.command("patch")(trace.patch)
app.command("recall")(recall.recall)
app.command("edit")(edit.edit)
app.command("generate")(edits.generate)
app.command("diff")(edits.diff)
app.command("show")(edits.show)
app.command("export")(edits.export)
app.command("covariance")(covariance.covariance)
bench.app.command("neurons")(bench_neurons.neurons)
app.add_typer(bench.app)
app.command("merge")(merge.merge)
app.command("report")(report.report)
app.command("explain")(explain.explain)
app.command("neuron")(neuron.neuron)
app.command("memory")(memory.memory)
app.command("mlp", cls=mlp.MlpCommand)(mlp.mlp)
app.command("probe")(facts.probe)
app.command("facts")(facts.list_facts)
app.command("models")(models.list_models)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version and exit.")
) -> None:
    if version:
        from .. import __version__

        typer.echo(f"knowedit {__version__}")
        raise typer.Exit()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; always leaves by `SystemExit`."""
    from ..errors import KnoweditError

    try:
        status = typer.main.get_command(app)(arguments, prog_name="knowedit", standalone_mode=False) or 0
    except KnoweditError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # the mark of an error in an option or argument
            raise
        _fail(error.format_message() or f"{error}; see knowedit --help")
    if status == _INTERRUPTED:  # typer, too, turns an interrupt into this status
        typer.echo("\ninterrupted; what was finished is kept", err=True)
    sys.exit(status)


def _fail(message: str) -> None:
    typer.echo(f"error: {inert(' '.join(message.split()))}", err=True)
    sys.exit(2)
