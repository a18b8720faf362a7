"""Checks of edits as code: what has to hold with them on the model, what has to stay, and how much worse text may get.

checks = run_checks(model, edits, hold=facts, keep=others, max_perplexity=0.01)
checks.failed                 # for people; checks.junit() for CI
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from ..answers import Answer, ask
from ..display.result import Record, Table
from ..edit.apply import stacked
from ..edit.edit import Edit
from ..edit.preflight import perplexity
from ..errors import InputError, KnoweditError
from ..facts import Fact
from ..models.adapter import Model
from ..progress import Progress, silent
from ..writing.inert import inert


class ChecksFailed(KnoweditError):
    """Edits that do not pass their checks."""

    status = 3


@dataclass(frozen=True)
class Check:
    """One check: `kind` is "hold", "keep" or "perplexity"; `found` is what there was instead of `expected`."""

    kind: str
    name: str
    prompt: str
    expected: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Checks(Record):
    """All checks of some edits, by their content hashes, in the order in which they were made."""

    model: str
    edits: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def as_dict(self) -> dict:
        return {**super().as_dict(), "failed": len(self.failed)}

    def table(self) -> Iterator[str | Table]:
        if self.failed:
            rows = [(check.kind, check.name, check.prompt, check.expected, check.found) for check in self.failed]
            yield Table(("check", "id", "prompt", "expected", "found"), rows, "What broke")
            yield ""
        for kind in ("hold", "keep", "perplexity"):
            if made := [check for check in self.checks if check.kind == kind]:
                yield f"{kind}: {sum(check.passed for check in made)} of {len(made)} passed"

    def junit(self) -> bytes:
        """The checks as a JUnit report, one suite a kind."""
        root = ElementTree.Element("testsuites", name="knowedit", tests=_n(self.checks), failures=_n(self.failed))
        for kind in dict.fromkeys(check.kind for check in self.checks):
            made = [check for check in self.checks if check.kind == kind]
            failures = [check for check in made if not check.passed]
            suite = ElementTree.SubElement(root, "testsuite", name=kind, tests=_n(made), failures=_n(failures))
            for check in made:
                case = ElementTree.SubElement(suite, "testcase", classname=kind, name=_xml(check.name))
                if not check.passed:
                    message = _xml(f"{check.prompt}: expected {check.expected}, found {check.found}")
                    ElementTree.SubElement(case, "failure", message=message)
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _n(items: Sequence) -> str:
    return str(len(items))


def _xml(text: str) -> str:
    """`text` without what XML 1.0 cannot hold even as an entity."""
    return "".join(c for c in inert(text) if c not in "\ufffe\uffff")


def run_checks(
    model: Model,
    edits: Sequence[Edit],
    *,
    hold: Sequence[Fact] = (),
    keep: Sequence[Fact] = (),
    max_perplexity: float | None = None,
    progress: Progress = silent,
) -> Checks:
    """Check `edits`, one above the other on `model`, which is as it was after.

    **Arguments:**

    - `hold`: with the edits each of these facts has its `target_new`, or its `target` where it has none, as the model's
      first choice, token by token.
    - `keep`: the answer to each of these is what it is without the edits: a target that was the first choice stays it;
      where it was not, the first token stays.
    - `max_perplexity`: the largest rise of perplexity on a plain text, as a fraction.
    - `progress` counts prompts.

    Raises `InputError` where nothing is to be checked, and what `apply` raises.
    """
    if not hold and not keep and max_perplexity is None:
        raise InputError(
            "there is nothing to check: give facts that are to hold, facts that are to stay, or a perplexity"
        )
    holding = [model.query_of(fact, _wanted(fact)) for fact in hold]
    staying = [model.query_of(fact) for fact in keep]
    with stacked(model, edits):
        answers = ask(model, [*holding, *staying], progress=progress)
        worse = None if max_perplexity is None else perplexity(model)
    before = ask(model, staying)
    checks = [
        Check("hold", _name(fact), fact.prompt, _wanted(fact), answer.top[0][0], answer.greedy)
        for fact, answer in zip(hold, answers, strict=False)
    ]
    checks += [_kept(fact, *pair) for fact, *pair in zip(keep, before, answers[len(hold) :], strict=True)]
    if max_perplexity is not None:
        usual = perplexity(model)
        rise = worse / usual - 1
        said = f"{usual:.3f} → {worse:.3f} ({rise:+.2%})"
        allowed = f"a rise of {max_perplexity:.2%} or less"
        checks.append(Check("perplexity", "plain text", "", allowed, said, rise <= max_perplexity))
    return Checks(model.name, tuple(edit.content_hash for edit in edits), tuple(checks))


def _wanted(fact: Fact) -> str:
    return fact.target if fact.target_new is None else fact.target_new


def _name(fact: Fact) -> str:
    return fact.id or fact.prompt


def _kept(fact: Fact, before: Answer, after: Answer) -> Check:
    first = before.top[0][0]
    passed = after.greedy if before.greedy else after.top[0][0] == first
    return Check("keep", _name(fact), fact.prompt, fact.target if before.greedy else first, after.top[0][0], passed)
