"""Stage 2: inside one layer: attention and where its heads look, the MLP and what it makes, the output."""

from __future__ import annotations

from dataclasses import dataclass

from ..display.result import plain
from ..errors import InputError, ModelError
from ..locate.neurons import vocabulary
from ..memory.corpus_scan import value_norms
from ..mlp.activations import collect
from ..mlp.layer_anatomy import Anatomy, anatomy
from ..mlp.probing import RelationProbe, relation_probe
from ..mlp.value_geometry import LayerGeometry, geometry
from ..models.adapter import Model
from ..models.expansion import expansion
from ..prompts import Prompt
from ..recall.flow.attention_weights import attention_pattern
from ..selection import per_relation
from ..sources import builtin_facts
from .jobs import Report
from .render import chapters, fill
from .tab import Tab, Told

NEURONS, HEADS = 8, 4
PROBED = 12  # facts of each relation


@dataclass(frozen=True)
class Strong:
    """A neuron that writes much: |activation| · ‖v‖, and what that promotes."""

    layer: int
    index: int
    activation: float
    writes: float
    promotes: tuple[str, ...]


@dataclass(frozen=True)
class Head:
    """A head: the share of each token in what it reads at the chosen one, and what it adds to the answer's logit."""

    head: int
    looks: list[float]
    adds: float | None


def tokens(tab: Tab, model: Model) -> list[tuple[str, int]]:
    """The tokens of the prompt as (what people see, place), but the first, which holds massive activations."""
    prompt = _prompt(model, tab.asked)
    return [(f"{place}: {model.token(token)!r}", place) for place, token in enumerate(prompt.ids)][1:]


def read_position(tab: Tab, model: Model) -> int | None:
    """Which of `tokens` the answer is read at, which is looked at first; None where it is the prompt's first token."""
    return _prompt(model, tab.asked).read or None


def look(model: Model, tab: Tab, report: Report, layer: int, position: int | None) -> str:
    """One layer at one token of what was asked, the read position if no other."""
    told = tab.asked
    prompt = _prompt(model, told)
    place = prompt.read if position is None or position >= len(prompt.ids) else position
    report(f"looking into layer {layer}")
    told.need("parts")
    seen = anatomy(model, [prompt], [model.check_layer(layer)])
    record = told.record | plain(
        {
            "anatomy": shown_anatomy(seen, layer),
            "neurons_at": strongest(model, prompt, layer, place),
            "heads_at": heads(model, told, prompt, layer, place),
            "at": {"layer": layer, "place": place, "token": model.token(prompt.ids[place])},
        }
    )
    return fill("inside", record)


def shown_anatomy(seen: Anatomy, layer: int) -> dict:
    """What is shown of the anatomy of a layer."""
    found = seen.layer(layer)
    return {
        "flow": dict(seen.flow),
        "activation": seen.activation,
        "nonlinear": seen.nonlinear,
        "active": 1 - found.below_zero.value,
        "tokens": seen.tokens,
        "stages": {
            stage.name: {"histogram": stage.histogram, "edges": seen.edges[stage.name],
                         "low": stage.quantiles[1], "high": stage.quantiles[7]}
            for stage in found.stages
        },
    }  # fmt: skip


def strongest(model: Model, prompt: Prompt, layer: int, place: int) -> list[Strong]:
    """The neurons of `layer` that write most at a token."""
    made = {layer: expansion(model, layer)}
    values = collect(model, [prompt], lambda _: [place], made, stages=("neurons",))[layer]["neurons"][0]
    writes = values.abs() * value_norms(model, layer)
    found = writes.argsort(descending=True)[:NEURONS].tolist()
    return [
        Strong(layer, i, values[i].item(), writes[i].item(), vocabulary(model, layer, i, values[i].item(), 6)[0])
        for i in found
    ]


def heads(model: Model, told: Told, prompt: Prompt, layer: int, place: int) -> dict:
    """The heads of `layer` that add most to the answer, or look most at one token, and where they look.

    A model without attention weights leaves a note.
    """
    try:
        looks = attention_pattern(model, prompt, layer, place)
    except ModelError as error:
        return {"heads": [], "note": str(error)}
    adds = None if told.story.parts is None else told.story.parts.heads[layer]
    order = looks.amax(1) if adds is None else adds.abs()
    chosen = order.argsort(descending=True)[:HEADS].tolist()
    found = [Head(i, looks[i, : place + 1].tolist(), None if adds is None else adds[i].item()) for i in chosen]
    return {"heads": found, "note": None}


def output(tab: Tab, report: Report) -> str:
    """How the answer forms from layer to layer, and what each part adds to it."""
    report("reading the state after each layer")
    return chapters(tab.asked.need("lens", "parts"), "lens")


def expand(model: Model, report: Report, layer: int) -> str:
    """Does expansion help in `layer`? How well relations are told apart at each stage, and the room for directions."""
    facts = per_relation(builtin_facts(), PROBED)
    step = report("telling relations apart at each stage", 3 * len(facts))
    try:
        probe = relation_probe(model, facts, layers=[model.check_layer(layer)], progress=step)
    except InputError as error:
        return fill("expand", {"layer": layer}, probe=None, note=str(error))
    report("measuring the directions of its values")
    (values,) = geometry(model, [layer], [80.0]).layers
    return fill("expand", plain(separability(probe, values, layer)), probe=probe, note=None)


def separability(probe: RelationProbe, values: LayerGeometry, layer: int) -> dict:
    """The record of `expand`."""
    return {"layer": layer, "accuracy": probe.accuracy[layer], "chance": probe.chance, "values": values,
            "relations": len(probe.relations), "facts": sum(probe.relations.values())}  # fmt: skip


def _prompt(model: Model, told: Told) -> Prompt:
    return model.query_of(told.story.fact).prompt
