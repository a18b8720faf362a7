"""Where to stop: an edit that does damage, or does not do what it was made for, is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..display.result import plain
from ..errors import InputError, KnoweditError
from .edit import Edit
from .preflight import LARGE, Outcome, Preflight


class GuardError(KnoweditError):
    """An edit that a guard does not let through."""

    status = 3


@dataclass(frozen=True)
class Guard:
    """The most that an edit may do, and the least; chosen on development facts, well outside of what sound edits do.

    - `relative_norm`: ‖ΔW‖ / ‖W‖; `leak`: at the key of another known subject.
    - `perplexity`: relative rise on a plain text; `neighbours`: share of neighbours that turn to the new target.
    - `efficacy`: the least share of its facts whose new answer has to be the first choice; `paraphrases`: the least
      share of paraphrases that have to prefer the new answer and to give it more than before. 0 is no bound.
    """

    relative_norm: float = LARGE
    leak: float = 0.9
    perplexity: float = 0.02
    neighbours: float = 0.5
    efficacy: float = 1.0
    paraphrases: float = 0.5

    def __post_init__(self):
        for name, value in asdict(self).items():
            if name in ("efficacy", "paraphrases"):
                if not isinstance(value, int | float) or not 0 <= value <= 1:
                    raise InputError(f"the guard's {name} is {value!r}, expected a share from 0 to 1")
            elif not isinstance(value, int | float) or not value > 0:
                raise InputError(f"the guard's {name} is {value!r}, expected a number above 0")


def check(before: Preflight, after: Outcome | None, guard: Guard) -> None:
    """Raise `GuardError`, in one line, for an edit that does more than `guard` lets it, or less than it asks for."""
    if before.relative_norm > guard.relative_norm:
        raise GuardError(
            f"the edit changes its weight by {before.relative_norm:.2f} of its norm, the guard allows "
            f"{guard.relative_norm:g}; try another layer, more contexts or a longer prompt"
        )
    if (near := before.worst) is not None and near.leak > guard.leak:
        raise GuardError(
            f"the edit would move {near.subject!r} {near.leak:.0%} as much as its own subject, the guard allows "
            f"{guard.leak:.0%}; name the subject more fully, or put words before it"
        )
    if after is None:
        return
    if after.efficacy < guard.efficacy:
        raise GuardError(f"the edit did not take: {did_not_take(after)}; try another layer or method")
    if after.paraphrases_won < guard.paraphrases:
        raise GuardError(
            f"the edit wins {after.paraphrases_won:.0%} of the paraphrases, the guard asks for "
            f"{guard.paraphrases:.0%}; try another layer, or a prompt that asks more plainly"
        )
    if after.perplexity_change > guard.perplexity:
        raise GuardError(
            f"perplexity on a plain text rises by {after.perplexity_change:.1%}, the guard allows "
            f"{guard.perplexity:.1%}; try another layer or prompt"
        )
    if after.neighbours_lost > guard.neighbours:
        raise GuardError(
            f"{after.neighbours_lost:.0%} of the neighbours turn to the new target, the guard allows "
            f"{guard.neighbours:.0%}; try another layer or prompt"
        )


def checked(
    edit: Edit, before: Preflight, after: Outcome, guard: Guard | None = None, command: str | None = None
) -> Edit:
    """`edit` with what was measured of it in its record, and the verdict of `guard` (by default the usual bounds).

    The verdict is None where the guard lets the edit through, else why it does not.
    """
    guard = guard or Guard()
    try:
        check(before, after, guard)
        refused = None
    except GuardError as error:
        refused = str(error)
    measured = {
        "preflight": before,
        "facts": after.facts,
        "perplexity": {"before": after.perplexity_before, "after": after.perplexity_after},
        "guard": {"bounds": guard, "refused": refused},
    }
    made = edit.made if command is None else {**edit.made, "command": command}
    return replace(edit, made=made, measured=plain(measured))


def did_not_take(outcome: Outcome) -> str | None:
    """In words what the model says in place of the new answer; None where it says the new answer of every fact."""
    missed = [fact.after.prompt for fact in outcome.facts if not fact.after.prompt.says_new]
    if not missed:
        return None
    of = f"in {len(missed)} of {len(outcome.facts)} facts, such as " if len(outcome.facts) > 1 else ""
    word, chance = missed[0].top[0]
    return (
        f"{of}after {missed[0].prompt!r} the model says {word!r} (p of its first token = {chance:.3f}); "
        f"a token of the new answer has {missed[0].p_new:.3f} on average"
    )


def of_guard(measured: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `checked` wrote into an edit's record; empty where nobody measured, or somebody wrote what is his own."""
    return measured if {"preflight", "facts", "perplexity", "guard"} <= measured.keys() else {}
