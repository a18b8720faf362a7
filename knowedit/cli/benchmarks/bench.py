"""`knowedit bench edit`: edit the facts of a data set and measure what that does; what all benchmarks share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer

from ...edit.methods.table import METHODS
from ...writing.counts import number_of
from ..shared.command import command
from ..shared.help import Command, choice, group
from ..shared.options import SEEDS, Device, Dtype, Output, RemoteCode, Texts
from ..shared.output import line, note, print_json, table

app = group("bench", "Benchmarks: runs over a data set that can be killed and resumed.")

ENGINES, TRACKERS = ("serial", "ray"), ("trackio", "wandb", "mlflow")

# ---------------------------------------------------------------- options of every benchmark; None is "not said"


@dataclass(frozen=True)
class RecordOptions:
    """Which records a study is about."""

    panel: ClassVar[str] = "Records"

    source: Annotated[
        str | None,
        typer.Option("--source", help="builtin, a file or folder of a data set, or one of the Hub as owner/name."),
    ] = None
    format: Annotated[
        str | None, typer.Option("--format", help="The source's format, where its first record does not tell.")
    ] = None
    revision: Annotated[str | None, typer.Option("--revision", help="Commit of a source of the Hub.")] = None
    skip: Annotated[
        int | None,
        typer.Option("--skip", help="The number of first records that are left out: settings were tried on them."),
    ] = None
    limit: Annotated[
        int | None, typer.Option("--limit", help="The number of first records, counted among the known ones.")
    ] = None
    sample: Annotated[int | None, typer.Option("--sample", help="The number of records drawn by --seed.")] = None
    batch: Annotated[int | None, typer.Option("--batch", help="Records that are run together.")] = None
    seed: Annotated[int | None, typer.Option("--seed", help="Of all that is drawn.", **SEEDS)] = None


@dataclass(frozen=True)
class StudyModelOptions:
    """Which model a study is about, and how it is loaded."""

    panel: ClassVar[str] = "Model"

    model: Annotated[str | None, typer.Option("--model", help="As in `knowedit locate`.")] = None
    dtype: Dtype = None
    device: Device = None
    trust_remote_code: RemoteCode = False


@dataclass(frozen=True)
class EngineOptions:
    """How a run is divided and resumed."""

    panel: ClassVar[str] = "Run"

    out: Annotated[
        Path | None,
        typer.Option("--out", help="The run's folder: a new one, or with --resume one that may be there."),
    ] = None
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, or begin one where there is none yet.")
    ] = False
    shard: Annotated[str | None, typer.Option("--shard", help="i/n: only every n-th batch from the i-th on.")] = None
    engine: Annotated[str, choice(ENGINES, "--engine", help="In this process, or in workers.")] = "serial"
    workers: Annotated[int, typer.Option("--workers", help="Replicas of the model, with --engine ray.")] = 1
    address: Annotated[str | None, typer.Option("--address", help="A Ray cluster; by default this machine.")] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run: records, forward passes, memory.")
    ] = False


@dataclass(frozen=True)
class RunOptions(EngineOptions):
    """The same, and who follows the run."""

    tracker: Annotated[str | None, choice(TRACKERS, "--tracker", help="Follow the run from elsewhere.")] = None


Config = Annotated[
    str | None,
    typer.Option(help="Settings by name (see `knowedit bench configs`), or a YAML file; options take precedence."),
]


@app.command("edit", cls=Command)
@command
def edit(
    method: Annotated[str | None, choice(METHODS, "--method", help="How facts are edited.")] = None,
    layer: Annotated[int | None, typer.Option(help="The edited layer; by default that of a table.")] = None,
    settings: Annotated[
        Texts, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method, such as search.lr=0.5.")
    ] = [],  # noqa: B006
    config: Config = None,
    metrics: Annotated[str | None, typer.Option(help="Of the summary: ES,PS,NS,… ; by default all.")] = None,
    known_only: Annotated[bool | None, typer.Option("--known-only", help="Only facts that the model knows.")] = None,
    perplexity: Annotated[
        bool | None, typer.Option("--perplexity", help="Also perplexity of a plain text and drift of the essence.")
    ] = None,
    generate: Annotated[
        bool | None,
        typer.Option("--generate", help="Also what the model writes freely, under its chat template, and probes."),
    ] = None,
    snippets: Annotated[str | None, typer.Option(help="With --generate: a folder of reference texts, for RS.")] = None,
    sequential: Annotated[
        bool | None, typer.Option("--sequential", help="Edits stay on; a set of facts grows.")
    ] = None,
    checkpoints: Annotated[str | None, typer.Option(help="Numbers of edits after which all are asked again.")] = None,
    *,
    records: RecordOptions,
    model: StudyModelOptions,
    run: RunOptions,
    output: Output,
) -> None:
    """Edit each fact of a source and measure efficacy, paraphrases, neighbours and more, beside the unedited model."""
    from ...evaluate.edits.config import EditStudyConfig
    from ...evaluate.edits.study import EditStudy
    from ...settings import parse_settings

    options = {
        **vars(records),
        "model": model.model,
        "dtype": model.dtype,
        "method": method,
        "layer": layer,
        "known_only": known_only,
        "perplexity": perplexity,
        "generate": generate,
        "snippets": snippets,
        "sequential": sequential,
        "metrics": None if metrics is None else [name.strip() for name in metrics.split(",")],
        "checkpoints": None if checkpoints is None else numbers("checkpoints", checkpoints),
        "settings": parse_settings(settings) or None,
    }
    study_config = configured(EditStudyConfig(), "edit", config, options)
    build = partial(EditStudy.from_config, study_config, device=model.device, trust_remote_code=model.trust_remote_code)
    execute("edit", study_config, build, run, model.device, output.as_json)


# ---------------------------------------------------------------- what all benchmarks share


def configured(defaults, study: str, name: str | None, given: dict):
    """The study's config: its defaults, over them the config called `name`, and over that what was given as options."""
    from ...evaluate.runs.configs import read_config
    from ...settings import merged, overridden

    values = {} if name is None else read_config(name, study)
    return overridden(defaults, merged(values, {name: value for name, value in given.items() if value is not None}))


