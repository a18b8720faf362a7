"""`knowedit edit`: change one fact, and show what that does before it is kept.

The model is asked before and with the edit; the edit itself is computed and saved, never left on a model.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from ...edit.methods.table import METHODS
from ..shared.help import choice
from ..shared.options import SEEDS, ModelOptions, Output, Separator, Texts
from ..shared.output import print_json
from ..shared.progress import Clock, progress
from .edit_report import show

SCHEMA = "knowedit.edit-report/1"
AUTO = "auto"  # the layer, to be chosen by trying

_OPEN = "\N{REPLACEMENT CHARACTER}"  # the old answer until the model was asked for it


def edit(
    template: Annotated[
        str | None, typer.Argument(help="A prompt that the answer continues; {} may stand for the subject.")
    ] = None,
    subject: Annotated[str | None, typer.Option(help="The subject, as it stands in the prompt.")] = None,
    target_new: Annotated[str | None, typer.Option(help="What the model is to say from now on.")] = None,
    target_true: Annotated[
        str | None, typer.Option(help="The old answer; by default the model's own first choice.")
    ] = None,
    separator: Separator = None,
    fact: Annotated[str | None, typer.Option(help="A built-in fact by id, instead of a TEMPLATE.")] = None,
    paraphrase: Annotated[
        Texts, typer.Option(metavar="TEXT", help="Another way to ask, which should change too. Repeat it.")
    ] = [],  # noqa: B006
    neighbour: Annotated[
        Texts, typer.Option(metavar="TEXT", help='"PROMPT=ANSWER" about something else, which should stay. Repeat it.')
    ] = [],  # noqa: B006
    method: Annotated[
        str,
        choice(
            METHODS,
            "--method",
            hidden=[name for name, row in METHODS.items() if not row.edits],
            help="; ".join(f"{name}: {row.words}" for name, row in METHODS.items() if row.edits) + ".",
        ),
    ] = "rome",
    layer: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="The edited layer, or the best by trying; by default a table's."),
    ] = None,
    settings: Annotated[
        Texts,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the method, such as search.lr=0.2. Repeat it."),
    ] = [],  # noqa: B006
    seed: Annotated[int | None, typer.Option(help="Short for --set seed=N.", **SEEDS)] = None,
    guard: Annotated[
        bool, typer.Option("--guard", help="Refuse an edit that does damage or does not take: none saved, status 3.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A new folder for the edit.")] = None,
    lens: Annotated[
        bool, typer.Option("--lens", help="Also whether the old answer survives: by layer, and its neurons.")
    ] = False,
    *,
    context: typer.Context,
    model: ModelOptions,
    output: Output,
) -> None:
    """Change a fact: what the model answers before and after, what the edit may damage, and the edit as a folder.

    `knowedit edit TEMPLATE --subject S --target-new N`, or `--fact ID` for a built-in one.
    """
    from ...files import check_new

    method_settings = _settings(method, layer, settings, seed)
    if template is not None and fact is None:
        _check_subject(method, subject)
    request = _request(template, subject, target_new, target_true, fact, paraphrase, neighbour)
    request = replace(request, separator=separator)
    if out is not None:
        check_new(out)  # at once, what could not be saved after minutes of work
    seconds, clock = {}, Clock()
    edited = model.load()
    seconds["load"] = clock.lap()
    assumed = request.target == _OPEN
    if assumed:
        request = replace(request, target=_first_choice(edited, request))
    _check_prompts(edited, request)
    change, preserved = _make(edited, request, method, layer, method_settings, seconds)
    change, checks = _checked(edited, change, preserved, guard, lens, seconds, context.obj)
    report = {
        "schema": SCHEMA,
        "model": edited.name,
        "method": method,
        **_layers(edited, change),
        "fact": asdict(request),
        "target_true_is_first_choice": assumed,
        "tokens": {
            name: [edited.token(i) for i in edited.query_of(request, target).target_ids]
            for name, target in (("target", request.target), ("target_new", request.target_new))
        },
        **checks,
        "notes": dict(change.notes),
        "content_hash": change.content_hash,
        "seconds": seconds,
        "out": None if out is None else str(change.save(out)),
    }
    print_json(report) if output.as_json else show(report)


# ---------------------------------------------------------------- the request


def _settings(method: str, layer: str | None, pairs: list[str], seed: int | None) -> dict:
    """The method's settings from the options, without the layer, checked as far as that needs no model."""
    from ...edit.methods.table import find_method, method_config
    from ...errors import InputError
    from ...settings import parse_settings

    settings = parse_settings(pairs)
    if seed is not None:
        settings["seed"] = seed
    if method in METHODS and not METHODS[method].edits:
        raise InputError(f"the method {method} makes no edit, it leaves the model as it is; choose another")
    if layer == AUTO and not find_method(method).tries_layers:
        raise InputError(f"the method {method} does not choose its layer by trying; give a number, or no layer")
    method_config(method, settings, None if layer == AUTO else _number(layer))
    return settings


