"""`knowedit locate --facts FILE --out DIR`: one file of neurons and one of effects a fact, a summary at the end.

The folder belongs to one run: a manifest pins model, facts and settings. The same command on the same folder goes on
where it was cut off; another one is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from .shared.output import line, note

SCHEMA = "knowedit.locate-run/1"


def locate_many(
    wrapped,
    facts: Sequence,
    out: Path,
    config,
    negatives: list[str],
    draws: int,
    seed: int,
    known: bool,
    limit: int | None,
) -> dict:
    """Locate and prove every one of `facts` that is not done in `out` yet, and summarise all."""
    from tqdm.auto import tqdm

    from .. import __version__
    from ..answers import ask_facts
    from ..errors import KnoweditError
    from ..files import write_text
    from ..locate.neuron_kinds import ControlPool
    from ..locate.neurons import NeuronSet
    from ..locate.proof import Effect, summarise
    from ..sources import builtin_facts

    if known:
        found = ask_facts(wrapped, facts, chat=config.chat)
        facts = tuple(fact for fact, answer in zip(facts, found, strict=True) if answer.known)
    facts = evenly(facts, limit)
    weights_hash = wrapped.weights_hash()
    asked = json.dumps([f.as_dict() for f in facts])
    manifest = {
        "schema": SCHEMA, "version": __version__, "model": wrapped.name, "weights_hash": weights_hash,
        "facts": [f.id for f in facts], "facts_hash": hashlib.sha256(asked.encode()).hexdigest(),
        "negatives": list(negatives), "config": config.as_dict(), "draws": draws, "seed": seed,
    }  # fmt: skip
    _open(out, manifest)
    pool = ControlPool(wrapped, builtin_facts())
    failed: dict[str, str] = {}
    for fact in tqdm(facts, desc="locating", unit="fact"):
        name = f"{quote(fact.id, safe='')}.json"
        if (out / "effects" / name).exists():
            continue
        try:
            found, effect = _one(wrapped, fact, config, negatives, draws, seed, pool, weights_hash)
        except KnoweditError as error:
            failed[fact.id] = str(error)
            note(f"{fact.id}: {error}")
            continue
        found.save(out / "neurons" / name)
        # written last: its presence says that the fact is done
        write_text(out / "effects" / name, json.dumps(effect.as_dict() if effect else None))
    names = {f.id: f"{quote(f.id, safe='')}.json" for f in facts if f.id not in failed}
    sets = {i: NeuronSet.load(out / "neurons" / name) for i, name in names.items()}
    records = {i: _effect(out / "effects" / name) for i, name in names.items()}
    effects = [Effect.from_dict(record) for record in records.values() if record]
    proof = summarise(effects) if effects else None
    summary = {
        "schema": SCHEMA, "model": wrapped.name,
        "facts": len(facts), "failed": failed, "empty": sorted(i for i, r in records.items() if not r),
        "neurons": {i: len(s) for i, s in sets.items()}, "proof": proof.as_dict() if proof else None,
    }  # fmt: skip
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def show(summary: dict, out: Path) -> None:
    """The summary for people."""
    from ..statistics import Estimate

    tested = len(summary["neurons"]) - len(summary["empty"])
    line(f"{summary['facts']} facts, {tested} with neurons, {len(summary['failed'])} failed; results in {out}")
    proof = summary["proof"]
    if proof:
        line(f"{proof['neurons']:.1f} neurons a fact; mean probability on held-out prompts {proof['probability']:.3f}")
        for what in ("suppress", "amplify"):
            line(f"{what}: located {Estimate(**proof[what]).text('change')}, p = {proof[f'p_{what}']:.3f}")
            line(f"  random by layer and activation {Estimate(**proof[f'control_{what}']).text('change')}")
            line(f"  random by layer {Estimate(**proof[f'layer_control_{what}']).text('change')}")


def _one(wrapped, fact, config, negatives, draws, seed, pool, weights_hash):
    from ..facts import fill
    from ..locate.locate import locate_fact
    from ..locate.proof import measure

    found = locate_fact(wrapped, fact, config, negatives=negatives, pool=pool, weights_hash=weights_hash)
    if not len(found) or not fact.heldout:
        return found, None
    queries = [wrapped.query(fill(t, fact.subject), fact.target, fact.subject, chat=config.chat) for t in fact.heldout]
    controls = pool.controls(fact.subject, fact.target, fact.relation)
    others = {"same_relation": controls.relation, "other_relations": controls.general}
    return found, measure(wrapped, found, queries, draws=draws, seed=seed, others=others)


def _effect(path: Path) -> dict | None:
    from ..errors import DataError

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{str(path)!r} is damaged; delete it and run the same command again") from None


def evenly(facts, limit: int | None):
    """At most `limit` facts, taken in turn from the relations and spread over each."""
    if limit is None or limit >= len(facts):
        return facts
    by_relation: dict[str, list] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    quota = {name: limit // len(by_relation) + (i < limit % len(by_relation)) for i, name in enumerate(by_relation)}
    chosen = {
        f.id
        for name, group in by_relation.items()
        for f in group[:: max(1, len(group) // max(1, quota[name]))][: quota[name]]
    }
    return tuple(f for f in facts if f.id in chosen)


def _open(out: Path, manifest: dict) -> None:
    """Make the folder, or check that it belongs to this very run."""
    from ..errors import InputError
    from ..files import write_text

    path = out / "manifest.json"
    wanted = json.loads(json.dumps(manifest))
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{str(path)!r} is damaged; choose another --out") from None
        different = sorted(k for k in wanted if found.get(k) != wanted[k])
        if different:
            raise InputError(f"{str(out)!r} holds another run ({', '.join(different)} differ); choose another --out")
        return
    try:
        for name in ("neurons", "effects"):
            (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {str(out)!r}: {error.strerror}") from None
    write_text(path, json.dumps(wanted, indent=1) + "\n")