def numbers(what: str, text: str) -> list[int]:
    from ...errors import InputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"the {what} are {text!r}, expected numbers such as 1,10,100") from None


def execute(study: str, config, build, run: EngineOptions, device: str | None, as_json: bool, show=None) -> None:
    """Run a study as `run` says, or say what that would take, and print its summary by `show` (`show_run`)."""
    from ...errors import InputError
    from ...evaluate.dry_run import dry_run
    from ...evaluate.runs.engine import parse_shard, run_study
    from ...evaluate.runs.folder import RunFolder, check_folder
    from ...evaluate.runs.tracker import start_tracker

    if run.dry_run:
        plan = dry_run(study, config)
        print_json({"schema": "knowedit.bench-plan/1", **plan}) if as_json else _show_plan(plan)
        return
    if run.out is None:
        raise InputError("the run needs a folder: name one with --out")
    shard = None if run.shard is None else parse_shard(run.shard)
    if (check_folder(run.out, resume=run.resume) / "manifest.json").is_file():
        pin_threads(RunFolder(run.out).manifest)
    tracker = getattr(run, "tracker", None)
    follower = None if tracker is None else start_tracker(tracker, run.out.name, config.as_dict())
    log: dict[str, Any] = {} if follower is None else {"log": follower.log}
    try:
        run_by = build()
        if skipped := run_by.skipped:
            note(f"skipped: {number_of(len(skipped), 'record')}, the first ({skipped[0][0]}): {skipped[0][1]}")
        done = run_study(
            run_by,
            run.out,
            resume=run.resume,
            shard=shard,
            engine=run.engine,
            workers=run.workers,
            address=run.address,
            gpus=int(device is not None and device.startswith("cuda")),  # that each worker claims
            build=build,
            command=" ".join(["knowedit", *sys.argv[1:]]),
            **log,
        )
    finally:
        if follower is not None:
            follower.finish()
    (show or show_run)(done, as_json)


def pin_threads(manifest: dict) -> None:
    """The number of threads that the run began with: with another, figures differ in their last bits."""
    import torch

    threads = manifest.get("threads")
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)


def show_run(run, as_json: bool) -> None:
    from ...evaluate.metrics import find_metric
    from ...report.bench.metric_tables import shown_of

    summary = run.summary
    if as_json:
        print_json({"schema": "knowedit.bench/1", "out": str(run.folder), **summary})
        return
    if warning := summary.get("completeness", {}).get("warning"):
        line(f"Warning: {warning}.")
    before = summary.get("before", {})
    columns = ["metric", *(["before", "after"] if before else ["value"]), "95 % interval", "n", "unit"]
    rows = []
    for name, mean in summary["metrics"].items():
        if mean["n"]:
            metric = find_metric(name)
            first = [metric.text(before.get(name, {}).get("value"))] if before else []
            interval = "" if mean["low"] is None else f"{metric.text(mean['low'])} to {metric.text(mean['high'])}"
            rows.append([name, *first, metric.text(mean["value"]), interval, mean["n"], metric.unit])
    table(columns, rows)
    if checkpoints := summary.get("checkpoints"):
        names = shown_of(point["metrics"] for point in checkpoints.values())
        rows = [
            [edits, *(find_metric(name).text(point["metrics"].get(name, {}).get("value")) for name in names)]
            for edits, point in checkpoints.items()
        ]
        table(["all so far, after edits", *(f"{name}, {find_metric(name).unit}" for name in names)], rows)
    line(
        f"{number_of(summary['records'], 'record')}, {summary['failed']} failed, {summary.get('skipped', 0)} skipped; "
        f"{summary['seconds']:.0f} seconds; in {run.folder}"
    )


def _show_plan(plan: dict) -> None:
    model = plan["model"]
    records = "unknown" if plan["records"] is None else f"{'at most ' * plan['at_most']}{plan['records']:,}"
    rows = [["study", plan["study"]], ["method", plan["method"]["name"]], ["records", records]]
    rows += [[f"forward passes: {what}", f"{n:,}"] for what, n in (plan["passes"] or {}).items()]
    if model is not None:
        rows += [["model", f"{model['name']}, {model['parameters']:,} parameters, {model['dtype']}"]]
        rows += [[f"memory: {what}", f"{n / 1e9:.2f} GB"] for what, n in plan["memory"].items()]
    table(["what would be run", ""], rows)
    for what, why in plan["unknown"].items():
        note(f"{what} unknown: {why}")
