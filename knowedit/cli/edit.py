"""`knowedit edit`: change one fact, and show what that does before it is kept.

The model is asked before and with the edit; the edit itself is computed and saved, never left on a model.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_MODEL, AsJson, Device, Dtype, ModelName, RemoteCode, load
from .output import line, note, print_json, table

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
    lens: Annotated[bool, typer.Option("--lens", help="Also both answers by layer, by logit lens.")] = False,
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Change a fact: what the model answers before and after, what the edit may damage, and the edit as a folder.

    `knowedit edit TEMPLATE --subject S --target-new N`, or `--fact ID` for a built-in one.
    """
    given = {"layer": layer, "contexts": contexts, "tokens": tokens, "text": text, "norm_constraint": norm_constraint}
    check_method(method, given)
    where = _layer(layer, method)
    asked = _asked(template, subject, target_new, target_true, fact, paraphrase, neighbour)
    if out is not None:
        check_new(out)
    seconds, clock = {}, _Clock()
    wrapped = load(model, dtype, device, trust_remote_code)
    seconds["load"] = clock.lap()
    assumed = asked.target == _OPEN
    if assumed:
        asked = replace(asked, target=_first_choice(wrapped, asked))
    _check_prompts(wrapped, asked)
    made, protected = _make(wrapped, asked, method, where, given | {"seed": seed}, seconds)
    report = _checked(wrapped, made, protected, guard, lens, seconds)
    report = {
        "schema": SCHEMA, "model": wrapped.name, "method": method, **_layers(wrapped, made),
        "fact": asdict(asked), "target_true_is_first_choice": assumed, **report, "notes": dict(made.notes),
        "content_hash": made.content_hash, "seconds": seconds, "out": None if out is None else str(made.save(out)),
    }  # fmt: skip
    print_json(finite(report)) if as_json else _show(report)


# ---------------------------------------------------------------- what was asked for


def check_method(method: str, given: dict) -> None:
    """Refuse an unknown method, and options that it would not use."""
    from ..errors import InputError, did_you_mean

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
    from ..errors import InputError

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
    from ..edit.making import check_request
    from ..errors import InputError
    from ..facts import Fact, templated
    from ..sources import find_fact

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
    from ..errors import InputError
    from ..facts import Neighbour

    prompt, equals, answer = (part.strip() for part in text.rpartition("="))
    if not equals or not prompt or not answer:
        raise InputError(f'a neighbour is {text!r}, expected "PROMPT=ANSWER"')
    return Neighbour(prompt, answer)


def check_new(folder: Path) -> None:
    """Refuse at once what could not be saved after minutes of work."""
    from ..errors import InputError

    folder = folder.expanduser()
    if os.path.lexists(folder):
        raise InputError(f"{str(folder)!r} exists already; choose a new folder")
    if not folder.parent.is_dir():
        raise InputError(f"cannot write {str(folder)!r}: {str(folder.parent)!r} is no folder; make it first")


def _first_choice(wrapped, fact) -> str:
    """What the model says now: its most probable token that is text."""
    from ..answers import answers
    from ..errors import InputError

    query = wrapped.query(fact.prompt, fact.target_new, fact.subject)
    ((_, answer),) = answers(wrapped, [query], top=min(20, wrapped.vocabulary))
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
    from ..facts import fill

    for template in (fact.template, *fact.paraphrases, *fact.heldout):
        for target in (fact.target, fact.target_new):
            wrapped.query(fill(template, fact.subject), target, fact.subject)
    for neighbour in fact.neighbours:
        for target in (neighbour.target, fact.target_new):
            wrapped.query(neighbour.prompt, target)


# ---------------------------------------------------------------- making it


def _make(wrapped, fact, method: str, layer: int | str | None, given: dict, seconds: dict):
    """The edit by `method`, and the keys of other subjects if it needed them; times go into `seconds`."""
    from ..edit.fine_tune import FineTuneConfig, fine_tune
    from ..edit.knowledge_neurons import knowledge_neurons

    clock = _Clock()
    if method == "rome":
        return _rome(wrapped, fact, layer, given, seconds)
    seconds["covariance"] = 0.0
    if method == "knowledge_neurons":
        note("locating the neurons of the fact") if sys.stderr.isatty() else None
        made = knowledge_neurons(wrapped, fact)
    else:
        note("training") if sys.stderr.isatty() else None
        config = FineTuneConfig(norm_constraint=given["norm_constraint"])
        made = fine_tune(wrapped, fact, config if layer is None else replace(config, layer=layer))
    seconds["edit"] = clock.lap()
    return made, None


def _rome(wrapped, fact, layer: int | str | None, given: dict, seconds: dict):
    from tqdm.auto import tqdm

    from ..edit.covariance import covariance, default_tokens
    from ..edit.protect import protected_keys
    from ..edit.rome import rome_many

    clock = _Clock()
    if layer == "auto":
        layer = _best_layer(wrapped)
        seconds["layer"] = clock.lap()
    config = _rome_config(wrapped, layer, given["contexts"], given["seed"])
    with progress("covariance", given["tokens"] or default_tokens(wrapped), "token") as step:
        C = covariance(wrapped, [config.layer], source=given["text"], tokens=given["tokens"], progress=step)
    seconds["covariance"] = clock.lap()
    protected = protected_keys(wrapped, config.layer)
    seconds["keys"] = clock.lap()
    with tqdm(total=1, desc="searching", unit="edit", leave=False) as bar:
        (made,) = rome_many(
            wrapped, [fact], config, covariance=C[config.layer], protected=protected,
            progress=lambda done: bar.update(done - bar.n),
        )  # fmt: skip
    seconds["edit"] = clock.lap()
    return made, protected


