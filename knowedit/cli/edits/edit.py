"""`knowedit edit`: change one fact, and show what that does before it is kept.

The model is asked before and with the edit; the edit itself is computed and saved, never left on a model.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from ..shared.options import DEFAULT_MODEL, AsJson, Device, Dtype, ModelName, RemoteCode, load
from ..shared.output import print_json
from ..shared.progress import Clock
from .edit_making import make
from .edit_report import show

SCHEMA = "knowedit.edit-report/1"
METHODS = ("rome", "knowledge_neurons", "fine_tune")

_FOR = {  # options that only some methods have
    "layer": ("rome", "fine_tune"),
    "contexts": ("rome",),
    "tokens": ("rome",),
    "text": ("rome",),
    "norm_constraint": ("fine_tune",),
}
_OPEN = "\N{REPLACEMENT CHARACTER}"  # the old answer until the model was asked for it
_Texts = list[str]


def edit(
    template: Annotated[
        str | None, typer.Argument(help="A prompt that the answer continues; {} may stand for the subject.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="The subject, as it stands in the prompt.")] = None,
    target_new: Annotated[str | None, typer.Option(help="What the model is to say from now on.")] = None,
    target_true: Annotated[
        str | None, typer.Option(help="The old answer; by default the model's own first choice.")
    ] = None,
    fact: Annotated[str | None, typer.Option(help="A built-in fact by id, instead of a TEMPLATE.")] = None,
    paraphrase: Annotated[_Texts, typer.Option(help="Another way to ask, which should change too. Repeat it.")] = [],  # noqa: B006
    neighbour: Annotated[
        _Texts, typer.Option(help='"PROMPT=ANSWER" about something else, which should stay. Repeat it.')
    ] = [],  # noqa: B006
    method: Annotated[str, typer.Option(help="rome, knowledge_neurons or fine_tune.")] = "rome",
    layer: Annotated[
        str | None, typer.Option(help="The edited layer, or `auto`: by trying; by default that of a table.")
    ] = None,
    guard: Annotated[bool, typer.Option("--guard", help="Refuse an edit that does damage; nothing is saved.")] = False,
    out: Annotated[Path | None, typer.Option(help="A new folder for the edit.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampled contexts.")] = 0,
    contexts: Annotated[int | None, typer.Option(help="How many contexts stand before the prompt, rome.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens for the covariance, rome.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Text for the covariance, as `knowedit covariance` takes it.")
    ] = None,
    norm_constraint: Annotated[
        float | None, typer.Option(help="Largest change of an entry of the weight, fine_tune: this is FT-L.")
    ] = None,
    lens: Annotated[
        bool, typer.Option("--lens", help="Also whether the old answer survives: by layer, and its neurons.")
    ] = False,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Change a fact: what the model answers before and after, what the edit may damage, and the edit as a folder.

    `knowedit edit TEMPLATE --subject S --target-new N`, or `--fact ID` for a built-in one.
    """
    from ...files import check_new

    given = {"layer": layer, "contexts": contexts, "tokens": tokens, "text": text, "norm_constraint": norm_constraint}
    _check_method(method, given)
    where = _layer(layer, method)
    asked = _asked(template, subject, target_new, target_true, fact, paraphrase, neighbour)
    if out is not None:
        check_new(out)  # at once, what could not be saved after minutes of work
    seconds, clock = {}, Clock()
    wrapped = load(model, dtype, device, trust_remote_code)
    seconds["load"] = clock.lap()
    assumed = asked.target == _OPEN
    if assumed:
        asked = replace(asked, target=_first_choice(wrapped, asked))
    _check_prompts(wrapped, asked)
    made, preserved = make(wrapped, asked, method, where, given | {"seed": seed}, seconds)
    report = _checked(wrapped, made, preserved, guard, lens, seconds)
    report = {
        "schema": SCHEMA, "model": wrapped.name, "method": method, **_layers(wrapped, made),
        "fact": asdict(asked), "target_true_is_first_choice": assumed, **report, "notes": dict(made.notes),
        "content_hash": made.content_hash, "seconds": seconds, "out": None if out is None else str(made.save(out)),
    }  # fmt: skip
    print_json(report) if as_json else show(report)


# ---------------------------------------------------------------- what was asked for


def _check_method(method: str, given: dict) -> None:
    """Refuse an unknown method, and options that it would not use."""
    from ...errors import InputError, did_you_mean

    if method not in METHODS:
        raise InputError(
            f"no method is called {method!r}{did_you_mean(method, METHODS)}; there are {', '.join(METHODS)}"
        )
    for name, value in given.items():
        if value is not None and method not in _FOR[name]:
            raise InputError(
                f"--{name.replace('_', '-')} is for {' and '.join(_FOR[name])}, but the method is {method}; "
                "leave it out"
            )


