"""The command line: thin, on top of everything. `knowedit --help` imports nothing heavy.

Each command imports what it needs when it runs. Bad input, ours or an option's, ends in one line on stderr and exit
status 2, an edit that its guard refuses or that fails its checks in status 3; anything else is a bug and shows its
traceback.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

import typer

from ..writing.inert import inert
from . import explain, facts, locate, models, ui
from .analyses import lens, memory, mlp, neuron, recall, trace
from .benchmarks import bench, bench_neurons, configs, merge, report
from .edits import covariance, edit, files as edits, set_effects
from .serving import cache, checks, harness, hub, log
from .shared.command import command
from .shared.help import Command, group
from .shared.interrupts import leaving_while_importing
from .shared.options import Verbose
from .shared.output import log_to_stderr, warnings_as_notes

_INTERRUPTED = 130
_SAID = "\ninterrupted; runs, sets and caches keep what was finished"

app = group("knowedit", "Find the neurons with which a language model recalls a fact, prove them, and edit the fact.")
COMMANDS: dict[str, Callable] = {
    "locate": locate.locate,
    "lens": lens.lens,
    "trace": trace.trace,
    "patch": trace.patch,
    "recall": recall.recall,
    "edit": edit.edit,
    "generate": edits.generate,
    "diff": edits.diff,
    "show": edits.show,
    "export": edits.export,
    "test": checks.test,
    "log": log.log,
    "revoke": log.revoke,
    "eval": harness.evaluate,
    "push": hub.push,
    "covariance": covariance.covariance,
    "merge": merge.merge,
    "report": report.report,
    "explain": explain.explain,
    "ui": ui.ui,
    "neuron": neuron.neuron,
    "memory": memory.memory,
    "mlp": mlp.mlp,
    "probe": facts.probe,
    "facts": facts.list_facts,
    "models": models.list_models,
}
for name, function in COMMANDS.items():
    app.command(name, cls=mlp.MlpCommand if name == "mlp" else Command)(command(function))
bench.app.command("neurons", cls=Command)(command(bench_neurons.neurons))
bench.app.command("configs", cls=Command)(command(configs.configs))
app.add_typer(bench.app)
app.add_typer(set_effects.app)  # with those of sets.py
app.add_typer(cache.app)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    verbose: Verbose = False,
) -> None:
    if verbose:
        log_to_stderr()
    if version:
        from .. import __version__

        typer.echo(f"knowedit {__version__}")
        raise typer.Exit()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; always leaves by `SystemExit`."""
    from ..errors import KnoweditError

    try:
        with warnings_as_notes(), leaving_while_importing(_SAID, _INTERRUPTED):
            line = shlex.join(["knowedit", *(sys.argv[1:] if arguments is None else arguments)])  # for an edit's record
            status = typer.main.get_command(app)(arguments, prog_name="knowedit", standalone_mode=False, obj=line) or 0
    except KnoweditError as error:
        _fail(str(error), error.status)
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
        typer.echo(_SAID, err=True)
    sys.exit(status)


def _fail(message: str, status: int = 2) -> None:
    typer.echo(f"error: {inert(' '.join(message.split()))}", err=True)
    sys.exit(status)