def _best_layer(wrapped) -> int:
    from ..edit.layer import best_layer

    note("trying layers: first their covariances, then a few facts each") if sys.stderr.isatty() else None
    tried = []
    with progress("trying layers", None, "layer") as step:

        def count(score) -> None:
            tried.append(score)
            step(len(tried))

        return best_layer(wrapped, progress=count)


def _rome_config(wrapped, layer: int | None, contexts: int | None, seed: int):
    """The model's own settings where a table has them, in the layer that was asked for."""
    from ..edit.rome import RomeConfig, rome_config
    from ..errors import InputError

    try:
        config = rome_config(wrapped)
    except InputError:
        if layer is None:
            raise
        config = RomeConfig()
    config = replace(config, seed=seed, layer=config.layer if layer is None else wrapped.check_layer(layer))
    return config if contexts is None else replace(config, contexts=contexts)


@contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that is told how much is done, and is not there where nothing is to do."""
    from tqdm.auto import tqdm

    bars = []

    def step(done: int) -> None:
        if not bars:
            bars.append(tqdm(total=total, desc=what, unit=unit, leave=False))
        bars[0].update(done - bars[0].n)

    try:
        yield step
    finally:
        for bar in bars:
            bar.close()


# ---------------------------------------------------------------- what it does


def _checked(wrapped, made, protected, guard: bool, lens: bool, seconds: dict) -> dict:
    """Pre-flight and after-check, as the report has them; raises `GuardError` with `guard`."""
    from ..edit.check import Guard, check, outcome, preflight

    clock = _Clock()
    before = preflight(wrapped, made, protected=protected)
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
        "preflight": before.as_dict(),
        "guard": asdict(Guard()) if guard else None,
    }


def _layers(wrapped, made) -> dict:
    layers = [layer for layer in range(wrapped.n_layers) if wrapped.down_path(layer) in made.deltas]
    return {"layer": layers[0] if len(layers) == 1 else None, "layers": layers}


def finite(value):
    """`value` for JSON, with None where a number is none."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Clock:
    """Seconds since it was made, or since the last lap."""

    def __init__(self):
        self._last = time.perf_counter()

    def lap(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last


# ---------------------------------------------------------------- for people


def _show(report: dict) -> None:
    fact, before, after = report["fact"], report["before"], report["after"]
    layers = report["layers"]
    where = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))} of {report['model']}"
    line(f"{before['prompt']['prompt']}: {fact['target']} → {fact['target_new']}   ({report['method']}, {where})")
    if report["target_true_is_first_choice"]:
        line(f"The old answer {fact['target']!r} is the model's own first choice; name another with --target-true.")
    line()
    rows = [_row("prompt", before["prompt"], after["prompt"])]
    for what in ("paraphrases", "neighbours"):
        pairs = zip(before[what], after[what], strict=True)
        rows += [_row(what[:-1], *pair) for pair in pairs]
    table(["", "prompt", "p old", "p new", "first choice"], rows)
    line()
    for what, ours, how in (
        ("paraphrases", "p_new", "prefer the new answer"),
        ("neighbours", "p_true", "keep their own answer"),
    ):
        if after[what]:
            line(f"{what} that {how}: {_won(before[what], ours)} → {_won(after[what], ours)}")
    if report["lens"]:
        line()
        names = ("before_true", "before_new", "after_true", "after_new")
        rows = [(row["layer"], *(f"{row[name]:.3f}" for name in names)) for row in report["lens"]]
        table(["layer", "before: old", "before: new", "after: old", "after: new"], rows, title="By logit lens")
        line()
    _show_checks(report)
    line(
        f"Saved to {report['out']}" if report["out"] else "Not saved; --out DIR keeps the edit. The model is unchanged."
    )
    line("Seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in report["seconds"].items()))


def _row(what: str, before: dict, after: dict) -> tuple:
    chances = (f"{before[p]:.3f} → {after[p]:.3f}" for p in ("p_true", "p_new"))
    return what, before["prompt"], *chances, f"{before['top'][0][0]!r} → {after['top'][0][0]!r}"


def _won(contrasts, ours: str) -> str:
    if ours == "p_new":
        won = sum(c["p_new"] > c["p_true"] for c in contrasts)
    else:  # a neighbour's answer may be the new one itself
        won = sum(c["p_true"] >= c["p_new"] for c in contrasts)
    return f"{won} of {len(contrasts)}"


def _show_checks(report: dict) -> None:
    checks, perplexity = report["preflight"], report["perplexity"]
    key = "" if checks["k_C_inv_k"] is None else f", kᵀC⁻¹k = {checks['k_C_inv_k']:.3g}"
    line(f"Pre-flight: ‖ΔW‖/‖W‖ = {checks['relative_norm']:.2%}{key}")
    if checks["nearest"]:
        near = "; ".join(f"{n['subject']} {n['leak']:.0%} ({n['cosine']:.2f})" for n in checks["nearest"])
        line(f"Others that change most, by share of the change (cosine of the keys): {near}")
    for warning in checks["warnings"]:
        line(f"Warning: {warning}")
    if perplexity["before"] is not None:
        rise = perplexity["after"] / perplexity["before"] - 1
        line(f"Perplexity of a plain text: {perplexity['before']:.2f} → {perplexity['after']:.2f} ({rise:+.1%})")
