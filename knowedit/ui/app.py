"""The page: its stages from top to bottom, and what is done when something on it is used."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from threading import Event
from typing import Any

from ..errors import InputError, KnoweditError
from ..models.adapter import Model
from . import asking, comparing, editing, inside, locating, stacking
from .jobs import Desk, Report
from .render import doing, fill, head, notes, problem
from .tab import Tab
from .toolkit import Factor, gradio as gr

HOST = "127.0.0.1"


def serve(model: Model, port: int | None = None, *, ready: Callable[[str], object]) -> None:
    """Serve the page until it is interrupted; `ready` is called with its address.

    Raises `InputError` for a port that is taken.
    """
    with served(model, port) as address:
        ready(address)
        Event().wait()


def check_port(port: int | None) -> None:
    """Raise `InputError` for a port that cannot be used; None stands for the first free one."""
    try:
        if port is not None:
            socket.create_server((HOST, port)).close()
    except OSError as error:
        raise InputError(
            f"the port {port} cannot be used ({os.strerror(error.errno)}); give another, or leave it out"
        ) from None


@contextmanager
def served(model: Model, port: int | None = None) -> Iterator[str]:
    """Serve the page on the loopback while the context lasts, and yield its address."""
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    with TemporaryDirectory(prefix="knowedit-") as folder:
        desk = Desk(model)
        page = build(desk, Path(folder))
        try:
            _, address, _ = page.launch(
                server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, footer_links=[],
                theme=theme, head=head(), run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
                mcp_server=False, inbrowser=False, inline=False,
            )  # fmt: skip
        except OSError:
            check_port(port)
            raise InputError("no port from 7860 on is free; give one") from None
        try:
            yield address
        finally:
            desk.close()
            page.close(verbose=False)


class Wiring:
    """Ties what is used on the page to the work that it starts."""

    def __init__(self, desk: Desk):
        self.model, self.desk = desk.model, desk
        self.unedited = desk.model.weights_hash()
        self.tab = gr.State(Tab())  # of which each browser tab gets a copy

    def on(
        self,
        register: Callable[..., Any],
        work: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        status: Any,
        *,
        asked: bool = False,
        bare: bool = False,
        live: bool = False,
        last: bool = False,
        clears: bool = False,
    ) -> Any:
        """Run `work(tab, report, *inputs)` as a job whenever the event of `register` fires; it returns the `outputs`.

        The tab's edits are on meanwhile, or with `asked` those that were on when its fact was asked, with `bare` none.
        Of several events the `last` counts, or each only when the one before it is done. `live` work follows a slider:
        it is such, and says nothing of itself. Work that fails leaves the first output as it was, or `clears` it.
        """

        def handle(tab: Tab, *values: Any) -> Iterator[tuple]:
            still = [gr.skip()] * len(outputs)
            job = self.desk.job(
                lambda report: work(tab, report, *values),
                lambda: () if bare else tab.told.edits if asked and tab.told else tab.edits,
            )
            tab.running.append(job)
            try:
                for step in job:
                    if not live:
                        yield (doing(step), *still)
            except KnoweditError as error:
                yield (problem(str(error)), *([""] * clears + still)[: len(still)])
            else:
                value = job.value if isinstance(job.value, tuple) else (job.value,)
                yield (notes(job.notes), *value[: len(outputs)])
            finally:
                tab.running.remove(job)

        return register(
            handle, [self.tab, *inputs], [status, *outputs], show_progress="hidden", api_visibility="private",
            concurrency_limit=None, trigger_mode="always_last" if live or last else "once",
        )  # fmt: skip

    def stop(self) -> None:
        """A button that stops what this tab has running."""
        button = gr.Button("Stop", size="sm", elem_classes="stop")
        button.click(Tab.stop, [self.tab], None, queue=False, show_progress="hidden", api_visibility="private")


def build(desk: Desk, folder: Path) -> gr.Blocks:
    """The page, not yet served; what it shares is written into `folder`."""
    with gr.Blocks(title=f"knowedit: {desk.model.name}", analytics_enabled=False) as page:
        wiring = Wiring(desk)
        gr.HTML(fill("welcome", model=desk.model), **PLAIN)
        asked = _ask(wiring)
        _inside(wiring, asked)
        _locate(wiring, asked)
        changed = _edit(wiring, asked)
        _stack(wiring, [asked, changed])
        _compare(wiring, folder)
    return page


PLAIN: dict[str, Any] = {"apply_default_css": False, "padding": False}


def _stage(number: int, title: str, words: str) -> gr.Column:
    """A stage of the page: a heading, and what it is about in a sentence."""
    stage = gr.Column(elem_classes="stage", elem_id=f"stage-{number}")
    with stage:
        gr.HTML(fill("heading", number=number, title=title, words=words), **PLAIN)
    return stage


def _shown(**more: Any) -> gr.HTML:
    """A place where HTML is put."""
    return gr.HTML("", **PLAIN, **more)


def _ask(wiring: Wiring) -> Any:
    with _stage(1, "Ask", "What does the model say, and how sure is it?"):
        start = asking.words(asking.START)
        chosen = gr.Dropdown(asking.choices(), value=asking.START, label="Fill in a built-in fact", filterable=True)
        with gr.Row():
            prompt = gr.Textbox(start[0], label="Prompt", scale=3, elem_id="prompt")
            subject = gr.Textbox(start[1], label="Subject, as it stands there", scale=2, elem_id="subject")
            target = gr.Textbox(start[2], label="Answer (empty: the model's)", scale=1, elem_id="target")
        with gr.Row():
            button = gr.Button("Ask", variant="primary", elem_id="ask")
            wiring.stop()
        status, shown = _shown(), _shown(elem_id="asked")
        words = [prompt, subject, target]
        chosen.input(asking.words, [chosen], words, show_progress="hidden", api_visibility="private")
        register = partial(gr.on, [button.click, *(box.submit for box in words)])
        return wiring.on(register, partial(asking.ask, wiring.model), words, [shown, chosen], status, clears=True)


def _inside(wiring: Wiring, asked: Any) -> None:
    model = wiring.model
    with _stage(2, "Look inside", "The way of the prompt through the model: attention, the MLP, the output."):
        middle = model.n_layers // 2
        layer = gr.Radio([(str(i), i) for i in range(model.n_layers)], value=middle, label="Layer", elem_id="layer")
        place = gr.Radio([], label="Token", elem_id="place")
        with gr.Row():
            button = gr.Button("Look inside", variant="primary", elem_id="inside")
            why = gr.Button("Does expansion help here?", elem_id="why")
            form = gr.Button("How does the answer form?", elem_id="form")
            wiring.stop()
        status, shown, expanded, formed = _shown(), _shown(elem_id="seen"), _shown(elem_id="expanded"), _shown()

        def emptied(tab: Tab, _: Report) -> tuple:
            if tab.told is None:
                return gr.Radio(choices=[], value=None), "", ""
            return gr.Radio(choices=inside.tokens(tab, model), value=inside.read_position(tab, model)), "", ""

        wiring.on(asked.then, emptied, [], [place, shown, formed], status)
        register = partial(gr.on, [button.click, layer.input, place.input])
        wiring.on(register, partial(inside.look, model), [layer, place], [shown], status, asked=True, last=True)
        wiring.on(why.click, lambda _, report, at: inside.expand(model, report, at), [layer], [expanded], status,
                  asked=True)  # fmt: skip
        wiring.on(form.click, inside.output, [], [formed], status, asked=True)


def _locate(wiring: Wiring, asked: Any) -> None:
    model = wiring.model
    with _stage(3, "Locate", "Which neurons make the answer, and what is it without them?"):
        with gr.Row():
            button = gr.Button("Locate and prove", variant="primary", elem_id="locate")
            wiring.stop()
        status, shown = _shown(), _shown(elem_id="located")
        with gr.Column(visible=False, elem_id="sliders") as panel:
            live, live_status = _shown(elem_id="live"), _shown()
            every = Factor(0, 3, 1, step=0.1, label="All of them, times", elem_id="all")
            with gr.Row(elem_classes="sliders"):
                sliders = [Factor(0, 3, 1, step=0.1, visible=False, min_width=220) for _ in range(locating.SLIDERS)]
            reset = gr.Button("All back to × 1", size="sm")
            card = gr.Radio([], label="The card of a neuron", elem_id="cards")
            card_status, carded = _shown(), _shown(elem_id="card")

        def located(tab: Tab, report: Report) -> tuple:
            html, names = locating.locate(tab, report)
            ours = [gr.Slider(label=f"Neuron {name}, times", value=1, visible=True) for name in names]
            ours += [gr.Slider(visible=False, value=1)] * (len(sliders) - len(names))
            cards = gr.Radio(choices=names, value=None)
            return (
                html,
                gr.Column(visible=bool(names)),
                locating.gauge(tab, [1.0] * len(names)) if names else "",
                cards,
                "",
                1,
                *ours,
            )

        def scaled(tab: Tab, _: Report, *factors: float) -> str:
            return locating.gauge(tab, factors)

        def together(tab: Tab, _: Report, factor: float) -> tuple:
            return locating.gauge(tab, [factor] * len(sliders)), *[factor] * len(sliders)

        outputs = [shown, panel, live, card, carded, every, *sliders]
        wiring.on(button.click, located, [], outputs, status, asked=True)
        asked.then(lambda: ("", gr.Column(visible=False)), None, [shown, panel], show_progress="hidden",
                   api_visibility="private")  # fmt: skip
        for slider in sliders:
            wiring.on(slider.input, scaled, sliders, [live], live_status, asked=True, live=True)
        wiring.on(every.input, together, [every], [live, *sliders], live_status, asked=True, live=True)
        wiring.on(reset.click, lambda tab, report: (*together(tab, report, 1.0), 1.0), [], [live, *sliders, every],
                  live_status, asked=True, live=True)  # fmt: skip
        carding = partial(locating.card, model)
        wiring.on(card.input, carding, [card], [carded], card_status, asked=True)


def _edit(wiring: Wiring, asked: Any) -> Any:
    model = wiring.model
    with _stage(4, "Edit", "Another answer. What an edit may do wrong is shown before anything is changed."):
        with gr.Row():
            new = gr.Textbox(label="New answer", elem_id="new", scale=2)
            method = gr.Dropdown(editing.methods(), value="rome", label="Method", scale=3)
            layers = [editing.OWN_LAYER, *map(str, range(model.n_layers))]
            layer = gr.Dropdown(layers, value=editing.OWN_LAYER, label="Layer", scale=1)
        with gr.Row():
            look = gr.Button("Pre-flight", variant="primary", elem_id="preflight")
            put = gr.Button("Put the edit on", elem_id="put-on")
            wiring.stop()
        status, shown = _shown(), _shown(elem_id="edited")
        asked.then(lambda: "", None, [shown], show_progress="hidden", api_visibility="private")  # it was of another
        wanted = [new, method, layer]
        register = partial(gr.on, [look.click, new.submit])
        wiring.on(register, partial(editing.propose, model), wanted, [shown], status)
        return wiring.on(put.click, partial(editing.put_on, model), wanted, [shown], status)


def _stack(wiring: Wiring, changes: Sequence[Any]) -> None:
    model = wiring.model
    with _stage(
        5,
        "The stack",
        "The edits of this tab, until it is closed or loaded again. Any of them comes off, and the bits are back.",
    ):
        shown = _shown(elem_id="stack")
        on = gr.CheckboxGroup([], label="On the model (the others are set aside)", elem_id="on")
        chosen = gr.Radio([], label="Which of them to take off or save", elem_id="chosen")
        with gr.Row():
            off = gr.Button("Take the chosen one off", elem_id="take-off")
            none = gr.Button("Take all off", elem_id="take-all-off")
        with gr.Row():
            folder = gr.Textbox(
                label="A folder on this machine", elem_id="folder", placeholder="~/eiffel-in-dubai", scale=3
            )
            kind = gr.Dropdown(stacking.kinds(), value="peft", label="Export as", scale=1)
        with gr.Row():
            save = gr.Button("Save the chosen one", elem_id="save")
            load = gr.Button("Load an edit or a set of facts", elem_id="load")
            export = gr.Button("Export all that are on", elem_id="export")
            wiring.stop()
        status = _shown()

        def drawn(tab: Tab, _: Report) -> str:
            return stacking.stack(model, tab, wiring.unedited)

        def refreshed(tab: Tab, report: Report) -> tuple:
            names = stacking.entries(tab)
            places = [place for place, entry in enumerate(tab.stack) if entry.on]
            choices = gr.CheckboxGroup(choices=names, value=places), gr.Radio(choices=names, value=None)
            return drawn(tab, report), *choices

        still = _shown()  # where a refresh says that it waits
        aside = wiring.on(on.input, lambda tab, _, places: stacking.set_aside(tab, places), [on], [], status)
        wiring.on(aside.then, drawn, [], [shown], still)  # the same edits are there: what is chosen stays chosen
        acts: list[tuple[Any, Any, list]] = [
            (off.click, lambda tab, _, place: stacking.take_off(tab, place), [chosen]),
            (none.click, lambda tab, _: tab.stack.clear(), []),
            (load.click, partial(stacking.load, model), [folder]),
        ]
        for event in (*changes, *(wiring.on(event, act, inputs, [], status) for event, act, inputs in acts)):
            wiring.on(event.then, refreshed, [], [shown, on, chosen], still)
        wiring.on(save.click, lambda tab, _, *which: stacking.save(model, tab, *which), [chosen, folder], [still],
                  status, bare=True, clears=True)  # fmt: skip
        wiring.on(export.click, partial(stacking.export, model), [folder, kind], [still],
                  status, bare=True, clears=True)  # fmt: skip


def _compare(wiring: Wiring, folder: Path) -> None:
    model = wiring.model
    with _stage(6, "Compare and share", "Two prompts, or without and with the edits, side by side."):
        with gr.Row():
            prompt = gr.Textbox(label="Another prompt", scale=3, elem_id="other-prompt")
            subject = gr.Textbox(label="Its subject", scale=2, elem_id="other-subject")
            target = gr.Textbox(label="Its answer (empty: the model's)", scale=1)
        with gr.Row():
            beside = gr.Button("Compare with it", variant="primary", elem_id="compare")
            without = gr.Button("Compare without and with the edits", elem_id="compare-edits")
            wiring.stop()
        status, shown = _shown(), _shown(elem_id="compared")
        words = [prompt, subject, target]
        wiring.on(beside.click, partial(comparing.prompts, model), words, [shown], status, bare=True)
        wiring.on(without.click, partial(comparing.edits, model), [], [shown], status, bare=True)
        gr.HTML(fill("share"), **PLAIN)
        with gr.Row():
            make = gr.Button("Make the page", elem_id="share")
            page = gr.DownloadButton("Save the page", visible=False, elem_id="page")

        def shared(tab: Tab, _: Report) -> Any:
            where = Path(mkdtemp(dir=folder))
            return gr.DownloadButton(value=str(comparing.share(tab, where)), visible=True)

        wiring.on(make.click, shared, [], [page], status, asked=True)
