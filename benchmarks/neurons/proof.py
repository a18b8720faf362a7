"""Proof on built-in facts that the model knows: suppression and amplification on held-out prompts.

Located as a plain `knowedit locate` does it, unless options say otherwise. Proved are all located neurons of a fact,
and the first five; with `--select refined --adjust` there are 2 to 5 as Dai et al. choose them.
The facts are spread `evenly` over the relations. Thresholds of refined neurons were chosen on 20 other facts; those of
the causal selection on nine, some of which may be among these.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import knowedit
from knowedit import Fact, Model
from knowedit.locate.config import LocateConfig
from knowedit.locate.fact_prompts import FactPrompts
from knowedit.locate.locate import locate_fact
from knowedit.locate.proof.effect import Effect, located_answers, measure_located
from knowedit.locate.proof.neuron_kinds import CONTROLS, ControlPool
from knowedit.locate.proof.proof import summarise
from knowedit.selection import evenly
from knowedit.statistics import rate

from ..registry import benchmark
from ..samples import known
from ..studies import RecordStudy, summary_of

STRONGEST = 5
PLACES = {"read": "", "lookup": ", at the subject's last token", "both": ", at the subject's and the last token"}


@benchmark("neurons.proof", "What do suppressing and doubling a fact's neurons do on held-out prompts?")
def proof(
    model: str = "smollm2-135m",
    method: str = "ig",
    facts: int = 150,
    nodes: int | None = None,
    layers: str | None = None,
    p: float | None = None,
    adjust: bool = False,
    select: str = "causal",
    ablation: str = "zero",
    specific: bool = False,
    position: str = "read",
    draws: int = 40,
    folder: Path = Path("runs/proof"),
) -> Iterator[tuple[str, dict]]:
    """`facts`: of which a few are left out, as relations have unlike many, and with `specific` those with too few known
    ones of their relation beside them. `layers` such as 2-29; `p`: the share of prompts that a neuron is refined by;
    `draws`: random sets of each fact, whose mean over facts is told. A study of one record a fact below `folder`: the
    same command goes on where it was stopped."""
    first, _, last = (layers or "").partition("-")
    attribution = replace(LocateConfig().attribution, position=position)
    config = LocateConfig(
        method=method,
        attribution=attribution if nodes is None else replace(attribution, nodes=nodes),
        select=select,
        ablation=ablation,
        specific=specific,
        p=p,
        adjust=adjust,
        layers=tuple(range(int(first), int(last) + 1)) if layers else None,
    )
    chosen_by = "causal" if select == "causal" else "adjusted" if adjust else ""
    others = ((ablation, "zero"), (position, "read"), (model, "smollm2-135m"))
    changed = ("specific" if specific else "", *("" if value == usual else value for value, usual in others))
    variant = "_".join(filter(None, (method, chosen_by, *changed)))
    loaded = knowedit.load(model)
    known_facts = known(loaded)
    sizes = {"": None} if adjust else {"": None, "strongest": STRONGEST}
    chosen = evenly(known_facts, facts)
    if specific:
        chosen = [fact for fact in chosen if _others(fact, known_facts) > CONTROLS]
    result = proved(loaded, chosen, knowedit.builtin_facts(), config, draws, folder / variant, sizes)
    yield variant, {"known": len(known_facts)} | result


@benchmark("neurons.proof_masked", "What do they do in a masked model?")
def proof_masked(draws: int = 40) -> dict:
    """A tiny BERT of the tests, trained on made-up facts, each of which it knows."""
    sys.path.append(str(Path(__file__).parents[2] / "tests"))
    from support.trained_masked import facts, trained_masked

    with tempfile.TemporaryDirectory() as folder:
        return proved(trained_masked(), facts(), facts(), LocateConfig(), draws, Path(folder) / "proof")


def proved(
    model: Model,
    facts: Sequence[Fact],
    controls: Sequence[Fact],
    config: LocateConfig,
    draws: int,
    folder: Path,
    sizes: Mapping[str, int | None] = MappingProxyType({"": None}),
) -> dict:
    """A record: by the name of a size, the proof of so many of the first neurons of each fact."""
    weights_hash = model.weights_hash()
    pool = ControlPool(model, controls, weights_hash=weights_hash)
    by_id = {str(fact.id): fact for fact in facts}

    def measure(name: str) -> dict:
        fact = by_id[name]
        located = locate_fact(model, fact, config, pool=pool, weights_hash=weights_hash)
        kinds = [neuron.kind for neuron in located.neurons]
        counts = {str(kind): kinds.count(kind) for kind in sorted(set(kinds), key=str)}
        record: dict = {"neurons": [list(site) for site in located], "kinds": counts, "effects": {}}
        if not len(located):
            return record
        answers = located_answers(model, located, FactPrompts.all_of(fact).heldout, pool)
        for size, most in sizes.items():
            neurons = located if most is None else located.top(most)
            effect = measure_located(model, neurons, answers, pool=pool, draws=draws)
            record["effects"][size] = effect.as_dict()
        return record

    asked = {"locate": config.as_dict(), "draws": draws, "sizes": dict(sizes)}
    study = RecordStudy("proof", model, asked, list(by_id), measure, lambda records: records)
    records = summary_of(study, folder)
    rows = [{"id": name, "neurons": of["neurons"], "kinds": of["kinds"]} for name, of in records.items()]
    return {
        "model": model.name, "facts": len(facts), "config": config.as_dict(), "draws": draws,
        "sizes": {size or "all": _results(records.values(), size) for size in sizes}, "by_fact": rows,
    }  # fmt: skip


def _others(fact: Fact, known_facts: Sequence[Fact]) -> int:
    """How many known facts of the relation have another subject and answer."""
    answer = fact.target.casefold()
    return sum(
        other.relation == fact.relation
        and other.subject != fact.subject
        and answer not in map(str.casefold, (other.target, *other.aliases))
        for other in known_facts
    )


def _results(records: Iterable[dict], size: str) -> dict:
    measured = [Effect.from_dict(record["effects"][size]) for record in records if record["effects"]]
    signs = [bool(e.suppressed.mean() < e.before.mean() < e.amplified.mean()) for e in measured]
    return {"proof": summarise(measured).as_dict(), "both_signs": rate(signs).as_dict()}


@proof.row
@proof_masked.row
def proof_row(record: dict) -> list[str]:
    config, sizes = record["config"], record["sizes"]
    effects = sizes["all"]["proof"]
    model = "" if record["model"].startswith("SmolLM2") else f"{record['model']}, "
    chosen = f"{'specific ' * config['specific']}causal selection" if config["select"] == "causal" else "refined"
    if config["adjust"]:
        chosen += ", p adjusted"
    lines = [
        f"{model}`{config['method']}`, {chosen}{PLACES[config['attribution']['position']]}, {effects['facts']} facts, "
        f"p before {effects['probability']:.2f}"
    ]
    for size, results in sizes.items():
        first, *others = _lines(results)
        lines += [f"*{'all' if size == 'all' else f'the first {STRONGEST}'}*, {first}", *others]
    return lines


def _lines(results: dict) -> list[str]:
    """What the neurons of a size do."""
    effects = results["proof"]

    def both(control: str) -> str:
        return ", ".join(f"{effects[f'{control}{way}']['value']:+.1%}" for way in ("suppress", "amplify"))

    of_others = ", ".join(f"{way['value']:+.1%}" for way in effects["specificity"]["same_relation"].values())
    lines = [
        f"{effects['neurons']:.1f} neurons a fact: located **{both('')}**; random by layer and activation "
        f"{both('control_')}, by layer {both('layer_control_')}; other facts of the relation {of_others}; both signs "
        f"right in {results['both_signs']['value']:.0%} of the facts"
    ]
    alone, random = (effects[name]["value"] for name in ("sufficient", "control_sufficient"))
    if alone is not None:  # their layers are needed
        lines.append(f"alone in their layers they restore {alone:.0%} of the answer, random ones {random:.0%}")
    return lines
