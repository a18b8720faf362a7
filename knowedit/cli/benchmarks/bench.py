"""`knowedit bench edit`: edit the facts of a data set and measure what that does; what all benchmarks share."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ...edit.methods.table import METHODS
from ..shared.options import AsJson, Device, RemoteCode
from ..shared.output import line, note, print_json, table

app = typer.Typer(
    name="bench", help="Benchmarks: runs over a data set that can be killed and resumed.", no_args_is_help=True,
    rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False,
)  # fmt: skip

# options of every benchmark
Out = Annotated[Path | None, typer.Option(help="The run's folder: a new one, or with --resume the one to go on with.")]
SourceName = Annotated[
    str | None, typer.Option(help="builtin, a file or folder of a data set, or one of the Hub as owner/name.")
]
Format = Annotated[str | None, typer.Option(help="The source's format, where its first record does not tell.")]
Revision = Annotated[str | None, typer.Option(help="Commit of a source of the Hub.")]
Model = Annotated[str | None, typer.Option("--model", help="As in `knowedit locate`.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
Limit = Annotated[int | None, typer.Option(help="The first so many records, of those that are known.")]
Sample = Annotated[int | None, typer.Option(help="So many records, drawn by --seed.")]
Seed = Annotated[int | None, typer.Option(help="Of all that is drawn.")]
Config = Annotated[
    str | None,
    typer.Option(help="Settings by name (see `knowedit bench configs`), or a YAML file; options take precedence."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Shard = Annotated[str | None, typer.Option(help="i/n: only every n-th batch from the i-th on.")]
Engine = Annotated[str, typer.Option(help="serial or ray.")]
Workers = Annotated[int, typer.Option(help="Replicas of the model, ray.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster; by default this machine.")]
TrackerName = Annotated[str | None, typer.Option("--tracker", help="trackio, wandb or mlflow.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be run: records, forward passes, memory.")]
Batch = Annotated[int | None, typer.Option(help="Records that are run together.")]
Settings = Annotated[list[str], typer.Option("--set", help="NAME=VALUE of the method, such as search.lr=0.5.")]


@app.command("edit")
def edit(
    out: Out = None,
    source: SourceName = None,
    model: Model = None,
    method: Annotated[str | None, typer.Option(help=", ".join(METHODS) + ".")] = None,
    layer: Annotated[int | None, typer.Option(help="The edited layer; by default that of a table.")] = None,
    settings: Settings = [],  # noqa: B006
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
    sequential: Annotated[bool | None, typer.Option("--sequential", help="Edits stay on.")] = None,
    checkpoints: Annotated[str | None, typer.Option(help="Numbers of edits after which all are asked again.")] = None,
    batch: Batch = None,
    limit: Limit = None,
    sample: Sample = None,
    seed: Seed = None,
    format: Format = None,
    revision: Revision = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    resume: Resume = False,
    shard: Shard = None,
    engine: Engine = "serial",
    workers: Workers = 1,
    address: Address = None,
    tracker: TrackerName = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Edit each fact of a source and measure efficacy, paraphrases, neighbours and more, beside the unedited model."""
    from ...evaluate.edits.study import EditStudy, EditStudyConfig
    from ...settings import parse_settings

    given = {
        "source": source, "model": model, "method": method, "layer": layer, "known_only": known_only,
        "perplexity": perplexity, "generate": generate, "snippets": snippets, "sequential": sequential, "batch": batch,
        "limit": limit, "sample": sample, "seed": seed, "format": format, "revision": revision, "dtype": dtype,
        "metrics": None if metrics is None else [name.strip() for name in metrics.split(",")],
        "checkpoints": None if checkpoints is None else numbers("checkpoints", checkpoints),
        "settings": parse_settings(settings) or None,
    }  # fmt: skip
    chosen = configured(EditStudyConfig(), "edit", config, given)
    claimed = gpus(device)
    run = {"resume": resume, "shard": shard, "engine": engine, "workers": workers, "address": address, "gpus": claimed}
    build = partial(EditStudy.from_config, chosen, device=device, trust_remote_code=trust_remote_code)
    execute("edit", chosen, build, out, run, tracker, dry_run, as_json)


# ---------------------------------------------------------------- what all benchmarks share


def configured(defaults, study: str, name: str | None, given: dict):
    """The study's config: its defaults, over them the config called `name`, and over that what was given as options."""
    from ...evaluate.runs.configs import read_config
    from ...settings import merged, overridden

    values = {} if name is None else read_config(name, study)
    return overridden(defaults, merged(values, {name: value for name, value in given.items() if value is not None}))


def gpus(device: str | None) -> int:
    """How many a worker claims."""
    return int(device is not None and device.startswith("cuda"))


def numbers(what: str, text: str) -> list[int]:
    from ...errors import InputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"the {what} are {text!r}, expected numbers such as 1,10,100") from None


def execute(
    study: str, config, build, out: Path | None, run: dict, tracker: str | None, dry: bool, as_json: bool, show=None
) -> None:
    """Run a study into `out`, or say what that would take, and print its summary by `show` (`show_run`)."""
    from ...errors import InputError
    from ...evaluate.dry_run import dry_run
    from ...evaluate.runs.engine import parse_shard, run_study
    from ...evaluate.runs.folder import RunFolder, check_folder
    from ...evaluate.runs.tracker import start_tracker

    if dry:
        found = dry_run(study, config)
        print_json({"schema": "knowedit.bench-plan/1", **found}) if as_json else _show_plan(found)
        return
    if out is None:
        raise InputError("the run needs a folder: name one with --out")
    shard = None if run["shard"] is None else parse_shard(run["shard"])
    check_folder(out, resume=run["resume"])
    if run["resume"]:
        pin_threads(RunFolder(out).manifest)
    follower = None if tracker is None else start_tracker(tracker, out.name, config.as_dict())
    log: dict[str, Any] = {} if follower is None else {"log": follower.log}
    try:
        run_by = build()
        if skipped := run_by.skipped:
            note(f"{len(skipped)} records are skipped, the first ({skipped[0][0]}): {skipped[0][1]}")
        done = run_study(
            run_by, out, **{**run, "shard": shard}, build=build, command=" ".join(["knowedit", *sys.argv[1:]]), **log
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
        f"{summary['records']} records, {summary['failed']} failed, {summary.get('skipped', 0)} skipped; "
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
