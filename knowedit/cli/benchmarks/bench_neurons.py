"""`knowedit bench neurons`: locate the neurons of many facts, suppress and amplify them, beside baselines."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..shared.help import choice
from ..shared.options import RANKINGS, SELECTIONS, Output, layer_list
from . import bench


def neurons(
    relations: Annotated[str | None, typer.Option(help="Only these, by name, with commas.")] = None,
    per_relation: Annotated[int | None, typer.Option(help="The largest number of facts of each relation.")] = None,
    known_only: Annotated[
        bool | None, typer.Option("--known-only/--all", help="Only facts that the model knows, the default.")
    ] = None,
    method: Annotated[str | None, choice(RANKINGS, "--method", help="How neurons are scored.")] = None,
    nodes: Annotated[str | None, typer.Option(help="Points of the integral, or auto.")] = None,
    layers: Annotated[str | None, typer.Option(help="A range such as 2-29, or a list.")] = None,
    select: Annotated[
        str | None, choice(SELECTIONS, "--select", help="How neurons are chosen by their scores.")
    ] = None,
    t: Annotated[float | None, typer.Option(help="Threshold of coarse neurons, of the largest score.")] = None,
    p: Annotated[float | None, typer.Option(help="Share of prompts that refined neurons are coarse for.")] = None,
    adjust: Annotated[bool | None, typer.Option("--adjust", help="Move p towards 2 to 5 neurons.")] = None,
    most: Annotated[int | None, typer.Option(help="The largest number of neurons, the strongest.")] = None,
    prompts: Annotated[int | None, typer.Option(help="Prompts of a fact that neurons are scored for, at most.")] = None,
    activation: Annotated[
        bool | None,
        typer.Option("--activation/--no-activation", help="Also as many neurons by activation, the default."),
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Random sets a fact.")] = None,
    stability: Annotated[bool | None, typer.Option("--stability", help="Also vary t, p and nodes.")] = None,
    erase: Annotated[bool | None, typer.Option("--erase", help="Also erase each relation.")] = None,
    config: bench.Config = None,
    *,
    records: bench.RecordOptions,
    model: bench.StudyModelOptions,
    run: bench.RunOptions,
    output: Output,
) -> None:
    """Locate the neurons of each fact, then suppress and amplify them on prompts that played no part."""
    from ...evaluate.neurons.study import NeuronStudy, NeuronStudyConfig

    chosen_layers = layer_list(layers)
    attribution = _given(nodes=int(nodes) if nodes is not None and nodes.isdigit() else nodes)
    locate = _given(
        method=method,
        select=select,
        t=t,
        p=p,
        adjust=adjust,
        most=most,
        prompts=prompts,
        attribution=attribution or None,
        layers=None if chosen_layers is None else list(chosen_layers),
    )
    options = {
        **vars(records),
        "model": model.model,
        "dtype": model.dtype,
        "relations": _names(relations),
        "per_relation": per_relation,
        "known_only": known_only,
        "locate": locate or None,
        "draws": draws,
        "activation": activation,
        "stability": stability,
        "erase": erase,
    }
    study_config = bench.configured(NeuronStudyConfig(), "neurons", config, options)
    build = partial(
        NeuronStudy.from_config, study_config, device=model.device, trust_remote_code=model.trust_remote_code
    )
    bench.execute("neurons", study_config, build, run, model.device, output.as_json)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _given(**settings) -> dict:
    """The settings that were given as options."""
    return {name: value for name, value in settings.items() if value is not None}
