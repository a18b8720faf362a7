"""`knowedit bench neurons`: locate the neurons of many facts, suppress and amplify them, beside baselines."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..shared.options import AsJson, Device, RemoteCode, layer_list
from . import bench


def neurons(
    out: bench.Out = None,
    source: bench.SourceName = None,
    model: bench.Model = None,
    relations: Annotated[str | None, typer.Option(help="Only these, by name, with commas.")] = None,
    per_relation: Annotated[int | None, typer.Option(help="At most so many facts of each relation.")] = None,
    known_only: Annotated[
        bool | None, typer.Option("--known-only/--all", help="Only facts that the model knows, the default.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="ig, gradient, activation, logit or ablation.")] = None,
    nodes: Annotated[str | None, typer.Option(help="Points of the integral, or auto.")] = None,
    layers: Annotated[str | None, typer.Option(help="A range such as 2-29, or a list.")] = None,
    t: Annotated[float | None, typer.Option(help="Threshold of coarse neurons, of the largest score.")] = None,
    p: Annotated[float | None, typer.Option(help="Share of prompts that refined neurons are coarse for.")] = None,
    adjust: Annotated[bool | None, typer.Option("--adjust", help="Move p towards 2 to 5 neurons.")] = None,
    most: Annotated[int | None, typer.Option(help="At most so many neurons, the strongest.")] = None,
    prompts: Annotated[int | None, typer.Option(help="Prompts of a fact that locate, at most.")] = None,
    activation: Annotated[
        bool | None,
        typer.Option("--activation/--no-activation", help="Also as many neurons by activation, the default."),
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Random sets a fact.")] = None,
    stability: Annotated[bool | None, typer.Option("--stability", help="Also vary t, p and nodes.")] = None,
    erase: Annotated[bool | None, typer.Option("--erase", help="Also erase each relation.")] = None,
    config: bench.Config = None,
    batch: bench.Batch = None,
    limit: bench.Limit = None,
    sample: bench.Sample = None,
    seed: bench.Seed = None,
    format: bench.Format = None,
    revision: bench.Revision = None,
    dtype: bench.Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    resume: bench.Resume = False,
    shard: bench.Shard = None,
    engine: bench.Engine = "serial",
    workers: bench.Workers = 1,
    address: bench.Address = None,
    tracker: bench.TrackerName = None,
    dry_run: bench.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Locate the neurons of each fact, then suppress and amplify them on prompts that played no part."""
    from ...evaluate.neurons.study import NeuronStudy, NeuronStudyConfig

    chosen_layers = layer_list(layers)
    attribution = _given(nodes=int(nodes) if nodes is not None and nodes.isdigit() else nodes)
    locate = _given(
        method=method, t=t, p=p, adjust=adjust, most=most, attribution=attribution or None,
        layers=None if chosen_layers is None else list(chosen_layers),
    )  # fmt: skip
    given = {
        "source": source, "model": model, "relations": _names(relations), "per_relation": per_relation,
        "known_only": known_only, "locate": locate or None, "prompts": prompts, "draws": draws,
        "activation": activation, "stability": stability, "erase": erase, "batch": batch, "limit": limit,
        "sample": sample, "seed": seed, "format": format, "revision": revision, "dtype": dtype,
    }  # fmt: skip
    settings = bench.configured(NeuronStudyConfig(), "neurons", config, given)
    claimed = bench.gpus(device)
    run = {"resume": resume, "shard": shard, "engine": engine, "workers": workers, "address": address, "gpus": claimed}
    build = partial(NeuronStudy.from_config, settings, device=device, trust_remote_code=trust_remote_code)
    bench.execute("neurons", settings, build, out, run, tracker, dry_run, as_json)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _given(**settings) -> dict:
    """The settings that were given as options."""
    return {name: value for name, value in settings.items() if value is not None}
