"""What the sections of `findings.py` share: their facts, and the file in which each is kept when it is done.

Several processes may work at different sections of one file at the same time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from knowedit.cli.shared.facts import known_facts
from knowedit.facts import Fact
from knowedit.models.adapter import Model
from knowedit.models.cache import cache_root, locked
from knowedit.prompts import Query
from knowedit.selection import evenly

from ..results import FOLDER, save

NAME = "findings"


@dataclass
class Run:
    """What a section is given: the model, the facts, and the options of the command."""

    model: Model
    facts: tuple[Fact, ...]
    options: dict

    def query(self, fact: Fact) -> Query:
        return self.model.query(fact.prompt, fact.target, fact.subject)


def kept(options: dict) -> dict:
    """The sections of an earlier run with the same options."""
    path = FOLDER / "quality" / f"{NAME}.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return record["sections"] if record.get("options") == options else {}


def keep(model: Model, options: dict, name: str, section: dict) -> dict:
    """Add a section to those that are in the file by now, of other processes too; all of them."""
    rounded = json.loads(json.dumps(section), parse_float=lambda text: float(f"{float(text):.5g}"))
    with locked(cache_root() / f"{NAME}.json"):
        sections = {**kept(options), name: rounded}
        about = {"command": f"python -m benchmarks.quality.{NAME}", "model": model.name, "layers": model.n_layers}
        save(f"quality/{NAME}", {**about, "options": options, "sections": sections})
    return sections


def choose(model: Model, wanted: int) -> dict:
    """Known facts whose prompts go on behind the subject, evenly over the relations as far as they have so many; some
    `wanted`, or a few more."""
    known = known_facts(model, "builtin")
    fit = [
        fact
        for fact in known
        if (prompt := model.query(fact.prompt, fact.target, fact.subject).prompt).lookup != prompt.read
    ]
    limit = wanted
    while len(chosen := evenly(tuple(fit), limit)) < min(wanted, len(fit)):
        limit += 1
    relations = [fact.relation_name for fact in chosen]
    return {
        "known": len(known),
        "with_text_behind_the_subject": len(fit),
        "n": len(chosen),
        "by_relation": {name: relations.count(name) for name in dict.fromkeys(relations)},
        "ids": [fact.id for fact in chosen],
    }