def _number(layer: str | None) -> int | None:
    from ...errors import InputError

    try:
        return None if layer is None else int(layer)
    except ValueError:
        raise InputError(f"the layer is {layer!r}, expected a whole number or {AUTO}") from None


def _check_subject(method: str, subject: str | None) -> None:
    from ...edit.methods.table import find_method
    from ...errors import InputError

    if subject is None and find_method(method).looks_up:
        others = [name for name, row in METHODS.items() if row.edits and not find_method(name).looks_up]
        raise InputError(
            f"a TEMPLATE needs --subject, whose last token {method} edits at; without one take {', '.join(others)}"
        )


def _request(template, subject, target_new, target_true, fact, paraphrases: list[str], neighbours: list[str]):
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
        request = find_fact(fact)
        target_new = request.target_new if target_new is None else target_new
    else:
        if target_new is None:
            raise InputError("a TEMPLATE needs --target-new; see knowedit edit --help")
        target = _OPEN if target_true is None else target_true
        request = Fact(template=templated(template, subject), subject=subject, target=target)
    request = replace(
        request,
        target_new=target_new,
        paraphrases=(*request.paraphrases, *(templated(text, request.subject) for text in paraphrases)),
        neighbours=(*request.neighbours, *map(_neighbour, neighbours)),
    )
    check_request(request)
    return request


def _neighbour(text: str):
    from ...errors import InputError
    from ...facts import Neighbour

    prompt, equals, answer = (part.strip() for part in text.rpartition("="))
    if not equals or not prompt or not answer:
        raise InputError(f'a neighbour is {text!r}, expected "PROMPT=ANSWER"')
    return Neighbour(prompt, answer)


def _first_choice(model, fact) -> str:
    """What the model says now."""
    from ...answers import first_choice
    from ...errors import InputError

    answer = first_choice(model, fact)
    if answer.strip() == fact.target_new.strip():
        raise InputError(
            f"{answer.strip()!r} is the model's first choice already; name another --target-new, or the old answer "
            "with --target-true"
        )
    return answer


def _check_prompts(model, fact) -> None:
    """A prompt or answer that the tokenizer cannot use is said before anything is computed."""
    from ...facts import fill

    for template in (fact.template, *fact.paraphrases, *fact.heldout):
        for target in (fact.target, fact.target_new):
            model.query_of(fact, target, fill(template, fact.subject))
    for neighbour in fact.neighbours:
        for target in (neighbour.target, fact.target_new):
            model.query(neighbour.prompt, target, separator=fact.separator)


# ---------------------------------------------------------------- what is done


def _make(model, fact, method: str, layer: str | None, settings: dict, seconds: dict):
    """The edit, and the keys of other subjects if the method needed them; times go into `seconds`."""
    from ...edit.methods.best_layer import best_layer
    from ...edit.methods.table import method_config, prepare
    from ...errors import InputError
    from ...sources import builtin_facts

    clock = Clock()
    if layer == AUTO:
        with progress("trying layers", None, "layer") as step:
            number = best_layer(model, progress=step)
        seconds["layer"] = clock.lap()
    else:
        number = _number(layer)
    config = method_config(method, settings, number, model)
    editor = prepare(model, method, config, builtin_facts(), progress)
    seconds["prepare"] = clock.lap()
    (change,) = editor([fact])
    if change is None:
        raise InputError(f"{method} keeps this fact out, since no value gives the new answer; ask in other words")
    seconds["edit"] = clock.lap()
    return change, editor.preserved


def _checked(model, change, preserved, guard: bool, lens: bool, seconds: dict, command: str) -> tuple:
    """The edit with its figures, and what is seen before and after it, as the report has it.

    Raises `GuardError` with `guard`.
    """
    from ...edit.guard import Guard, check, checked, did_not_take
    from ...edit.preflight import outcome, preflight

    clock = Clock()
    before = preflight(model, change, preserved=preserved)
    if guard:
        check(before, None, Guard())  # what needs no further run of the model
    after = outcome(model, change, lens=lens)
    if guard:
        check(before, after, Guard())
    seconds["check"] = clock.lap()
    change = checked(change, before, after, command=command)
    return change, {
        "did_not_take": did_not_take(after),
        "refused": change.measured["guard"]["refused"],
        **asdict(after.facts[0]),
        "perplexity": {"before": after.perplexity_before, "after": after.perplexity_after},
        "preflight": before.fact_dict(),
        "guard": asdict(Guard()) if guard else None,
    }


def _layers(model, change) -> dict:
    layers = sorted(model.down_layers()[path] for path in change.deltas)
    return {"layer": layers[0] if len(layers) == 1 else None, "layers": layers}
