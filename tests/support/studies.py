"""Studies of real edits on the trained model: facts with new targets, settings, and runs of a chosen engine."""

from __future__ import annotations

from dataclasses import replace

from support.trained import facts, trained

from knowedit.evaluate.edits.config import EditStudyConfig
from knowedit.evaluate.edits.study import EditStudy
from knowedit.facts import Neighbour
from knowedit.sources import Source

ROME = {"contexts": 0, "preserve": 0.0, "search": {"steps": 20, "lr": 0.5, "decay": 0.0, "clamp": 20.0}}
OPTIONS = {"layer": 1, "settings": ROME, "batch": 2, "checkpoints": (1, 3)}


def source(n: int = 6) -> Source:
    """The trained model's facts about homes, with new targets and neighbours."""
    homes = [fact for fact in facts() if fact.relation == "home"][:n]
    made = []
    for i, fact in enumerate(homes):
        near = next(other for other in homes if other.target != fact.target)
        new = next(other.target for other in homes[i:] + homes[:i] if other.target != fact.target)
        made.append(replace(fact, target_new=new, neighbours=(Neighbour(near.prompt, near.target),)))
    return Source("made", "facts", tuple(made), (), "0" * 64)


def study(n: int = 6, model=None, **options) -> EditStudy:
    """A study of `n` facts; `model`: the trained one, or a directory with it, which is loaded."""
    if isinstance(model, str):
        from knowedit import load

        model = load(model)
    return EditStudy(EditStudyConfig(**{**OPTIONS, **options}), model or trained(), source(n))


def records(run) -> list[dict]:
    """Without their timings."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in run.rows()]