def _layer(text: str | None, method: str) -> int | str | None:
    from ...errors import InputError

    if text is None:
        return None
    if text == "auto" and method != "rome":
        raise InputError(f"--layer auto chooses the layer for rome, and the method is {method}; give a number")
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise InputError(f"the layer is {text!r}, expected a whole number or auto") from None


def _asked(template, subject, target_new, target_true, fact, paraphrases: list[str], neighbours: list[str]):
    """The fact, with `_OPEN` as its target where that is the model's to say."""
    from ...edit.edit import check_request
    from ...errors import InputError
    from ...facts import Fact, templated
    from ...sources import find_fact

    if (template is None) == (fact is None):
        raise InputError("give either a TEMPLATE with --subject and --target-new, or --fact ID")
    if fact is not None:
        if subject is not None or target_true is not None:
            raise InputError("--fact brings its own subject and old answer; leave --subject and --target-true out")
        found = find_fact(fact)
        wanted = found.target_new if target_new is None else target_new
    else:
        for name, value in (("--subject", subject), ("--target-new", target_new)):
            if value is None:
                raise InputError(f"a TEMPLATE needs {name}; see knowedit edit --help")
        target = _OPEN if target_true is None else target_true
        found = Fact(template=templated(template, subject), subject=subject, target=target)
        wanted = target_new
    found = replace(
        found,
        target_new=wanted,
        paraphrases=(*found.paraphrases, *(templated(text, found.subject) for text in paraphrases)),
        neighbours=(*found.neighbours, *map(_neighbour, neighbours)),
    )
    check_request(found)
    return found


def _neighbour(text: str):
    from ...errors import InputError
    from ...facts import Neighbour

    prompt, equals, answer = (part.strip() for part in text.rpartition("="))
    if not equals or not prompt or not answer:
        raise InputError(f'a neighbour is {text!r}, expected "PROMPT=ANSWER"')
    return Neighbour(prompt, answer)


def _first_choice(wrapped, fact) -> str:
    """What the model says now: its most probable token that is text."""
    from ...answers import ask
    from ...errors import InputError

    query = wrapped.query(fact.prompt, fact.target_new, fact.subject)
    (answer,) = ask(wrapped, [query], top=min(20, wrapped.vocabulary))
    for word, _ in answer.top:
        try:
            wrapped.query(fact.prompt, word, fact.subject)
        except InputError:
            continue
        if word.strip() == fact.target_new.strip():
            raise InputError(
                f"{word.strip()!r} is the model's first choice already; name another --target-new, or the old answer "
                "with --target-true"
            )
        return word.strip()
    raise InputError(f"the model has no word as an answer to {fact.prompt!r}; name the old one with --target-true")


def _check_prompts(wrapped, fact) -> None:
    """A prompt or answer that the tokenizer cannot use is said before anything is computed."""
    from ...facts import fill

    for template in (fact.template, *fact.paraphrases, *fact.heldout):
        for target in (fact.target, fact.target_new):
            wrapped.query(fill(template, fact.subject), target, fact.subject)
    for neighbour in fact.neighbours:
        for target in (neighbour.target, fact.target_new):
            wrapped.query(neighbour.prompt, target)


# ---------------------------------------------------------------- what it does


def _checked(wrapped, made, preserved, guard: bool, lens: bool, seconds: dict) -> dict:
    """Pre-flight and after-check, as the report has them; raises `GuardError` with `guard`."""
    from ...edit.preflight import Guard, check, outcome, preflight

    clock = Clock()
    before = preflight(wrapped, made, preserved=preserved)
    if guard:
        check(before, None, Guard())  # what needs no further run of the model
    after = outcome(wrapped, made, lens=lens)
    if guard:
        check(before, after, Guard())
    seconds["check"] = clock.lap()
    found = after.as_dict()
    return {
        "before": found["before"],
        "after": found["after"],
        "perplexity": {"before": after.perplexity_before, "after": after.perplexity_after},
        "lens": found["lens"],
        "neurons": found["neurons"],
        "preflight": before.as_dict(),
        "guard": asdict(Guard()) if guard else None,
    }


def _layers(wrapped, made) -> dict:
    layers = sorted(wrapped.down_layers()[path] for path in made.deltas)
    return {"layer": layers[0] if len(layers) == 1 else None, "layers": layers}
